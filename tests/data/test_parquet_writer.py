from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from jetfoundry.data.parquet_writer import CODECS, write_parquet


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 250])
def test_arrow_reads_back_what_was_written(codec, split, rows, tmp_path, make_jets):
    jets = make_jets(rows)  # some lists of genpart are empty
    path = tmp_path / "jets.parquet"
    size, digest = write_parquet(path, jets, 100, codec, split_floats=split)
    assert (size, digest) == (path.stat().st_size, xxhash.xxh3_128(path.read_bytes()).hexdigest())
    back = pq.read_table(path, page_checksum_verification=True)
    assert back.schema.equals(jets.schema)
    assert back.equals(jets)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [min(100, rows)] + [100, 50] * (
        rows == 250
    )


def test_columns_with_other_types_or_nulls_are_refused(tmp_path):
    for array in (
        pa.array([1.5, None], pa.float32()),
        pa.array(["a"]),
        pa.array([[1.5, None]], pa.list_(pa.float32())),
    ):
        with pytest.raises(ValueError, match="column x: cannot write"):
            write_parquet(tmp_path / "x.parquet", pa.table({"x": array}), 10, "lz4", split_floats=False)


def test_a_flipped_byte_in_any_page_is_found_by_its_checksum(tmp_path, make_jets):
    path = tmp_path / "jets.parquet"
    write_parquet(path, make_jets(50), 50, "lz4", split_floats=False)
    metadata = pq.read_metadata(path).row_group(0)
    whole = path.read_bytes()
    for number in (0, 20, metadata.num_columns - 1):
        chunk = metadata.column(number)
        at = chunk.data_page_offset + chunk.total_compressed_size - 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with (
            pytest.raises(OSError, match=r"CRC|checksum"),
            pq.ParquetFile(path, page_checksum_verification=True) as file,
        ):
            file.read()


def test_levels_are_encoded_as_arrow_does_for_empty_first_and_last_lists(tmp_path):
    element = pa.list_(pa.field("element", pa.float32(), nullable=False))
    lists = [[], [1.0], [], [2.0, 3.0], []]
    table = pa.table([pa.array(lists, element)], schema=pa.schema([pa.field("x", element, nullable=False)]))
    for row_group in (1, 2, 5):
        write_parquet(tmp_path / "x.parquet", table, row_group, "lz4", split_floats=True)
        assert pq.read_table(tmp_path / "x.parquet")["x"].to_pylist() == lists
    assert np.isclose(pq.read_table(tmp_path / "x.parquet")["x"].combine_chunks().values.to_numpy().sum(), 6)
