"""A shard is a fair draw from all inputs, also if every file holds one class only."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.layouts import JETCLASS2
from jetfoundry.data.mixing import Draw, MixedJets
from jetfoundry.data.parquet_writer import write_parquet
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.reader import DamagedFile, JetReader
from jetfoundry.data.root import open_jets
from jetfoundry.data.unit import convert_unit
from jetfoundry.evaluate.mixing import class_mix, expected_longest_run, longest_run, longest_run_p


def test_fair_draws_have_flat_p_values_and_unfair_ones_small_ones():
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(20), rng.integers(500, 5000, 20)))
    counts = np.array([np.bincount(part, minlength=20) for part in np.array_split(labels, 200)])
    p = class_mix(counts)
    assert 0.4 < p.mean() < 0.6
    assert 0.5 / 200 / 100 < p.min() < 0.05
    counts[7] = np.bincount(np.arange(len(labels) // 200) % 20, minlength=20)  # all classes alike
    assert class_mix(counts)[7] < 1e-6


def test_rare_classes_are_taken_together_and_one_class_alone_cannot_be_tested():
    counts = np.array([[50, 50, 1, 0, 0], [50, 50, 0, 1, 1]])
    assert (class_mix(counts) > 0.2).all()
    assert np.isnan(class_mix(np.array([[5, 0], [5, 0]]))).all()


def test_longest_run_and_its_expectation():
    assert longest_run(np.array([], np.int32)) == 0
    assert longest_run(np.array([3])) == 1
    assert longest_run(np.array([1, 1, 2, 2, 2, 1, 2])) == 3
    fractions = np.array([0.5, 0.3, 0.2])
    rng = np.random.default_rng(2)
    runs = [longest_run(rng.choice(3, 1000, p=fractions)) for _ in range(400)]
    assert abs(np.mean(runs) - expected_longest_run(fractions, 1000)) < 0.25
    assert abs(np.mean(np.array(runs) >= 11) - longest_run_p(11, fractions, 1000)) < 0.06


def _drawn(jets: MixedJets, rows: list[int], path: Path) -> pa.Table:
    write_parquet(path, Draw(jets, np.array(rows)), 4, "lz4", split_floats=False)
    return pq.read_table(path)


def test_jets_are_drawn_as_they_were_added_whatever_the_first_ones_said(tmp_path, make_jets, write_root):
    tables = [make_jets(3, seed=1), make_jets(50, seed=2), make_jets(20, seed=3)]
    jets = MixedJets(JETCLASS2, 1)  # more come than expected, and longer ones: columns grow
    for number, table in enumerate(tables):
        with open_jets(write_root(tmp_path / f"{number}.root", table), file_index=number) as reader:
            assert jets.add(reader.columns(0, reader.entries))
            assert jets.latest()["part_px"].to_pylist() == table["part_px"].to_pylist()
    rows = np.random.default_rng(0).permutation(73)[:40]
    back = _drawn(jets, rows.tolist(), tmp_path / "out.parquet")
    whole = pa.concat_tables(tables)
    assert back.select(whole.column_names).equals(whole.take(rows))
    assert back["source_entry"].to_pylist() == [[*range(3), *range(50), *range(20)][row] for row in rows]

    again = MixedJets(JETCLASS2, 20, jets.memory)  # the memory of the last unit, written over
    with open_jets(tmp_path / "2.root") as reader:
        again.add(reader.columns(0, 20, only=[(2, 5), (9, 11)]))
    assert _drawn(again, [4, 0], tmp_path / "2.parquet")["source_entry"].to_pylist() == [10, 2]


def test_bad_jets_and_damaged_columns_leave_nothing_behind(tmp_path, make_jets, write_root):
    table = make_jets(10)
    jets = MixedJets(JETCLASS2, 20)
    with open_jets(write_root(tmp_path / "x.root", table)) as reader:

        def damaged():
            yield from itertools.islice(reader.columns(0, 10), 30)
            raise DamagedFile

        with pytest.raises(DamagedFile):
            jets.add(damaged())
        columns = list(reader.columns(0, 10))
        shorter = columns[1][0].copy()
        shorter[-1] -= 1
        assert not jets.add([columns[0], (shorter, columns[1][1][:-1]), *columns[2:]])
        assert len(jets) == 0
        jets.add(columns)
        jets.add(columns)
    jets.keep(np.arange(10) % 3 == 0)
    kept = [*range(10), 0, 3, 6, 9]
    assert _drawn(jets, [*range(14)], tmp_path / "out.parquet").select(table.column_names).equals(table.take(kept))


def test_a_cluster_is_decoded_once_however_many_of_its_ranges_a_unit_holds(
    tmp_path, make_jets, write_root, monkeypatch
):
    write_root(tmp_path / "in" / "a.root", make_jets(4000), cluster=2500)
    plan = make_plan(take_inventory(expand([str(tmp_path / "in")])), ShardConfig(jets_per_task=2000, chunk=100))
    assert len(plan.units[0]) > 10
    opened = []
    read = JetReader.columns

    def counted(self, start, stop, *rest, **options):
        opened.append((start, stop))
        return read(self, start, stop, *rest, **options)

    monkeypatch.setattr(JetReader, "columns", counted)
    rows = [sum(shard["rows"] for shard in convert_unit(plan, tmp_path / "out", unit)["shards"]) for unit in (0, 1)]
    assert rows == [2000, 2000]
    assert len(opened) == 4  # two clusters, two units
    assert all(stop <= 2500 or start >= 2500 for start, stop in opened)


@pytest.mark.parametrize("cluster", [250, 1100])
def test_shards_of_class_pure_files_are_fair_draws(cluster, tmp_path, make_jets, write_root):
    sizes = np.random.default_rng(3).integers(600, 3200, 8)
    for label, jets in enumerate(sizes.tolist()):
        table = make_jets(jets, seed=label, label=label)
        write_root(tmp_path / "in" / f"class-{'abcdefgh'[label]}.root", table, cluster=cluster)
    plan = make_plan(
        take_inventory(expand([str(tmp_path / "in")])), ShardConfig(jets_per_task=4000, jets_per_shard=800)
    )
    assert len(plan.units) == 4
    records, order = [], []
    for unit in range(len(plan.units)):
        sidecar = convert_unit(plan, tmp_path / "out", unit)
        records += sidecar["shards"]
    for record in records:
        order.append(pq.read_table(tmp_path / "out" / record["path"], columns=["jet_label"])[0].to_numpy())
    counts = np.array([record["class_counts"][:8] for record in records])
    assert counts.sum() == sizes.sum()
    p = class_mix(counts)
    assert p.min() > 0.01 / len(p)  # a sorted or blocked shard has 1e-100
    assert np.median(p) > 0.2
    fractions = sizes / sizes.sum()
    runs = np.array([[longest_run(labels), expected_longest_run(fractions, len(labels))] for labels in order])
    assert abs(np.mean(runs[:, 0] - runs[:, 1])) < 4 * 1.5 / np.sqrt(len(runs))
    worst = min(longest_run_p(longest_run(labels), fractions, len(labels)) for labels in order)
    assert worst > 0.01 / len(order)
