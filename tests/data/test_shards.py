from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.ingest import write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.shards import (
    MASS_EDGES,
    PT_EDGES,
    histogram,
    open_shards,
    pack_counts,
    read_row_group,
    unpack_counts,
)
from jetfoundry.data.unit import convert_unit
from jetfoundry.errors import InputError


@pytest.fixture
def folder(tmp_path, make_jets, write_root):
    """400 jets of classes 0-187 in two units, committed in this process."""
    write_root(tmp_path / "in" / "jets.root", make_jets(400), cluster=50)
    inventory = take_inventory(expand([str(tmp_path / "in")]))
    plan = make_plan(inventory, ShardConfig(jets_per_task=200, jets_per_shard=60, row_group=25))
    for unit in range(len(plan.units)):
        convert_unit(plan, tmp_path / "out", unit)
    write_manifest(plan, tmp_path / "out", "made up")
    return tmp_path / "out"


def test_a_split_opens_without_its_shards_and_knows_rows_classes_and_sample(folder):
    parts = [open_shards(folder, split) for split in ("train", "val", "test")]
    assert sum(part.rows for part in parts) == 400
    assert sum(part.class_counts for part in parts).tolist() == [3] * 24 + [2] * 164
    assert sum(part.histogram for part in parts).sum() == 400
    assert {part.sample for part in parts} == {"made up"}
    assert len({part.manifest_hash for part in parts}) == 1


def test_row_groups_of_the_index_are_those_of_the_files(folder):
    train = open_shards(folder, "train")
    for path in {group.path for group in train.row_groups}:
        metadata = pq.read_metadata(path)
        stored = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert [group.rows for group in train.row_groups if group.path == path] == stored
        assert max(stored) - min(stored) <= len(stored)
        assert 17 <= max(stored) <= 38  # 25, as far as all are equal


def test_a_row_group_is_read_by_columns_without_nulls(folder):
    group = open_shards(folder, "train").row_groups[1]
    table = read_row_group(group, ["jet_label", "part_px"])
    assert table.num_rows == group.rows
    assert not any(field.nullable for field in table.schema)
    assert table.schema.field("part_px").type == pa.list_(pa.field("element", pa.float32(), nullable=False))
    with pytest.raises(InputError, match=r"no column 'part_pxx'; nearest: part_px"):
        read_row_group(group, ["part_pxx"])


def test_a_missing_shard_or_split_or_manifest_is_named(folder):
    with pytest.raises(InputError, match=r"no split 'trian'; nearest: train"):
        open_shards(folder, "trian")
    group = open_shards(folder, "val").row_groups[0]
    group.path.unlink()
    with pytest.raises(InputError, match=rf"{group.path}, row group 0: cannot read: .*No such file"):
        read_row_group(group, None)
    (folder / "manifest.json").unlink()
    (folder / "plan.json").touch()
    with pytest.raises(InputError, match="its ingest is not finished, run it again"):
        open_shards(folder, "train")
    with pytest.raises(InputError, match="no shard folder"):
        open_shards(folder / "train", "train")


def test_a_flipped_bit_is_found_when_the_page_is_read(folder):
    group = open_shards(folder, "train").row_groups[0]
    data = bytearray(group.path.read_bytes())
    data[200] ^= 1
    group.path.write_bytes(data)
    with pytest.raises(InputError, match=r"row group 0: cannot read"):
        read_row_group(group, None)


def test_a_manifest_of_a_later_version_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(InputError, match="format 99, this version reads up to 2"):
        open_shards(folder, "train")


def test_histogram_bins_include_their_lower_edge_and_nothing_outside():
    label = np.array([0, 187, 5, 5, 5])
    counts = histogram(label, np.array([200.0, 2499, 240, 199, 300]), np.array([20.0, 499, 30, 100, 500]))
    assert counts.shape == (188, len(PT_EDGES) - 1, len(MASS_EDGES) - 1) == (188, 14, 48)
    assert counts[0, 0, 0] == counts[187, 13, 47] == counts[5, 1, 1] == 1
    assert counts.sum() == 3
    assert np.array_equal(unpack_counts(pack_counts(counts)), counts)
