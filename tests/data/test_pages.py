"""Pages of our own shards, decoded without Arrow, against Arrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.pages import read_columns
from jetfoundry.data.parquet_writer import write_parquet
from jetfoundry.data.shards import RowGroup
from jetfoundry.errors import InputError
from jetfoundry.features.jagged import Jagged

_ROWS, _GROUP = 95, 20


def _table(*, empty: bool = True) -> pa.Table:
    """Two list groups (the second with empty lists), scalars and flags."""
    rng = np.random.default_rng(4)
    first = rng.integers(1, 6, _ROWS)
    second = rng.integers(0 if empty else 1, 3, _ROWS)
    ends = {"part": np.append(0, np.cumsum(first)), "gen": np.append(0, np.cumsum(second))}

    def lists(group: str, values: pa.Array) -> pa.Array:
        field = pa.field("element", values.type, nullable=False)
        return pa.ListArray.from_arrays(pa.array(ends[group], pa.int32()), values, type=pa.list_(field))

    number = {group: int(offsets[-1]) for group, offsets in ends.items()}
    columns = {
        "part_px": lists("part", pa.array(rng.normal(size=number["part"]).astype(np.float32))),
        "part_isMuon": lists("part", pa.array(rng.integers(0, 2, number["part"]).astype(bool))),
        "jet_pt": pa.array(rng.normal(size=_ROWS).astype(np.float32)),
        "gen_pid": lists("gen", pa.array(rng.integers(-9, 9, number["gen"]).astype(np.int32))),
        "jet_flag": pa.array(rng.integers(0, 2, _ROWS).astype(bool)),
        "gen_e": lists("gen", pa.array(rng.normal(size=number["gen"]).astype(np.float32))),
        "source_entry": pa.array(np.arange(_ROWS)),
    }
    fields = [pa.field(name, values.type, nullable=False) for name, values in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


@pytest.fixture(params=[("lz4", False), ("zstd", True)], ids=["lz4", "zstd and byte-stream split"])
def shard(request, tmp_path: Path) -> Path:
    codec, split = request.param
    write_parquet(tmp_path / "shard.parquet", _table(), _GROUP, codec, split_floats=split)
    return tmp_path / "shard.parquet"


def _groups(path: Path, *numbers: int) -> list[RowGroup]:
    return [RowGroup(path, number, min(_GROUP, _ROWS - number * _GROUP)) for number in numbers]


def test_row_groups_in_any_order_are_what_arrow_reads(shard: Path) -> None:
    order = (3, 0, 4)
    with pq.ParquetFile(shard) as file:
        wanted = pa.concat_tables([file.read_row_group(number) for number in order])
    names = ["gen_e", "jet_pt", "part_isMuon", "part_px", "jet_flag", "gen_pid", "source_entry"]
    found = read_columns(_groups(shard, *order), names)
    assert found is not None
    assert found.num_rows == wanted.num_rows == 55
    assert found.column_names == names
    for name in names:
        assert found[name].tolist() == wanted[name].to_pylist()
        values = found[name].values if isinstance(found[name], Jagged) else found[name]
        kind = wanted[name].type
        assert values.dtype == (kind.value_type if pa.types.is_list(kind) else kind).to_pandas_dtype()


def test_columns_with_the_same_lists_share_their_offsets(shard: Path) -> None:
    found = read_columns(_groups(shard, 0, 1), ["part_px", "gen_e", "part_isMuon", "gen_pid"])
    assert found is not None
    assert found["part_px"].offsets is found["part_isMuon"].offsets
    assert found["gen_e"].offsets is found["gen_pid"].offsets
    assert found["gen_e"].offsets is not found["part_px"].offsets


def test_what_another_program_wrote_is_left_to_arrow(tmp_path: Path) -> None:
    pq.write_table(_table(), tmp_path / "other.parquet", row_group_size=_GROUP)
    assert read_columns(_groups(tmp_path / "other.parquet", 0), ["jet_pt"]) is None


def test_a_column_that_is_not_there_is_left_to_arrow_which_names_it(shard: Path) -> None:
    assert read_columns(_groups(shard, 0), ["jet_px"]) is None


def test_every_flipped_bit_of_a_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_parquet(path, _table(), _GROUP, "lz4", split_floats=False)
    sound = path.read_bytes()
    names = _table().column_names
    chunks = [pq.read_metadata(path).row_group(1).column(i) for i in range(len(names))]
    for chunk in chunks:
        for byte in range(chunk.data_page_offset + 1, chunk.data_page_offset + chunk.total_compressed_size, 7):
            damaged = bytearray(sound)
            damaged[byte] ^= 16
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"shard.parquet, row group 1: cannot read: "):
                read_columns(_groups(path, 1), names)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.parquet, row group 0: cannot read: No such file"):
        read_columns(_groups(tmp_path / "gone.parquet", 0), ["jet_pt"])
