"""Files that ROOT itself wrote, from C++ (files/make_files.C): every value is that of the macro's formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jetfoundry.data import baskets
from jetfoundry.data.inventory import take_inventory
from jetfoundry.data.layouts import Layout
from jetfoundry.data.root import open_jets

FILES = Path(__file__).parent / "files"
LONG_JET = 77
LISTS = {"part_px": "float32", "part_energy": "float32", "part_charge": "int32", "part_isMuon": "bool"}
NUMBERS = {"jet_pt": "float32", "jet_sdmass": "float32", "jet_label": "int32"}
LAYOUT = Layout.from_dict(
    {
        "name": "the macro's",
        "classes": list("abcde"),
        "columns": [{"name": name, "kind": kind, "list": "part"} for name, kind in LISTS.items()]
        + [{"name": name, "kind": kind} for name, kind in NUMBERS.items()],
    }
)


def written(start: int, stop: int) -> dict[str, list]:
    """What the macro wrote into the entries `start <= i < stop`."""
    jets: dict[str, list] = {name: [] for name in (*LISTS, *NUMBERS)}
    for i in range(start, stop):
        k = np.arange(2500 if i == LONG_JET else i * 7 % 6)
        jets["part_px"].append((i + k / 8).tolist())
        jets["part_energy"].append((2.0 * i + k).tolist())
        jets["part_charge"].append(((i + k) % 3 - 1).tolist())
        jets["part_isMuon"].append(((i + k) % 2 == 1).tolist())
        for name, value in (("jet_pt", 200.0 + i), ("jet_sdmass", 20 + i / 4), ("jet_label", i % 5)):
            jets[name].append(value)
    return jets


@pytest.mark.parametrize("name", ["vectors", "counters", "merged", "ntuple"])
@pytest.mark.parametrize(("start", "stop"), [(0, 300), (70, 79), (55, 245), (299, 300), (120, 120)])
def test_what_root_wrote_is_read_to_the_last_value(name, start, stop):
    with open_jets(FILES / f"{name}.root", layout=LAYOUT) as reader:
        assert reader.entries == 300
        table = reader.read(start, stop).drop_columns(["source_file", "source_entry"])
    assert table.to_pydict() == written(start, stop)


@pytest.mark.parametrize("name", ["vectors", "counters", "merged"])
def test_branches_of_cpp_vectors_and_counted_arrays_are_not_left_to_uproot(name):
    with open_jets(FILES / f"{name}.root", layout=LAYOUT) as reader:
        assert {*LISTS, *NUMBERS} <= baskets.flat_branches(reader.handle(), [*LISTS, *NUMBERS]).keys()


def test_baskets_that_root_merged_keep_their_five_compressions():
    with open_jets(FILES / "merged.root", layout=LAYOUT) as reader:
        branch = reader.handle()["part_px"]
        places = [(int(branch.member("fBasketSeek")[i]), i) for i in range(branch.num_baskets)]
        data = (FILES / "merged.root").read_bytes()
        heads = {data[seek + branch.basket_key(i).fKeylen :][:2] for seek, i in places}
    assert {b"ZL", b"L4", b"ZS", b"XZ"} < heads


def test_of_a_file_that_was_never_closed_all_is_read_that_root_can_read():
    with open_jets(FILES / "unfinished.root", layout=LAYOUT) as reader:
        assert reader.entries == 150  # those before the last AutoSave; some are in baskets inside the tree's header
        table = reader.read(0, 150).drop_columns(["source_file", "source_entry"])
    assert table.to_pydict() == written(0, 150)


def test_a_file_that_was_never_closed_and_has_no_tree_yet_says_so():
    (found,) = take_inventory([FILES / "begun.root"], layout=LAYOUT).set_aside
    assert "found: none; the file was not closed by what wrote it" in found.reason


def test_the_pages_of_root_ntuples_come_in_their_clusters():
    with open_jets(FILES / "ntuple.root", layout=LAYOUT) as reader:
        assert reader.kind == "rntuple"
        assert reader.clusters().tolist() == [0, 120, 240, 300]
