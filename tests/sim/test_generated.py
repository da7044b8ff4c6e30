"""Jets made by the whole chain, without MPI to save time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pythia8mc", reason="needs the [sim] extra")
pytest.importorskip("fastjet", reason="needs the [sim] extra")

from jetfoundry import config, labels, schema
from jetfoundry.errors import ConfigError
from jetfoundry.events.jets import wrap_phi
from jetfoundry.sim import chain, jets
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.generator import Generator
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.source import PairSource

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("Res2P_neutral", "Res2P_charged", "Res34P", "QCD", "QCD_balanced")


def configured(*overrides: str) -> SimulateConfig:
    defaults = ["mode=no_mpi", "jets_per_shard=60", "jets=240", "batch_events=60"]
    return config.read(SimulateConfig, ROOT / "datasets" / "jetclass2_sim.yaml", [*defaults, *overrides])


@pytest.fixture(scope="module")
def card() -> DetectorCard:
    return config.read(DetectorCard, ROOT / "datasets" / "cards" / "cms.yaml")


@pytest.fixture(scope="module")
def tables(card: DetectorCard) -> dict[str, pa.Table]:
    cfgs = {"": configured(), "balanced": configured("balance=classes")}
    made = {}
    for name in FAMILIES:
        family, _, balance = name.partition("_balanced")
        made[name] = chain.make_shard(cfgs["balanced" if "_balanced" in name else balance], card, family, 0).table
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def sample(request: pytest.FixtureRequest, tables: dict[str, pa.Table]) -> ak.Array:
    return ak.from_arrow(tables[request.param])


def momenta(sample: ak.Array, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    columns = [sample[f"{prefix}_{name}"] for name in ("px", "py", "pz", "energy")]
    flat = np.stack([ak.to_numpy(ak.flatten(column)) for column in columns], axis=1).astype(np.float64)
    return flat, np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(columns[0])))])


def test_every_shard_has_exactly_the_wanted_jets_and_the_schema(tables: dict[str, pa.Table]) -> None:
    for table in tables.values():
        assert len(table) == 60
        assert table.schema.equals(schema.arrow_schema())
        assert all(column.null_count == 0 for column in table.columns)


def test_all_numbers_are_finite(sample: ak.Array) -> None:
    for column in schema.COLUMNS:
        values = ak.to_numpy(ak.flatten(sample[column.name], axis=None))
        assert np.isfinite(values).all(), column.name


@pytest.mark.parametrize("prefix", ["jet", "genjet"])
def test_jet_four_vector_is_the_sum_of_its_constituents(sample: ak.Array, prefix: str) -> None:
    parts = "part" if prefix == "jet" else "genpart"
    px, py, pz, energy = (ak.to_numpy(ak.sum(sample[f"{parts}_{c}"], axis=1)) for c in ("px", "py", "pz", "energy"))
    some = ak.to_numpy(sample[f"{prefix}_pt"]) > 0
    pt = np.hypot(px, py)[some]
    np.testing.assert_allclose(pt, sample[f"{prefix}_pt"][some], rtol=1e-5)
    np.testing.assert_allclose(energy[some], sample[f"{prefix}_energy"][some], rtol=1e-5)
    np.testing.assert_allclose(np.arcsinh(pz[some] / pt), sample[f"{prefix}_eta"][some], atol=1e-4)
    np.testing.assert_allclose(np.arctan2(py, px)[some], sample[f"{prefix}_phi"][some], atol=1e-4)
    np.testing.assert_array_equal(ak.num(sample[f"{parts}_px"]), sample[f"{prefix}_nparticles"])


def test_substructure_is_recomputed_from_the_stored_constituents(sample: ak.Array) -> None:
    for parts, prefix in (("part", "jet"), ("genpart", "genjet")):
        mass = jets.softdrop_mass(*momenta(sample, parts), 0.1)
        stored = ak.to_numpy(sample[f"{prefix}_sdmass"]).astype(float)
        rounding = 1e-6 * ak.to_numpy(sample[f"{prefix}_energy"]).astype(float) ** 2  # of stored momenta, in mass^2
        assert np.mean(np.abs(mass**2 - stored**2) < 2e-3 * stored**2 + rounding) > 0.98
    tau = jets.nsubjettiness(*momenta(sample, "part"), 0.8)
    stored = np.stack([sample[f"jet_tau{n}"] for n in range(1, 5)], axis=1)
    assert np.mean(np.isclose(tau, stored, rtol=1e-2, atol=1e-4)) > 0.98


def test_constituents_fall_in_pt_and_point_along_the_jet(sample: ak.Array) -> None:
    for parts, deta, dphi in (("part", "part_deta", "part_dphi"), ("genpart", "genpart_jet_deta", "genpart_jet_dphi")):
        px, py, pz = (sample[f"{parts}_{c}"] for c in ("px", "py", "pz"))
        pt = np.hypot(px, py)
        assert ak.all(pt[:, :-1] >= pt[:, 1:] * (1 - 1e-6))
        sign = np.where(sample.jet_eta > 0, 1, -1)
        assert ak.max(abs(sign * (np.arcsinh(pz / pt) - sample.jet_eta) - sample[deta])) < 1e-4
        turned = np.arctan2(py, px) - sample.jet_phi - sample[dphi]
        assert ak.max(abs(np.sin(turned))) < 1e-4
        assert ak.max(abs(sample[dphi])) <= np.float32(np.pi)


def test_each_particle_has_one_category_that_fits_charge_and_track(sample: ak.Array) -> None:
    flags = {name: ak.to_numpy(ak.flatten(sample[f"part_is{name}"])) for name in
             ("Electron", "Muon", "Photon", "ChargedHadron", "NeutralHadron")}  # fmt: skip
    charge, d0err, dzerr, d0, dz = (
        ak.to_numpy(ak.flatten(sample[f"part_{c}"])) for c in ("charge", "d0err", "dzerr", "d0val", "dzval")
    )
    assert (np.sum(list(flags.values()), axis=0) == 1).all()
    neutral = flags["Photon"] | flags["NeutralHadron"]
    np.testing.assert_array_equal(charge == 0, neutral)
    np.testing.assert_array_equal(d0err > 0, ~neutral)
    np.testing.assert_array_equal(dzerr > 0, ~neutral)
    assert not d0[neutral].any()
    assert not dz[neutral].any()


def test_selection_holds_in_single_precision(sample: ak.Array) -> None:
    assert ak.all((sample.jet_pt > 200) & (sample.jet_pt < 2500) & (abs(sample.jet_eta) <= 2.5))
    assert ak.all((sample.jet_sdmass > 20) & (sample.jet_sdmass < 500))


def test_nearly_every_jet_has_a_generator_level_jet_of_similar_pt(sample: ak.Array) -> None:
    found = sample.genjet_pt > 0
    assert ak.mean(found) > 0.95
    assert 0.75 < np.median(ak.to_numpy((sample.jet_pt / sample.genjet_pt)[found])) < 1.0
    assert not ak.any(ak.num(sample.genpart_px)[~found])
    assert ak.max(abs(sample.genpart_t)) < 1e-6  # seconds: some hundred metres of flight at most


def test_labels_belong_to_the_family_and_truth_particles_carry_their_roles(tables: dict[str, pa.Table]) -> None:
    for family, table in tables.items():
        jets_ = ak.from_arrow(table)
        known = labels.FAMILIES[family.split("_")[0]]
        assert set(jets_.jet_label.tolist()) <= set(known)
        roles = {name: ak.sum(jets_[f"aux_genpart_{name}"], axis=1).tolist() for name in
                 ("isResX", "isResY", "isResDecayProd", "isQcdParton")}  # fmt: skip
        if family.startswith("QCD"):
            assert not any(roles["isResX"] + roles["isResDecayProd"])
            assert sum(roles["isQcdParton"]) > 0
        else:
            assert set(roles["isResX"]) == {1}
            assert set(roles["isResY"]) == ({2} if family == "Res34P" else {0})
            assert set(roles["isResDecayProd"]) == ({4} if family == "Res34P" else {2})
            assert not any(roles["isQcdParton"])


def test_two_prong_decay_products_lie_in_the_jet_and_name_its_label(tables: dict[str, pa.Table]) -> None:
    letter = {1: "q", 2: "q", 3: "s", 4: "c", 5: "b", 21: "g", 11: "e", 13: "m", 15: "tau"}
    for family in ("Res2P_neutral", "Res2P_charged"):
        for jet in tables[family].to_pylist():
            product = np.array(jet["aux_genpart_isResDecayProd"])
            pids = np.abs(np.array(jet["aux_genpart_pid"])[product])
            name = labels.CLASSES[jet["jet_label"]].removeprefix("X_")
            if "tau" in name:
                assert sum(jet["aux_genpart_isTauDecayProd"]) >= 4  # two neutrinos and two more
                continue
            assert sorted(letter[p] for p in pids) == sorted(name)
            deta = np.array(jet["aux_genpart_eta"])[product] - jet["jet_eta"]
            dphi = wrap_phi(np.array(jet["aux_genpart_phi"])[product] - jet["jet_phi"])
            distance = np.hypot(deta, dphi)
            assert distance.max() < 0.8
            assert distance[0] <= distance[1]


def test_leptons_taus_and_heavy_flavour_leave_their_signature(tables: dict[str, pa.Table]) -> None:
    jets_ = ak.from_arrow(tables["Res2P_neutral"])
    muons = jets_[jets_.jet_label == labels.INDEX["X_mm"]]
    if len(muons):
        assert ak.mean(ak.sum(muons.part_isMuon, axis=1)) > 1.5
    displaced = ak.sum(abs(jets_.part_d0val) > 5 * jets_.part_d0err, axis=1)
    heavy, light = (displaced[jets_.jet_label == labels.INDEX[name]] for name in ("X_bb", "X_qq"))
    assert ak.mean(heavy) > 2 * ak.mean(light)


def test_a_shard_depends_on_seed_family_and_number_only(card: DetectorCard, tables: dict[str, pa.Table]) -> None:
    again = chain.make_shard(configured(), card, "Res2P_neutral", 0).table
    assert again.equals(tables["Res2P_neutral"])
    other_shard = chain.make_shard(configured(), card, "Res2P_neutral", 1).table
    other_seed = chain.make_shard(configured("seed=2"), card, "Res2P_neutral", 0).table
    for other in (other_shard, other_seed):
        assert not set(other["jet_pt"].to_pylist()) & set(again["jet_pt"].to_pylist())


def test_the_mass_of_x_comes_back_from_its_stable_descendants() -> None:
    cfg = configured()
    resonance = cfg.families["Res2P_neutral"].resonance
    assert resonance is not None
    source = PairSource(resonance, cfg.beam_energy, np.random.default_rng(1))
    events = Generator(cfg.common_settings, 5, source).batch(15)
    top = np.where((events.pid == 25) & (events.status == -22), np.arange(len(events.pid)), -1)
    for _ in range(60):  # hand the ancestor X down the record
        known = (top < 0) & (events.mother >= 0)
        top[known] = top[events.mother[known]]
    for x in np.flatnonzero((events.pid == 25) & (events.status == -22)):
        p = events.p4[(top == x) & (events.status > 0)].sum(axis=0)
        mass = np.sqrt(p[3] ** 2 - (p[:3] ** 2).sum())
        assert mass == pytest.approx(events.mass[x], abs=1.0)


def test_a_batch_without_accepted_jets_gives_an_empty_table(card: DetectorCard) -> None:
    cfg = configured("selection.pt=[2499.9, 2500.0]")
    generator = Generator(dataclasses.replace(cfg, mode="fast").pythia_settings("QCD"), 3)
    table = chain.analyse(generator.batch(3), cfg, card, np.random.default_rng(1), qcd=True)
    assert len(table) == 0
    assert table.schema.equals(schema.arrow_schema())


def test_a_selection_that_nothing_passes_ends_with_an_error(
    card: DetectorCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_HOPELESS", 20)
    cfg = configured("selection.pt=[2499.9, 2500.0]", "mode=fast", "batch_events=15")
    with pytest.raises(ConfigError, match=r"QCD: no jet in 30 events passes the selection"):
        chain.make_shard(cfg, card, "QCD", 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("HardQCD:al = on", "unknown key or value out of range"),
        ("Random:seed = 900000001", "unknown key or value out of range"),
        ("PartonLevel:MPI = maybe", "wanted on or off, got 'maybe'"),
        ("PhaseSpace:pTHatMin = abc", "unknown key or value out of range"),
        ("Random:seed = 5.5", "wanted an integer, got '5.5'"),
        ("25:m0 = abc", "wanted a number, got 'abc'"),
        ("HardQCD:all", "unknown key or value out of range"),
        ("PhaseSpace:pTHatMin = 20abc", "wanted a number, got '20abc'"),
        ("MultipartonInteractions:pT0Ref = 2,5", "wanted a number, got '2,5'"),
        ("EnhancedSplittings:List = {junk}", r"wanted a list like {fsr:G2BB=10,fsr:G2CC=5}, got '{junk}'"),
        ("EnhancedSplittings:List = {fsr:G2BBB=10}", "wanted a list like"),
        ("25:onMode = maybe", "wanted on, off or 0 to 3, got 'maybe'"),
        ("25:mayDecay = perhaps", "wanted on or off, got 'perhaps'"),
        ("25:addChannel = 1 abc 100 5 -5", "wanted numbers, got '1 abc 100 5 -5'"),
    ],
)
def test_settings_that_pythia_would_swallow_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generator([setting], 1)
