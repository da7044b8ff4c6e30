from __future__ import annotations

import itertools
import struct
import zlib

import awkward as ak
import numpy as np
import pytest
import uproot

from jetfoundry import schema
from jetfoundry.data import baskets
from jetfoundry.data.root import DamagedFile, open_jets

NAMES = [column.name for column in schema.COLUMNS]
COMPRESSIONS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(4),
    "zstd": uproot.ZSTD(3),
    "lzma": uproot.LZMA(1),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_gives_what_uproot_gives(name, tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(300), cluster=70, compression=COMPRESSIONS[name])
    with open_jets(path) as reader:
        known = baskets.flat_branches(reader.handle(), NAMES)
        assert set(NAMES) <= known.keys()  # none is left to uproot
        for start, stop in ((0, 300), (65, 145), (70, 70)):
            table = reader.read(start, stop)
            for column in schema.COLUMNS:
                wanted = reader.handle()[column.name].array(entry_start=start, entry_stop=stop)
                assert table[column.name].to_pylist() == wanted.to_list()


def test_branches_with_one_counter_share_their_offsets(tmp_path, make_jets):
    from jetfoundry.sim.store import write_shard

    write_shard(tmp_path / "jets.root", make_jets(20), {"mode": "full"})
    with open_jets(tmp_path / "jets.root") as reader:
        table = reader.read(3, 17)
    places = {table[c.name].chunk(0).buffers()[1].address for c in schema.COLUMNS if c.jagged}
    assert len(places) == 3


def test_what_a_leaf_says_is_what_uproot_finds(tmp_path):
    columns = {kind: np.arange(4).astype(kind) for kind in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "?")}
    lists = ak.Array([[1.0, 2.0], [], [3.0], []])
    with uproot.recreate(tmp_path / "x.root") as root:
        types = {f"b_{kind}": kind for kind in columns} | {"pair": np.dtype(("f4", (2,))), "v": "var * float32"}
        tree = root.mktree("tree", types)
        tree.extend(
            {f"b_{kind}": values for kind, values in columns.items()} | {"pair": np.ones((4, 2), "f4"), "v": lists}
        )
    with uproot.open(tmp_path / "x.root") as root:
        tree = root["tree"]
        for name, branch in tree.items():
            assert baskets._of_leaf(branch) == (None if name == "pair" else baskets._interpreted(branch)), name
        assert baskets._of_leaf(tree["v"])[1:] == (0, "nv")


def _basket(lists: list[list[float]], dtype: str, compress: bool, header: bytes = bytes(10)) -> bytes:
    """A TBasket of `vector<…>` as ROOT writes it: key, lists with 10 bytes before each, byte offsets behind them."""
    body, ends = b"", []
    for values in lists:
        ends.append(len(body))
        body += header + np.asarray(values, dtype).tobytes()
    key = 70
    last = key + len(body)
    content = body + struct.pack(f">{len(lists) + 2}i", len(lists) + 1, *(end + key for end in ends), 0)
    stored = content
    if compress:
        packed = zlib.compress(content)
        sizes = len(packed).to_bytes(3, "little") + len(content).to_bytes(3, "little")
        stored = b"ZL\x08" + sizes + packed
    head = struct.pack(">ihiIhh", key + len(stored), 1004, len(content), 0, key, 0)
    tail = struct.pack(">HIIIIb", 3, 32000, 1000, len(lists), last, 0)
    return head + bytes(key - len(head) - len(tail)) + tail + stored


class _Source:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def chunk(self, start: int, stop: int):
        class Chunk:
            raw_data = np.frombuffer(self.data, np.uint8)[start:stop]

        return Chunk


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [">f4", ">i4", ">f8", "u1"])
def test_lists_of_a_cpp_vector_come_without_their_headers(dtype, compress):
    lists = [[1, 2, 3], [], [4], [5, 6], [], [7, 8]]
    parts = [_basket(lists[:4], dtype, compress), _basket(lists[4:], dtype, compress)]
    branch = baskets._Branch(
        "v", np.dtype(dtype), 10, "", np.array([0, 4, 6]), np.array([0, len(parts[0])]), np.array([*map(len, parts)])
    )
    for start, stop in ((0, 6), (1, 5), (3, 4), (4, 4)):
        ((offsets, values),) = baskets.read_branches(_Source(b"".join(parts)), {"v": branch}, ["v"], start, stop)
        found = [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert found == lists[start:stop]
        assert values.dtype == np.dtype(dtype).newbyteorder("=")


def test_a_vector_that_does_not_fit_its_basket_is_refused():
    data = _basket([[1.0, 2.0], [3.0]], ">f4", compress=False, header=bytes(9))
    branch = baskets._Branch("v", np.dtype(">f4"), 10, "", np.array([0, 2]), np.array([0]), np.array([len(data)]))
    with pytest.raises(ValueError, match="v: the lists of a basket do not fit its bytes"):
        list(baskets.read_branches(_Source(data), {"v": branch}, ["v"], 0, 2))


def test_a_counter_that_disagrees_with_its_lists_is_damage_not_a_shift(tmp_path, make_jets, write_root):
    path = write_root(tmp_path / "jets.root", make_jets(50), compression=None)
    with open_jets(path) as reader:
        counter = reader.handle()["npart_px"]
        seek, size = (int(counter.member(key)[0]) for key in ("fBasketSeek", "fBasketBytes"))
    with path.open("r+b") as stream:
        stream.seek(seek + size - 1)  # the last count
        value = stream.read(1)[0]
        stream.seek(seek + size - 1)
        stream.write(bytes([value + 1]))
    with open_jets(path) as reader, pytest.raises(DamagedFile, match=r"part_px: a basket holds \d+ bytes where its"):
        reader.read(0, 50)
