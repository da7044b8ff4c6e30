"""Samples on Ray: determinism, restart, refusal, files."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import awkward as ak
import numpy as np
import psutil
import pyarrow as pa
import pytest
import uproot

from jetfoundry import config, files, schema
from jetfoundry.errors import CheckpointError, ConfigError, InputError
from jetfoundry.sim import run
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.store import read_metadata, write_shard

ROOT = Path(__file__).resolve().parents[2]
needs_pythia = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pythia8mc", "fastjet")), reason="needs the [sim] extra"
)


def configured(folder: Path, *overrides: str) -> SimulateConfig:
    keys = [f"output={folder}", f"card={ROOT}/datasets/cards/cms.yaml", "mode=fast", "jets_per_shard=20", "jets=80"]
    keys += ["families.Res2P_charged.weight=0", "families.Res34P.weight=0", "families.QCD.weight=0.29"]
    return config.read(SimulateConfig, ROOT / "datasets" / "jetclass2_sim.yaml", [*keys, "batch_events=30", *overrides])


def read_back(path: Path) -> pa.Table:
    """A file's tree as an Arrow table of the 54 columns, without any cast of the stored types."""
    with uproot.open(path) as root:
        arrays = root["tree"].arrays([column.name for column in schema.COLUMNS])
    columns = []
    for column in schema.COLUMNS:
        array = arrays[column.name]
        values = ak.to_numpy(ak.flatten(array, axis=None))
        assert values.dtype == np.dtype(column.kind)
        flat = pa.array(values)
        if column.jagged:
            offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(array)))]).astype(np.int32)
            flat = pa.ListArray.from_arrays(offsets, flat, type=column.arrow_type)
        columns.append(flat)
    return pa.table(columns, schema=schema.arrow_schema())


def contents(folder: Path) -> dict[str, pa.Table]:
    return {path.name: read_back(path) for path in sorted(folder.glob("*.root"))}


def test_a_written_file_reads_back_with_the_same_schema_and_content(tmp_path: Path, make_jets: Any) -> None:
    table = make_jets(7)
    write_shard(tmp_path / "QCD_0000.root", table, {"mode": "no_mpi", "text": "Größe " * 100})
    assert read_back(tmp_path / "QCD_0000.root").equals(table)
    assert read_metadata(tmp_path / "QCD_0000.root") == {"mode": "no_mpi", "text": "Größe " * 100}
    with uproot.open(tmp_path / "QCD_0000.root") as root:
        assert root["tree"].classname == "TTree"
        assert str(root["sample"]) == "simulated jets (Pythia 8, no MPI, parametrised detector)"
        counters = {"npart", "ngenpart", "naux_genpart"}
        assert set(root["tree"].keys()) == {column.name for column in schema.COLUMNS} | counters


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "QCD_0000.root"
    path.write_bytes(b"root" + bytes(200))
    with pytest.raises(InputError, match=r"QCD_0000.root: cannot read it as a file of simulated jets"):
        read_metadata(path)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pythia8mc and fastjet; install with: pip install 'jetfoundry\[sim\]'"):
        run.simulate(configured(tmp_path))


@pytest.fixture(scope="module")
def sample(ray_local: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    run.simulate(configured(folder, "workers=2"))
    return folder


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_a_sample_has_full_files_metadata_and_a_summary(sample: Path) -> None:
    tables = contents(sample)
    assert list(tables) == ["QCD_0000.root", "QCD_0001.root", "Res2P_neutral_0000.root", "Res2P_neutral_0001.root"]
    assert all(len(table) == 20 for table in tables.values())
    metadata = read_metadata(sample / "QCD_0001.root")
    assert (metadata["sample"], metadata["source"], metadata["mode"]) == ("simulated", "embedded", "fast")
    assert metadata["settings"]["detector"]["tracker"]["field"] == 3.8
    assert metadata["versions"]["pythia8mc"]
    assert metadata["cpu_seconds"] > 0
    summary = files.read_json(sample / "summary.json")
    assert summary["jets"] == sum(summary["jets_per_class"].values()) == 80
    assert summary["families"]["QCD"]["jets"] == 40
    assert config.read(SimulateConfig, sample / "config.yaml").jets == 80


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_the_number_of_actors_does_not_change_a_sample(sample: Path, tmp_path: Path) -> None:
    run.simulate(configured(tmp_path, "workers=1"))
    made, again = contents(sample), contents(tmp_path)
    assert list(made) == list(again)
    assert all(made[name].equals(again[name]) for name in made)


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_only_missing_files_are_made_again(sample: Path) -> None:
    before = contents(sample)
    (sample / "QCD_0001.root").unlink()
    (sample / "QCD_0001.root.tmp.123").write_bytes(b"half a file")
    kept = (sample / "QCD_0000.root").stat().st_mtime_ns
    summary = run.simulate(configured(sample))
    assert (summary["this_run"]["files_made"], summary["this_run"]["files_kept"]) == (1, 3)
    assert (sample / "QCD_0000.root").stat().st_mtime_ns == kept
    assert not list(sample.glob("*.tmp.*"))
    after = contents(sample)
    assert all(before[name].equals(after[name]) for name in before)


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("mode=no_mpi", "mode: was 'fast', now 'no_mpi'"),
        ("seed=2", "seed: was 1, now 2"),
        ("selection.sdmass=[30, 500]", r"selection.sdmass: was \[20.0, 500.0\], now \[30.0, 500.0\]"),
    ],
)
def test_a_folder_of_other_settings_is_refused(sample: Path, override: str, difference: str) -> None:
    with pytest.raises(CheckpointError, match=difference):
        run.simulate(configured(sample, override))


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_a_changed_detector_card_is_refused(sample: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text((ROOT / "datasets" / "cards" / "cms.yaml").read_text().replace("field: 3.8", "field: 2.0"))
    with pytest.raises(CheckpointError, match=r"detector.tracker.field: was 3.8, now 2.0"):
        run.simulate(configured(sample, f"card={card}"))


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_a_wrong_pythia_setting_is_a_configuration_error(ray_local: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Pythia setting 'PartonLevel:MPI = maybe': wanted on or off"):
        run.simulate(configured(tmp_path, "modes.fast=['PartonLevel:MPI = maybe']"))
    assert not list(tmp_path.glob("*.root*"))


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_its_file_made_again(
    ray_local: ModuleType, sample: Path, tmp_path: Path
) -> None:
    def workers() -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "_Worker.make" in " ".join(process.cmdline()):
                    found[process.pid] = process
        return found

    earlier, killed = set(workers()), []  # those of other tests may still be ending

    def kill_the_first_worker() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid, process in workers().items():
                if pid not in earlier:
                    process.kill()
                    killed.append(pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill_the_first_worker)
    thread.start()
    summary = run.simulate(configured(tmp_path, "workers=1"))
    thread.join()
    assert killed
    assert summary["this_run"]["workers_died"] == 1
    made, again = contents(sample), contents(tmp_path)
    assert list(made) == list(again)
    assert all(made[name].equals(again[name]) for name in made)


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_a_smaller_sample_in_the_folder_of_a_larger_one_is_refused(sample: Path) -> None:
    with pytest.raises(InputError, match=r"holds QCD_0001.root and 1 more files that are not part of 40 jets"):
        run.simulate(configured(sample, "jets=40"))


@needs_pythia
@pytest.mark.sim
@pytest.mark.ray
def test_files_of_another_pythia_are_not_continued(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.importlib.metadata, "version", lambda package: "0.0")
    with pytest.raises(InputError, match=r"made with pythia8mc [\d.]+, this is 0.0"):
        run.simulate(configured(sample))


@needs_pythia
@pytest.mark.sim
def test_a_family_without_any_class_is_refused(tmp_path: Path) -> None:
    invisible = "families.Res2P_neutral.resonance.decays={25: {12 -12: 1.0}}"
    with pytest.raises(ConfigError, match=r"families.Res2P_neutral.resonance.decays: no channel gives a class"):
        run.simulate(configured(tmp_path / "out", invisible))


@needs_pythia
@pytest.mark.sim
def test_an_unreachable_channel_ends_the_job_before_anything_is_made(tmp_path: Path) -> None:
    low = "families.Res2P_neutral.resonance.mass=[5, 8]"
    with pytest.raises(ConfigError, match=r"families.Res2P_neutral.resonance.decays.25: the channel '5 -5' needs more"):
        run.simulate(configured(tmp_path / "out", low))
    assert not (tmp_path / "out").exists()
