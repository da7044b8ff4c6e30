"""A shard is a fair draw from all inputs, also if every file holds one class only."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.plan import ShardConfig, make_plan
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
