"""The simulations beside the task files give jets that the tasks label as the family says that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry import config
from jetfoundry.data.ingest import write_manifest
from jetfoundry.data.inventory import expand, take_inventory
from jetfoundry.data.layouts import load_layout
from jetfoundry.data.plan import ShardConfig, make_plan
from jetfoundry.data.unit import convert_unit
from jetfoundry.downstream.tasks import load_tasks
from jetfoundry.labels import CLASSES, INDEX
from jetfoundry.loading.pieces import open_jet_set, read_pieces
from jetfoundry.sim.channels import decay_chains
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.store import write_shard

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "datasets" / "tasks"
SIMULATIONS = sorted((TASKS / "simulation").glob("*.yaml"))
JETS = 24

FAMILIES = {
    "hadronic_w": {"W+": "W", "W-": "W", "QCD": "QCD"},
    "x_to_ww": {"WW_0.2": "WW_02", "WW_0.4": "WW_04", "WW_0.6432": "WW_06432", "WW_0.8": "WW_08", "QCD": "QCD"},
    "x200_to_bs": {"X_bs": "X_bs", "QCD": "QCD"},
    "x200_to_bb": {"X_bb": "X_bb", "QCD": "QCD"},
    "xbb_vs_qcd": {"X_bb": "X_bb", "QCD": "QCD"},
}
"""Task -> class -> family of the simulation that makes its jets."""


@pytest.mark.parametrize("file", SIMULATIONS, ids=lambda file: file.stem)
def test_simulations_of_tasks_can_be_made_and_end_up_where_the_tasks_look(file: Path) -> None:
    cfg = config.read(SimulateConfig, file)
    for name, family in cfg.families.items():
        if family.resonance:
            assert decay_chains(family.resonance, name).fraction.sum() == pytest.approx(1.0)
    users = [task for task in load_tasks(TASKS) if (ROOT / task.simulation).resolve() == file or not task.data]
    assert users
    for task in users:
        assert not task.data or Path(task.data) == cfg.output.parent / "shards"


@pytest.fixture(scope="module")
def samples() -> dict[str, tuple[pa.Table, list[str]]]:
    """Of each simulation `JETS` jets of every family, and the family of each jet."""
    chain = pytest.importorskip("jetfoundry.sim.chain")
    card = config.read(DetectorCard, ROOT / "datasets" / "cards" / "cms.yaml")
    found, made = {}, {}
    for file in SIMULATIONS:
        cfg = config.read(SimulateConfig, file, [f"jets_per_shard={JETS}", "jets=600", "batch_events=40"])
        tables = []
        for name, family in cfg.families.items():
            key = repr((family, cfg.selection))  # QCD is the same in most of them
            if key not in made:
                made[key] = chain.make_shard(cfg, card, name, 0).table
            tables.append(made[key])
        found[file.stem] = pa.concat_tables(tables), [name for name in cfg.families for _ in range(JETS)]
    return found


@pytest.mark.sim
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_from_truth_are_those_of_the_family(name: str, samples) -> None:
    (task,) = load_tasks(TASKS / f"{name}.yaml")
    table, families = samples[Path(task.simulation).stem]
    labels = task.labels(table)
    for label, family in zip(labels, families, strict=True):
        assert label < 0 or FAMILIES[name][task.class_names[label]] == family
    taken = np.bincount(labels[labels >= 0], minlength=len(task.class_names))
    assert (taken >= JETS / 4).all()
    assert taken[task.class_names.index("QCD")] == JETS


@pytest.mark.sim
def test_jet_charge_has_the_sign_of_the_w(samples) -> None:
    (task,) = load_tasks(TASKS / "hadronic_w.yaml")
    found = task.sample(samples["hadronic_w"][0], training=False)
    plus, minus, qcd = (found.baselines["jet charge"][found.labels == label].mean() for label in range(3))
    assert plus > qcd > minus
    assert plus - minus > 0.3


@pytest.mark.sim
def test_bs_jets_have_a_number_of_their_own_and_only_they(samples) -> None:
    table, families = samples["x200"]
    label = table["jet_label"].to_numpy()
    assert set(label[np.array(families) == "X_bs"]) == {len(CLASSES)}
    assert set(label[np.array(families) == "X_bb"]) == {INDEX["X_bb"]}


@pytest.mark.sim
def test_regression_targets_are_near_what_they_are_measured_in(samples) -> None:
    table, _ = samples["x_to_bb"]
    for name, jets in (("resonance_mass", JETS), ("jet_pt", 2 * JETS)):
        (task,) = load_tasks(TASKS / f"{name}.yaml")
        found = task.sample(table, training=True)
        assert len(found.jets) >= 0.9 * jets
        assert abs(np.median(found.labels)) < 0.3


@pytest.mark.sim
def test_an_ingest_takes_bs_jets_with_their_schema_and_sets_them_aside_without(samples, tmp_path: Path) -> None:
    write_shard(tmp_path / "x200.root", samples["x200"][0], {"mode": "full"})
    (task,) = load_tasks(TASKS / "x200_to_bs.yaml")
    for schema, bs_jets in ((ROOT / task.schema, JETS), ("", 0)):
        layout, folder = load_layout(schema), tmp_path / f"shards{bs_jets}"
        inventory = take_inventory(expand([str(tmp_path / "x200.root")]), layout=layout)
        plan = make_plan(inventory, ShardConfig(val=0, test=0, row_group=50), layout=layout)
        convert_unit(plan, folder, 0)
        write_manifest(plan, folder, "simulated jets")
        jets = open_jet_set(str(folder), "train", count=False)
        labels = task.labels(read_pieces(tuple(jets.row_groups), task.columns))
        assert np.bincount(labels[labels >= 0], minlength=2).tolist() == [bs_jets, JETS]
