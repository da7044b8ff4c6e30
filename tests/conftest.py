"""Fixtures of all rooms: the shared sample files, a local Ray for the session, tiny jets in every file format."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before Ray is imported anywhere.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DEDUP_LOGS="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_TRAIN_METRICS_ENABLED="0",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_enable_infeasible_task_early_exit="true",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    RAY_AIR_NEW_OUTPUT="0",
)

import awkward as ak
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from jetfoundry import schema

WriteRoot = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample files beside the repository; tests that need it are skipped without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no folder `shared` with sample files beside the repository")
    return path


@pytest.fixture
def run_job() -> Callable[..., str]:
    """`run_job(folder, "jobs/x.py", "key=value", …)` in that folder: what it printed; it must have ended with 0."""

    def run(folder: Path, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-4000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def ray_local() -> Iterator[ModuleType]:
    """One local Ray for all tests of the session: 4 logical CPUs, nothing attached to, ordered results."""
    import ray
    import ray.data

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
        _temp_dir=tempfile.mkdtemp(prefix="r", dir="/tmp"),  # short: a socket's path has at most 107 bytes
    )
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def killed() -> Callable[..., None]:
    """`killed(job, signal.SIGKILL)`: send a signal to a job (a Popen) and wait until all that it had started is gone,
    too: workers go on until they see that the driver is no more."""
    return _killed


def _killed(job: subprocess.Popen[str], signal_number: int, seconds: float = 60) -> None:
    started = psutil.Process(job.pid).children(recursive=True)
    # Ray's agents live for some minutes more, and write nothing.
    started = [process for process in started if "Agent" not in process.name()]
    job.send_signal(signal_number)
    deadline = time.monotonic() + seconds
    while any(map(_runs, started)):
        assert time.monotonic() < deadline, list(filter(_runs, started))
        time.sleep(0.1)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(scope="session")
def real_table(shared: Path) -> pa.Table:
    """The 60 real JetClass-II jets of the public example, with exactly the schema's types."""
    table = pq.read_table(shared / "data" / "jetclass2" / "jetclass2_real_60.parquet")
    return table.cast(schema.arrow_schema()).combine_chunks()


@pytest.fixture(scope="session")
def make_jets() -> Callable[..., pa.Table]:
    """`make_jets(n, seed=0, label=None)`: n made-up jets with all 54 columns, 1-5 constituents, jet_label 0, 1, 2, …"""
    return _make_jets


def _make_jets(jets: int, seed: int = 0, label: int | None = None) -> pa.Table:
    rng = np.random.default_rng(seed)
    low = {"part": 1, "genpart": 0, "aux_genpart": 1}
    offsets = {g: np.concatenate([[0], np.cumsum(rng.integers(low[g], 6, jets))]) for g in schema.LISTS}
    columns = []
    for column in schema.COLUMNS:
        at = offsets[schema.column_group(column.name)] if column.jagged else np.array([jets])
        values = rng.normal(size=at[-1]).astype(np.float32)
        if column.kind != "float32":
            values = rng.integers(0, 2, at[-1]).astype(column.kind)
        if column.name == "jet_pt":
            values = rng.uniform(200, 2500, jets).astype(np.float32)
        elif column.name == "jet_sdmass":
            values = rng.uniform(20, 500, jets).astype(np.float32)
        elif column.name == "jet_nparticles":
            values = np.diff(offsets["part"]).astype(np.int32)
        elif column.name == "jet_label":
            values = (np.arange(jets, dtype=np.int32) % 188) if label is None else np.full(jets, label, np.int32)
        array = pa.array(values)
        if column.jagged:
            array = pa.ListArray.from_arrays(pa.array(at, pa.int32()), array, type=column.arrow_type)
        columns.append(array)
    return pa.table(columns, schema=schema.arrow_schema())


@pytest.fixture(scope="session")
def write_root() -> WriteRoot:
    """`write_root(path, table)`: write jets as TTree, RNTuple or Parquet, see `_write_root`."""
    return _write_root


def _write_root(
    path: Path,
    table: pa.Table | dict[str, Any],
    *,
    kind: str = "ttree",
    tree: str = "tree",
    cluster: int | None = None,
    compression: uproot.compression.Compression | None = uproot.ZLIB(1),  # noqa: B008 - immutable
    **replace: Any,
) -> Path:
    """Write `table` (or name -> NumPy or awkward array) as `kind`: ttree, rntuple or parquet.

    Every jagged TTree branch gets its own counter, as in files written from `vector<float>` branches, so lists of
    one jet may differ in length. `cluster`: jets of one basket, cluster or row group; `replace`: columns to put
    in place of the table's, None to leave one out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        assert isinstance(table, pa.Table)
        pq.write_table(table, path, row_group_size=cluster)
        return path
    arrays = dict(table) if isinstance(table, dict) else {name: to_awkward(table, name) for name in table.column_names}
    arrays |= replace
    arrays = {name: array for name, array in arrays.items() if array is not None}
    rows = len(next(iter(arrays.values())))
    step = cluster or max(rows, 1)
    types = {name: array.type if isinstance(array, ak.Array) else array.dtype for name, array in arrays.items()}
    with uproot.recreate(path, compression=compression) as file:
        if kind == "rntuple":
            file.mkrntuple(tree, {name: array[:step] for name, array in arrays.items()})
        else:
            file.mktree(tree, types)
        for start in range(step if kind == "rntuple" else 0, rows, step):
            file[tree].extend({name: array[start : start + step] for name, array in arrays.items()})
    return path


def to_awkward(table: pa.Table, name: str) -> Any:
    """A column of `table` as a NumPy array (one value per jet) or an awkward array of lists."""
    array = table.column(name).combine_chunks()
    if not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets - offsets[0]), ak.contents.NumpyArray(values)))


@pytest.fixture(scope="session")
def toy_jets() -> Callable[..., pa.Table]:
    """`toy_jets(number, seed=0, labels=(0, 187))`: random jets with all columns, see `_toy_jets`."""
    return _toy_jets


def _toy_jets(number: int, seed: int = 0, labels: tuple[int, ...] = (0, 187), first: int = 0) -> pa.Table:
    """Jets of 3-20 massless particles around a random axis, with provenance columns; no physics but one thing:
    the smaller the position of a jet's label in `labels`, the larger its impact parameters."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 21, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    total = int(offsets[-1])
    which = rng.integers(0, len(labels), number)
    jet_pt, jet_eta, jet_phi = rng.uniform(210, 1000, number), rng.uniform(-2, 2, number), rng.uniform(-3, 3, number)
    deta, dphi = rng.normal(0, 0.2, (2, total))
    share = rng.exponential(size=total)
    share /= np.repeat(np.add.reduceat(share, offsets[:-1]), lengths)
    pt = share * np.repeat(jet_pt, lengths)
    eta, phi = np.repeat(jet_eta, lengths) + deta, np.repeat(jet_phi, lengths) + dphi
    charge = rng.integers(-1, 2, total)
    d0 = np.where(charge != 0, rng.normal(size=total) * np.repeat(0.5 / (1 + which), lengths), 0.0)
    particles = {
        "part_px": pt * np.cos(phi), "part_py": pt * np.sin(phi), "part_pz": pt * np.sinh(eta),
        "part_energy": pt * np.cosh(eta), "part_deta": deta, "part_dphi": dphi, "part_charge": charge,
        "part_d0val": d0, "part_dzval": d0, "part_d0err": 0.02 * np.abs(charge), "part_dzerr": 0.02 * np.abs(charge),
        "part_isChargedHadron": charge != 0, "part_isPhoton": charge == 0,
    }  # fmt: skip
    jets = {
        "jet_pt": jet_pt, "jet_eta": jet_eta, "jet_phi": jet_phi, "jet_energy": jet_pt * np.cosh(jet_eta),
        "jet_sdmass": rng.uniform(25, 300, number), "jet_nparticles": lengths,
        "jet_label": np.asarray(labels)[which],
    }  # fmt: skip
    columns = []
    for column in schema.COLUMNS:
        kind = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}[column.kind]
        if not column.jagged:
            columns.append(pa.array(np.asarray(jets.get(column.name, np.zeros(number))).astype(kind)))
            continue
        mine = schema.column_group(column.name) == "part"
        values = np.asarray(particles.get(column.name, np.zeros(total)) if mine else np.zeros(0)).astype(kind)
        at = offsets if mine else np.zeros(number + 1, np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(at), pa.array(values), type=column.arrow_type))
    return pa.table(columns, schema=schema.arrow_schema())


@pytest.fixture(scope="session")
def toy_shards(toy_jets: Callable[..., pa.Table]) -> Callable[..., Path]:
    """`toy_shards(folder, train=300, val=100)`: toy jets, or those of another function of (number, seed, labels), as a
    shard folder, laid out as ingest does it."""
    from jetfoundry import files
    from jetfoundry.data import shards

    def make(
        folder: Path, labels: tuple[int, ...] = (0, 187), row_group: int = 50, jets: Any = toy_jets, **splits: int
    ) -> Path:
        parts, digests = {}, []
        for seed, (split, number) in enumerate(splits.items()):
            table = jets(number, seed, labels)
            at = {"source_file": pa.array(np.full(number, seed, np.int32)), "source_entry": pa.array(np.arange(number))}
            record = shards.write_shard(
                folder,
                shards.shard_path(split, 0, 0),
                pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **at}),
                row_group,
            )
            bins = shards.histogram(*(table[name].to_numpy() for name in ("jet_label", "jet_pt", "jet_sdmass")))
            sidecar = {"shards": [record], "histograms": {split: shards.pack_counts(bins)}}
            parts[split] = shards.gather(split, [sidecar])
            digests.append(record["xxh128"])
        manifest = {
            "format": shards.FORMAT,
            "sample": "toy",
            "hash": shards.content_hash(digests),
            "row_group": row_group,
            "splits": parts,
        }
        files.write_json(folder / "manifest.json", manifest)
        return folder

    return make
