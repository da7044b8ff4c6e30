"""Eight whole data YAMLs through weaver-core 0.5.3 and through ours: tensors, labels, observers, weights, sampling."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jetfoundry.data.shards import RowGroup, ShardSet
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.data_statistics import complete
from jetfoundry.schema import COLUMNS, LISTS, column_group

CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.yaml"))
ONE_HOT = ["QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"]


@pytest.fixture(scope="module")
def weaver() -> Any:
    pytest.importorskip("weaver")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weaver's own
        from weaver.utils import dataset
        from weaver.utils.data import preprocess
    # It waits ten seconds after each warning. Its own name `time` only: all of this process share the module's sleep.
    preprocess.time = SimpleNamespace(sleep=lambda _: None)
    return dataset, preprocess


@pytest.fixture(autouse=True)
def _weaver_may_warn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def toy_jets(number: int) -> pa.Table:
    """Jets of random numbers, with all columns of JetClass-II: falling spectra, 1 to 150 particles."""
    rng = np.random.default_rng(5)
    counts = {prefix: rng.integers(1, 150, number) for prefix in LISTS}
    columns = {}
    for column in COLUMNS:
        lists = column_group(column.name)
        size = int(counts[lists].sum()) if column.jagged else number
        values: Any = rng.standard_normal(size)
        if column.kind == "bool":
            values = values > 1
        elif column.kind == "int32":
            values = np.round(values)
        elif column.name.endswith(("energy", "err")):
            values = rng.exponential(20, size) + 0.1
        elif column.name.endswith("_pt"):
            values = 160 + rng.exponential(300, size)
        elif column.name.endswith("sdmass"):
            values = rng.exponential(120, size)
        if column.name == "jet_label":
            values = rng.integers(0, 188, size)
        if column.name == "jet_nparticles":
            values = counts["part"]
        array = pa.array(values).cast(column.arrow_type.value_type if column.jagged else column.arrow_type)
        if column.jagged:
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts[lists])]), pa.int32())
            array = pa.ListArray.from_arrays(offsets, array)
        columns[column.name] = array
    return pa.table(columns)


def with_one_hot(table: pa.Table) -> pa.Table:
    """The branches of the first JetClass: one-hot labels in place of numbers (which class is which does not matter)."""
    label = table["jet_label"].to_numpy()
    number = np.where(label >= 161, 0, 1 + label % 9)
    for index, name in enumerate(ONE_HOT):
        table = table.append_column(f"label_{name}", pa.array(number == index).cast(pa.int32()))
    return table


@pytest.fixture(scope="module", params=["real", "toy"])
def jets(request: Any, tmp_path_factory: Any) -> Path:
    real = Path(__file__).resolve().parents[3] / "shared" / "data" / "jetclass2" / "jetclass2_real_60.parquet"
    if request.param == "real" and not real.exists():
        pytest.skip("the 60 real JetClass-II jets are not at hand")
    table = pq.read_table(real) if request.param == "real" else toy_jets(400)
    path = tmp_path_factory.mktemp(request.param) / "jets.parquet"
    pq.write_table(with_one_hot(table), path, row_group_size=150)
    return path


def shard_set(path: Path, folder: Path) -> ShardSet:
    metadata = pq.read_metadata(path)
    groups = [RowGroup(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    nothing = np.zeros((188, 14, 48), np.int64)
    return ShardSet(folder, "train", "", groups, np.zeros(188, np.int64), nothing, "hash")


def theirs(weaver: Any, config: Path, jets: Path, folder: Path, training: bool) -> tuple[Any, list[Any]]:
    """weaver's completed configuration and its (inputs, labels, carried) jet by jet, in stored order."""
    path = folder / config.name
    path.write_text(config.read_text(encoding="utf-8"), encoding="utf-8")
    dataset, _ = weaver
    data = dataset.SimpleIterDataset(
        {"": [str(jets)]}, str(path), for_training=training, fetch_step=1.0, async_load=False
    )
    if not training and data.config._missing_standardization_info:
        dataset.SimpleIterDataset({"": [str(jets)]}, str(path), for_training=True, async_load=False)
        data = dataset.SimpleIterDataset(
            {"": [str(jets)]}, str(path), for_training=False, fetch_step=1.0, async_load=False
        )
    data._sampler_options |= {"shuffle": False, "reweight": False}
    return data.config, list(data)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_inputs_labels_and_observers_are_weavers(
    weaver: Any, config: Path, jets: Path, training: bool, tmp_path: Path
) -> None:
    completed, rows = theirs(weaver, config, jets, tmp_path, training)
    text = complete(config, shard_set(jets, tmp_path), known=None)
    data = load_data_config(yaml.safe_load(text), known=None)
    features = data.apply(pq.read_table(jets), training=training)
    assert len(features) == len(rows) > 20
    for name in completed.input_names:
        expected = np.stack([inputs[name] for inputs, _, _ in rows])
        got = features.pad(name, np.arange(len(features)), length=data.inputs[name].length)
        if expected.ndim == 1:
            expected = expected[:, None]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    for name in completed.label_names:
        found = features.targets.get(name, features.labels)
        np.testing.assert_allclose(found, [labels[name] for _, labels, _ in rows], rtol=1e-6)
    assert set(features.observers) == set(completed.z_variables)
    for name in completed.z_variables:
        carried = [values[name] for _, _, values in rows]
        for mine, other in zip(features.observers[name].tolist(), carried, strict=True):
            assert mine == (other.tolist() if hasattr(other, "tolist") else other)


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if load_data_config(c, known=None).weights], ids=lambda p: p.stem
)
def test_weights_of_jets_are_weavers(weaver: Any, config: Path, jets: Path, tmp_path: Path) -> None:
    from weaver.utils.data.fileio import _read_files

    completed, _ = theirs(weaver, config, jets, tmp_path, training=True)
    _, preprocess = weaver
    table = _read_files([str(jets)], completed.train_load_branches)
    table = preprocess._apply_selection(table, completed.selection, funcs=completed.var_funcs)
    expected = preprocess._build_weights(preprocess._build_new_variables(table, completed.train_var_funcs), completed)
    text = complete(config, shard_set(jets, tmp_path), known=None)
    data = load_data_config(yaml.safe_load(text), known=None)
    weights = data.apply(pq.read_table(jets), training=True).weights
    assert weights is not None
    assert weights.max() > 0
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
    assert data.weights is not None
    assert data.weights.jets == len(expected)
    assert data.weights.mean == pytest.approx(np.clip(expected, 0, 1).mean(), rel=1e-5)
    assert data.apply(pq.read_table(jets), training=False).weights is None


def test_weaver_reads_the_completed_yaml(weaver: Any, jets: Path, tmp_path: Path) -> None:
    dataset, _ = weaver
    config = next(path for path in CONFIGS if path.stem == "jetclass2_auto")
    path = tmp_path / "ours.auto.yaml"
    path.write_text(complete(config, shard_set(jets, tmp_path)), encoding="utf-8")
    own = dataset.SimpleIterDataset({"": [str(jets)]}, str(path), for_training=False, fetch_step=1.0, async_load=False)
    rows = [inputs["pf_features"] for inputs, _, _ in own]
    features = load_data_config(path).apply(pq.read_table(jets), training=False)
    np.testing.assert_allclose(features.pad("pf_features", np.arange(len(features)), 80), np.stack(rows), atol=1e-6)
