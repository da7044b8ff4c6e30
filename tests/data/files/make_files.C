// The files beside this macro, as ROOT 6.40 itself writes them: `root -b -q make_files.C`, in this folder.
// Entry i has numbers that the tests compute again (test_root_files.py), so no list of them is kept.

#include <cstdio>
#include <unistd.h>
#include <vector>
#include <ROOT/RNTupleModel.hxx>
#include <ROOT/RNTupleWriter.hxx>
#include <TChain.h>
#include <TFile.h>
#include <TTree.h>

const int LONG_JET = 77;  // its lists need a basket of their own

struct Jet {
  std::vector<float> px;
  std::vector<double> energy;
  std::vector<int> charge;
  std::vector<bool> is_muon;
  float pt, sdmass;
  int label;

  void set(int i) {
    int n = i == LONG_JET ? 2500 : i * 7 % 6;
    px.clear(), energy.clear(), charge.clear(), is_muon.clear();
    for (int k = 0; k < n; ++k) {
      px.push_back(i + k / 8.f);
      energy.push_back(2. * i + k);
      charge.push_back((i + k) % 3 - 1);
      is_muon.push_back((i + k) % 2);
    }
    pt = 200 + i, sdmass = 20 + i / 4.f, label = i % 5;
  }
};

// Branches of C++ vectors. The baskets of part_energy hold twice as much: they end at other entries.
void vectors(const char* name, int first, int stop, int compression, int basket, int flush, bool close = true) {
  auto file = new TFile(name, "RECREATE");
  if (compression >= 0) file->SetCompressionSettings(compression);
  auto tree = new TTree("tree", "jets");
  auto jet = new Jet;
  tree->Branch("part_px", &jet->px, basket);
  tree->Branch("part_energy", &jet->energy, 4 * basket);
  tree->Branch("part_charge", &jet->charge, basket);
  tree->Branch("part_isMuon", &jet->is_muon, basket);
  tree->Branch("jet_pt", &jet->pt, "jet_pt/F", basket);
  tree->Branch("jet_sdmass", &jet->sdmass, "jet_sdmass/F", basket);
  tree->Branch("jet_label", &jet->label, "jet_label/I", basket);
  tree->SetAutoFlush(flush);
  for (int i = first; i < stop; ++i) {
    jet->set(i);
    tree->Fill();
    if (!close && i == 149) tree->AutoSave("SaveSelf");
  }
  if (!close) return;  // what a program leaves that is killed
  file->Write();
  file->Close();
}

// Arrays with counters: two of them share part_n, one has its own.
void counters(const char* name) {
  TFile file(name, "RECREATE");
  auto tree = new TTree("tree", "jets");
  static Jet jet;
  static int n, muons, charge[2500];
  static float px[2500];
  static double energy[2500];
  static bool is_muon[2500];
  tree->Branch("part_n", &n, "part_n/I", 1000);
  tree->Branch("part_px", px, "part_px[part_n]/F", 1000);
  tree->Branch("part_energy", energy, "part_energy[part_n]/D", 4000);
  tree->Branch("part_charge", charge, "part_charge[part_n]/I", 1000);
  tree->Branch("muons", &muons, "muons/i", 1000);
  tree->Branch("part_isMuon", is_muon, "part_isMuon[muons]/O", 1000);
  tree->Branch("jet_pt", &jet.pt, "jet_pt/F", 1000);
  tree->Branch("jet_sdmass", &jet.sdmass, "jet_sdmass/F", 1000);
  tree->Branch("jet_label", &jet.label, "jet_label/I", 1000);
  tree->SetAutoFlush(100);
  for (int i = 0; i < 300; ++i) {
    jet.set(i);
    n = muons = jet.px.size();
    for (int k = 0; k < n; ++k) {
      px[k] = jet.px[k], energy[k] = jet.energy[k];
      charge[k] = jet.charge[k], is_muon[k] = jet.is_muon[k];
    }
    tree->Fill();
  }
  file.Write();
}

void ntuple(const char* name) {
  auto model = ROOT::RNTupleModel::Create();
  auto px = model->MakeField<std::vector<float>>("part_px");
  auto energy = model->MakeField<std::vector<double>>("part_energy");
  auto charge = model->MakeField<std::vector<int>>("part_charge");
  auto is_muon = model->MakeField<std::vector<bool>>("part_isMuon");
  auto pt = model->MakeField<float>("jet_pt");
  auto sdmass = model->MakeField<float>("jet_sdmass");
  auto label = model->MakeField<int>("jet_label");
  auto writer = ROOT::RNTupleWriter::Recreate(std::move(model), "tree", name);
  Jet jet;
  for (int i = 0; i < 300; ++i) {
    jet.set(i);
    *px = jet.px, *energy = jet.energy, *charge = jet.charge, *is_muon = jet.is_muon;
    *pt = jet.pt, *sdmass = jet.sdmass, *label = jet.label;
    writer->Fill();
    if (i % 120 == 119) writer->CommitCluster();
  }
}

void make_files() {
  vectors("vectors.root", 0, 300, -1, 1000, 100);
  counters("counters.root");
  ntuple("ntuple.root");

  // Baskets of five compressions, of different sizes, copied as they are into one file.
  TChain chain("tree");
  const int compressions[] = {101, 404, 505, 207, 0};  // ZLIB, LZ4, ZSTD, LZMA, none
  for (int k = 0; k < 5; ++k) {
    TString name = TString::Format("part_%d.root", k);
    vectors(name, 60 * k, 60 * k + 60, compressions[k], 500 + 300 * k, 10 * k);
    chain.Add(name);
  }
  TFile merged("merged.root", "RECREATE");
  chain.Merge(&merged, 0, "fast keep");
  merged.Close();
  for (int k = 0; k < 5; ++k) std::remove(TString::Format("part_%d.root", k));

  vectors("unfinished.root", 0, 300, -1, 1000, 100, false);
  vectors("begun.root", 0, 1, -1, 1000, 100, false);
  _exit(0);  // before ROOT closes the unfinished files
}
