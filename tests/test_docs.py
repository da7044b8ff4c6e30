"""Every command in README and docs runs, or says what it needs; the table of weaver's flags is complete."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from jetfoundry import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TINY = "model.change={embed_dims: [8, 8], pair_embed_dims: [4], num_layers: 1, num_heads: 2, fc_dims: [8]}"
SHORT = "train.epochs=1 train.steps_per_epoch=2 loader.batch_size=16 workers.num_workers=1 discriminants=[]"
ON_CPU = ("workers.use_gpu=false", "workers.cpus_per_worker=1")
# What makes a command of the docs small, by how it begins; the commands themselves are run as they stand.
SMALLER = {
    "jobs/simulate.py datasets/jetclass2_sim.yaml": ["jets=4000"],
    "jobs/ingest.py": [],
    "jobs/pretrain.py jobs/recipes/demo.yaml": [*SHORT.split()],
    "jobs/pretrain.py jobs/recipes/sophon.yaml features=": [TINY, *SHORT.split(), *ON_CPU],
    "jobs/pretrain.py jobs/recipes/sophon.yaml data=shards run=runs/sophon dry_run=true": ["run=runs/new"],
    "jobs/transfer.py datasets/tasks/demo.yaml": [],
    # Hours, and jets of three simulations: only planned here. tests/downstream runs every method and kind of task.
    "jobs/transfer.py datasets/tasks": ["tasks=datasets/tasks/demo.yaml", "dry_run=true"],
    "jobs/export.py": [],
    "jobs/evaluate.py": [],
    "jobs/benchmark.py": None,  # tests/benchmark runs every theme
}
BY_CI = ("make demo", "make test")


def commands(page: Path) -> list[str]:
    """Lines of a page's bash blocks, continued ones joined; without those of blocks that say what they need."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        if not re.match(r"# needs a \w+", block):
            found += [shlex.join(shlex.split(line, comments=True)) for line in block.replace("\\\n", " ").splitlines()]
    return [command for command in found if command and not command.startswith(BY_CI)]


def smaller(command: str) -> list[str] | None:
    """Of the beginnings that fit, the longest decides."""
    words = " ".join(shlex.split(command)[1:])
    fitting = [start for start in SMALLER if words.startswith(start)]
    assert fitting, f"{command}: run it in this test, or say '# needs a …' in the first line of its block"
    return SMALLER[max(fitting, key=len)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_is_run_here_or_says_what_it_needs(page):
    for command in commands(page):
        assert command.startswith("python jobs/"), command
        smaller(command)


def flat_ntuple(path: Path, jets: int = 400) -> None:
    """Jets by the names of datasets/schemas/my_flat.yaml."""
    random = np.random.default_rng(1)
    number = random.integers(2, 6, jets)
    part = ("pfcand_pt", "pfcand_etarel", "pfcand_phirel", "pfcand_charge", "sv_mass")
    jet = ("fj_pt", "fj_eta", "fj_sdmass", "is_signal")
    tree = {name: ak.unflatten(random.normal(2, 0.1, number.sum()).astype(np.float32), number) for name in part}
    tree["pfcand_charge"] = ak.values_astype(tree["pfcand_charge"] > 2, np.int32)
    tree |= {name: random.normal(500, 50, jets).astype(np.float32) for name in jet}
    tree["is_signal"] = random.integers(0, 2, jets, dtype=np.int32)
    path.parent.mkdir()
    with uproot.recreate(path) as file:
        file["tree"] = tree


FLAT_DATA = """
selection: jet_pt > 10
new_variables: {part_mask: ak.ones_like(part_pt), part_logpt: np.log(part_pt), part_px: part_pt, part_py: part_pt * 0,
  part_pz: part_pt * 0, part_e: part_pt}
preprocess: {method: manual}
inputs:
  pf_features: {length: 8, pad_mode: constant, vars: [[part_logpt, null], [part_deta, null], [part_dphi, null]]}
  pf_vectors: {length: 8, pad_mode: constant, vars: [[part_px, null], [part_py, null], [part_pz, null], [part_e, null]]}
  pf_mask: {length: 8, pad_mode: constant, vars: [[part_mask, null]]}
labels: {type: simple, value: [jet_label == 0, jet_label == 1]}
observers: []
"""


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_docs_run_one_after_the_other(tmp_path, toy_jets, run_job):
    for name in ("jobs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "datasets" / "jetclass2.yaml", tmp_path / "my_data.yaml")
    (tmp_path / "my_flat.yaml").write_text(FLAT_DATA)
    flat_ntuple(tmp_path / "flat" / "a.root")
    for name in ("ntuples", "more"):
        (tmp_path / name).symlink_to("data/sim/root")
    pq.write_table(toy_jets(40, 1), tmp_path / "jets.parquet")
    for page in PAGES:
        for command in commands(page):
            more = smaller(command)
            if more is None:
                continue
            if "model.onnx" in command:
                shutil.copy(tmp_path / "runs/demo/model.onnx", tmp_path / "runs/sophon/model.onnx")
            run_job(tmp_path, *shlex.split(command)[1:], *more)
            if command.endswith("run=runs/mine"):
                for name in ("other", "sophon", "sophon_pp"):
                    shutil.copytree(tmp_path / "runs/mine", tmp_path / "runs" / name)


# ---- docs/weaver.md


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "weaver.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_the_table_has_every_flag_of_weaver_once_and_in_its_order():
    source = Path(pytest.importorskip("weaver.train").__file__).read_text()
    flags = re.findall(r"add_argument\(\s*(?:'-\w',\s*)?'(--[\w-]+)'", source)
    named = [flag for row in rows() for flag in re.findall(r"`(--[\w-]+)`", row[0])]
    assert len(flags) == 69
    assert sorted(named) == sorted(flags)
    firsts = [flags.index(re.findall(r"`(--[\w-]+)`", row[0])[0]) for row in rows()]
    assert firsts == sorted(firsts)


CONFIGS = {
    "jobs/ingest.py": "data.ingest.IngestConfig",
    "jobs/evaluate.py": "downstream.score_files.ScoreConfig",
    "jobs/transfer.py": "downstream.transfer.TransferConfig",
    "jobs/pretrain.py": "train.recipe.Recipe",
}


def calls(path: Path) -> list[list[str]]:
    """Words of every job's command line in a file of cluster/ or a page, in its comments and entry points, too."""
    text = re.sub(r"\\\n#? *", "", path.read_text())
    return [found.split() for found in re.findall(r"jobs/\w+\.py +(?:[\w./]+\.yaml|\w[\w.]*=)[^\"`#\n|]*", text)]


FILES = [*PAGES, *sorted(path for path in (ROOT / "cluster").rglob("*") if path.suffix in (".yaml", ".sub", ".sh"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_options_of_every_command_are_options_of_the_job(path):
    for job, *words in calls(path):
        if job not in CONFIGS:
            continue
        module, _, name = f"jetfoundry.{CONFIGS[job]}".rpartition(".")
        known = {key for key, *_ in config.describe(getattr(importlib.import_module(module), name))} | {"dry_run"}
        for word in words:
            key, equals, _ = word.partition("=")
            assert not equals or key in known, (job, word)
            assert equals or not word.startswith(("jobs/", "datasets/")) or (ROOT / word).exists(), (job, word)
    if re.search("(ray job submit|sbatch|condor_submit) .", path.read_text()) and path.name != "runtime_env.yaml":
        assert calls(path), "no command to submit is found"


def test_the_table_names_our_options_as_they_are():
    from jetfoundry.train.recipe import Recipe

    known = {"dry_run", *(key for key, *_ in config.describe(Recipe))}
    for where in CONFIGS.values():
        module, _, name = f"jetfoundry.{where}".rpartition(".")
        known |= {key for key, *_ in config.describe(getattr(importlib.import_module(module), name))}
    for row in rows():
        for key in re.findall(r"`([\w.]+)=", " ".join(row[1:])):
            assert key in known, row
        for job in re.findall(r"jobs/\w+\.py", " ".join(row)):
            assert (ROOT / job).is_file()
