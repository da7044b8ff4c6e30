from __future__ import annotations

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from jetfoundry import schema
from jetfoundry.data.inventory import InputFile, expand, take_inventory
from jetfoundry.data.root import DamagedFile, jet_schema, open_jets
from jetfoundry.errors import InputError

KINDS = ("ttree", "rntuple", "parquet")


def _read(path, start=0, stop=None, columns=None, **options):
    with open_jets(path) as reader:
        return reader.read(start, reader.entries if stop is None else stop, columns, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_real_jets_come_back_exactly_from_every_format(kind, tmp_path, real_table, write_root):
    table = _read(write_root(tmp_path / "jets", real_table, kind=kind, cluster=25))
    assert table.schema == jet_schema()
    assert table.drop_columns(["source_file", "source_entry"]).equals(real_table)
    assert table["source_entry"].to_pylist() == list(range(60))


@pytest.mark.parametrize("kind", KINDS)
def test_entry_ranges_across_clusters_add_up_to_the_file(kind, tmp_path, make_jets, write_root):
    jets = make_jets(60)
    path = write_root(tmp_path / "jets", jets, kind=kind, cluster=7)
    parts = [_read(path, a, b) for a, b in [(0, 5), (5, 33), (33, 33), (33, 60)]]
    assert pa.concat_tables(parts).equals(_read(path))
    assert _read(path, 5, 33).drop_columns(["source_file", "source_entry"]).equals(jets.slice(5, 28))


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_are_where_the_file_was_flushed(kind, tmp_path, make_jets, write_root):
    with open_jets(write_root(tmp_path / "jets", make_jets(60), kind=kind, cluster=25)) as reader:
        assert reader.clusters().tolist() == [0, 25, 50, 60]


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_jets_of_an_uncompressed_file_outlive_it(kind, tmp_path, make_jets, write_root):
    jets = make_jets(60)
    path = write_root(tmp_path / "jets.root", jets, kind=kind, compression=None)
    table = _read(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert table.drop_columns(["source_file", "source_entry"]).equals(jets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_a_big_row_group_does_not_keep_the_rest_in_memory(kind, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets", make_jets(2000), kind=kind)
    values = _read(path, 10, 20)["part_px"].chunk(0).values
    assert sum(buffer.size for buffer in values.buffers() if buffer) < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_read_in_stored_order_with_provenance(kind, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets", make_jets(4), kind=kind)
    with open_jets(path, file_index=3) as reader:
        table = reader.read(1, 3, ["jet_label", "part_px"])
    assert table.column_names == ["part_px", "jet_label", "source_file", "source_entry"]
    assert table["source_file"].to_pylist() == [3, 3]
    assert table["source_entry"].to_pylist() == [1, 2]


def test_values_of_other_types_are_taken_if_they_fit(tmp_path, make_jets, write_root):
    jets = make_jets(3)
    charge = ak.values_astype(jets["part_charge"].to_pylist(), np.float64)
    path = write_root(
        tmp_path / "jets.root",
        jets,
        jet_label=np.array([0, 5, 187], np.int64),
        jet_pt=np.array([200.5, 300.25, 1000.0]),
        part_charge=charge,
        part_isMuon=ak.values_astype(ak.Array(jets["part_isMuon"].to_pylist()), np.uint8),
    )
    table = _read(path)
    assert table.schema == jet_schema()
    assert table["jet_label"].to_pylist() == [0, 5, 187]
    assert table["jet_pt"].to_pylist() == [200.5, 300.25, 1000.0]
    assert table["part_charge"].equals(jets["part_charge"])
    assert table["part_isMuon"].equals(jets["part_isMuon"])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("jet_pt", np.array([200.5, 0.1]), r"jet_pt: cannot store float64 as float32 without loss, e.g. 0.1; round_d"),
        ("jet_label", np.array([1, 2**40]), r"jet_label: cannot store int64 as int32 without loss, e.g. 1099511627776"),
        ("jet_label", np.array([1.0, 2.5]), r"jet_label: cannot store float64 as int32 without loss, e.g. 2.5"),
    ],
)
def test_a_lossy_cast_is_refused_with_column_and_types(name, values, message, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2), **{name: values})
    with pytest.raises(DamagedFile, match=message):
        _read(path)


def test_doubles_are_rounded_on_request_but_never_to_infinity(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2), jet_pt=np.array([200.5, 0.1]))
    assert _read(path, round_doubles=True)["jet_pt"].to_pylist() == [200.5, np.float32(0.1)]
    path = write_root(tmp_path / "jets.root", make_jets(2), jet_pt=np.array([200.5, 1e300]))
    with pytest.raises(DamagedFile, match=r"e.g. 1e\+300"):
        _read(path, round_doubles=True)


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_a_flat_branch_where_a_list_is_wanted_is_refused(kind, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2), kind=kind, part_px=np.zeros(2, np.float32))
    with pytest.raises(DamagedFile, match=r"part_px: wanted a list of float32 per jet, the file has float32"):
        _read(path)


def test_nulls_in_parquet_are_refused(tmp_path, make_jets):
    jets = make_jets(2)
    index = jets.column_names.index("jet_pt")
    jets = jets.set_column(index, "jet_pt", pa.array([1.0, None], pa.float32()))
    pq.write_table(jets, tmp_path / "jets.parquet")
    with pytest.raises(DamagedFile, match=r"jet_pt: wanted one float32 per jet, the file has 1 nulls"):
        _read(tmp_path / "jets.parquet")


def test_the_tree_is_found_by_its_usual_name_or_asked_for(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2), tree="Events")
    with uproot.update(path) as file:
        file["other"] = {"x": np.zeros(3)}
    with open_jets(path) as reader:
        assert (reader.tree, reader.entries) == ("Events", 2)
    path = write_root(tmp_path / "two.root", make_jets(2), tree="a")
    with uproot.update(path) as file:
        file["b"] = {"x": np.zeros(3)}
    with (
        pytest.raises(DamagedFile, match=r"wanted one TTree or RNTuple, found: a, b; choose one with tree="),
        open_jets(path),
    ):
        pass
    with open_jets(path, tree="a") as reader:
        assert reader.entries == 2
    with pytest.raises(DamagedFile, match=r"no TTree or RNTuple 'aa'; nearest: a"), open_jets(path, tree="aa"):
        pass


def test_a_file_says_what_its_jets_are(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(2))
    with uproot.update(path) as file:
        file["sample"] = "simulated"
    pq.write_table(make_jets(2).replace_schema_metadata({"sample": "simulated"}), tmp_path / "jets.parquet")
    for name in ("jets.root", "jets.parquet"):
        with open_jets(tmp_path / name) as reader:
            assert reader.sample == "simulated"


def _paths(*inputs: str) -> list[str]:
    return [file.path for file in expand(inputs)]


def test_expand_reads_paths_patterns_and_folders(tmp_path, make_jets, write_root):
    a, b = (str(write_root(tmp_path / name, make_jets(1))) for name in ("a.root", "b.root"))
    (tmp_path / "notes.txt").write_text("no jets")
    assert _paths(f"{b} {a}") == _paths(a, f"file://{b}") == [a, b]
    assert _paths(f"{tmp_path}/*.root") == _paths(str(tmp_path)) == [a, b]
    with pytest.raises(InputError, match=r"c.root: no such file; nearest: [ab].root, [ab].root"):
        expand([str(tmp_path / "c.root")])
    with pytest.raises(InputError, match=r"no ROOT or Parquet file there"):
        expand([f"{tmp_path}/*.parquet"])
    with pytest.raises(InputError, match="no input"):
        expand([])


def test_groups_are_kept_beside_the_file_and_change_no_jet(tmp_path, make_jets, write_root):
    a, b = (str(write_root(tmp_path / name, make_jets(1))) for name in ("a.root", "b.root"))
    found = expand([f"QCD:{tmp_path}/b*.root Res2P:{a}"])
    assert found == [InputFile(a, "Res2P"), InputFile(b, "QCD")]
    assert [source.group for source in take_inventory(found).sources] == ["Res2P", "QCD"]


def test_a_file_that_is_meant_twice_is_refused_with_both_names(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "a.root", make_jets(1))
    (tmp_path / "link.root").symlink_to(path)
    with pytest.raises(InputError, match=rf"{path}: the same file is meant by QCD:{path} and Res2P:.*\.root; its jets"):
        expand([f"QCD:{path}", f"Res2P:{tmp_path}/a*.root"])
    with pytest.raises(InputError, match=rf"{path}: the same file is meant by .*a.root and .*link.root"):
        expand([str(tmp_path)])
    with pytest.raises(InputError, match=rf"{path}: the same file is meant by {path} twice"):
        expand([f"{path} {path}"])


@pytest.mark.ray
def test_a_scan_of_many_files_by_ray_equals_the_scan_in_the_driver(tmp_path, make_jets, write_root, ray_local):
    paths = [write_root(tmp_path / f"{i:02d}.root", make_jets(i + 1, seed=i)) for i in range(35)]
    paths[7].write_bytes(b"no jets")
    many = take_inventory(paths)
    some = [take_inventory([path]) for path in paths]
    assert list(many.sources) == [source for one in some for source in one.sources]
    assert list(many.set_aside) == [file for one in some for file in one.set_aside]
    assert [file.path for file in many.set_aside] == [str(paths[7])]


@pytest.mark.ray
def test_a_ray_data_set_of_jets_has_the_schema_of_the_files(tmp_path, make_jets, write_root, ray_local):
    from jetfoundry.loading.datasource import read_jets

    jets = make_jets(50)
    write_root(tmp_path / "a.root", jets.slice(0, 30), cluster=10)
    write_root(tmp_path / "b.parquet", jets.slice(30), kind="parquet")
    dataset = read_jets(str(tmp_path), entries=10, block=4)
    table = pa.concat_tables(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    assert table.schema == jet_schema()
    assert table.select(jets.column_names).equals(jets)
    assert table["source_file"].to_pylist() == [0] * 30 + [1] * 20
    assert table["source_entry"].to_pylist() == [*range(30), *range(20)]
    assert dataset.select_columns(["jet_label"]).sum("jet_label") == sum(range(50))
    assert dataset.limit(7).count() == 7
    assert read_jets(str(tmp_path), ["jet_pt"]).schema().names == ["jet_pt", "source_file", "source_entry"]


def test_a_column_that_jetclass2_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"'jet_ptt' is not a JetClass-II column; nearest: jet_pt"):
        jet_schema(["jet_ptt"])
    assert jet_schema().names[:54] == schema.arrow_schema().names
