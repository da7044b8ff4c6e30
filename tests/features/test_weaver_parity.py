"""The same YAML and the same real jets through weaver-core 0.5.3's own data set and through ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jetfoundry.errors import InputError
from jetfoundry.features.expressions import compile_formula, evaluate
from jetfoundry.features.jagged import Jagged, from_arrow, to_arrow
from jetfoundry.features.transform import load_data_config

REPO = Path(__file__).resolve().parents[2]
JETS = REPO.parent / "shared" / "data" / "jetclass2" / "jetclass2_real_60.parquet"
YAML = REPO / "datasets" / "jetclass2.yaml"

pytestmark = pytest.mark.skipif(not JETS.exists(), reason="the 60 real JetClass-II jets are not at hand")


@pytest.fixture(scope="module")
def weaver_dataset() -> Any:
    pytest.importorskip("weaver")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weaver's own
        from weaver.utils.dataset import SimpleIterDataset
    return SimpleIterDataset


@pytest.fixture(autouse=True)
def _weaver_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tree(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(YAML.read_text(encoding="utf-8")) | changes


def written(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def through_weaver(dataset_class: Any, path: str, *, training: bool, source: Path = JETS) -> tuple[list[Any], Any]:
    dataset = dataset_class({"": [str(source)]}, path, for_training=training, fetch_step=1.0, async_load=False)
    dataset._sampler_options["shuffle"] = False  # the same jets in stored order
    return list(dataset), dataset.config


def largest_difference(path: str, jets: list[Any], config: Any, *, training: bool, source: Path = JETS) -> float:
    features = load_data_config(path).apply(pq.read_table(source), training=training)
    assert len(features) == len(jets)
    largest = 0.0
    for name in config.input_names:
        theirs = np.stack([inputs[name] for inputs, _, _ in jets])
        ours = features.pad(name, np.arange(len(features)), length=128)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == np.float32
        largest = max(largest, float(np.abs(ours - theirs).max()))
    for name in config.label_names:
        np.testing.assert_array_equal(features.labels, [labels[name] for _, labels, _ in jets])
    for name in config.z_variables:
        np.testing.assert_array_equal(features.observers[name], [carried[name] for _, _, carried in jets])
    assert set(features.observers) == set(config.z_variables)
    return largest


def set_padding(content: dict[str, Any], mode: str, pad: float = 0.0) -> dict[str, Any]:
    for name, group in content["inputs"].items():
        if name == "pf_mask":
            continue
        group["pad_mode"] = mode
        if pad:
            group["vars"] = [[*entry, *(None, 1, -5, 5)[len(entry) - 1 :], pad] for entry in group["vars"]]
    return content


def test_our_yaml_gives_weavers_tensors_labels_observers_and_rows(weaver_dataset: Any) -> None:
    jets, config = through_weaver(weaver_dataset, str(YAML), training=False)
    assert len(jets) == 52  # 8 of the 60 fail the selection
    assert config.z_variables
    assert largest_difference(str(YAML), jets, config, training=False) == 0.0


@pytest.mark.parametrize(("mode", "pad"), [("constant", 0.0), ("constant", -0.25), ("wrap", 0.0)])
def test_both_padding_rules_agree_with_weaver(weaver_dataset: Any, tmp_path: Path, mode: str, pad: float) -> None:
    path = written(tmp_path, set_padding(tree(), mode, pad))
    jets, config = through_weaver(weaver_dataset, path, training=False)
    assert largest_difference(path, jets, config, training=False) == 0.0


@pytest.mark.parametrize("length", [7, 40])
def test_jets_longer_than_the_input_are_cut_like_weavers(weaver_dataset: Any, tmp_path: Path, length: int) -> None:
    content = tree()
    for group in content["inputs"].values():
        group["length"] = length
    path = written(tmp_path, content)
    jets, config = through_weaver(weaver_dataset, path, training=False)
    features = load_data_config(path).apply(pq.read_table(JETS), training=False)
    assert np.diff(features.offsets).max() == length
    for name in config.input_names:
        theirs = np.stack([inputs[name] for inputs, _, _ in jets])
        np.testing.assert_array_equal(features.pad(name, np.arange(len(features)), length=length), theirs)


@pytest.mark.parametrize("mode", ["constant", "wrap"])
def test_empty_jets_and_nan_are_treated_like_weavers(weaver_dataset: Any, tmp_path: Path, mode: str) -> None:
    table = pq.read_table(JETS)
    for number, field in enumerate(table.schema):
        if not field.name.startswith("part_"):
            continue
        jagged = from_arrow(table[field.name])
        first = jagged.offsets[1]
        values = jagged.values[first:].copy()
        if field.name in ("part_d0err", "part_dzval", "part_deltaR"):
            values[:3] = np.nan
            values[3:5] = np.inf  # clipped in one, tanh = 1 in the other
        emptied = to_arrow(Jagged(values, np.maximum(jagged.offsets - first, 0)))
        table = table.set_column(number, field.name, emptied)
    pq.write_table(table, tmp_path / "jets.parquet")
    path, source = written(tmp_path, set_padding(tree(), mode)), tmp_path / "jets.parquet"
    jets, config = through_weaver(weaver_dataset, path, training=False, source=source)
    assert largest_difference(path, jets, config, training=False, source=source) == 0.0
    features = load_data_config(path).apply(table, training=False)
    assert features.offsets[1] == 0
    assert features.nonfinite == {"part_d0err": 5, "part_dz": 3}


def test_training_selects_and_labels_like_weaver(weaver_dataset: Any, tmp_path: Path) -> None:
    content = tree(
        weights=None,
        observers=None,
        monitor_variables=["jet_pt", "jet_tau1"],
        test_time_selection="jet_pt > 1000",
        selection="(jet_pt > 300) & (jet_sdmass > 50) & (ak.sum(part_isMuon, axis=1) < 3)",
    )
    path = written(tmp_path, content)
    counts = {}
    for training in (True, False):
        jets, config = through_weaver(weaver_dataset, path, training=training)
        counts[training] = len(jets)
        assert largest_difference(path, jets, config, training=training) == 0.0
    assert 0 < counts[False] < counts[True] < 60


def test_simple_labels_agree_with_weaver(weaver_dataset: Any, tmp_path: Path) -> None:
    content = tree(weights=None, labels={"type": "simple", "value": ["two_prong", "more_prongs", "QCD"]})
    content["new_variables"] |= {"two_prong": "jet_label < 15", "more_prongs": "(jet_label > 14) & (jet_label < 161)"}
    path = written(tmp_path, content)
    jets, config = through_weaver(weaver_dataset, path, training=False)
    assert {int(labels["_label_"]) for _, labels, _ in jets} == {0, 1, 2}
    assert largest_difference(path, jets, config, training=False) == 0.0


def test_both_read_the_same_columns(weaver_dataset: Any) -> None:
    config = weaver_dataset({"": [str(JETS)]}, str(YAML), for_training=False).config
    assert set(load_data_config(YAML).columns) == config.test_load_branches
    assert len(config.test_load_branches) == 27


def test_a_standardisation_that_weaver_has_worked_out_is_read_from_its_auto_yaml(
    weaver_dataset: Any, tmp_path: Path
) -> None:
    content = tree(weights=None, observers=None, preprocess={"method": "auto", "data_fraction": 1.0})
    del content["inputs"]["pf_points"], content["inputs"]["pf_vectors"]
    content["inputs"]["pf_features"]["vars"] = ["part_pt_scale_log", ["part_charge", None], "part_deltaR"]
    path = written(tmp_path, content)
    jets, config = through_weaver(weaver_dataset, path, training=True)
    (auto,) = tmp_path.glob("*.auto.yaml")
    log_pt = load_data_config(auto).inputs["pf_features"].variables[0]
    assert log_pt.center == config.preprocess_params["part_pt_scale_log"]["center"] != 0
    assert largest_difference(str(auto), jets, config, training=True) == 0.0


FORMULAS = """
np.log(np.hypot(part_px, part_py) / jet_pt)
np.tanh(part_d0val) * 500
part_px * 500 / jet_pt
part_charge * 2
part_charge / 2
part_charge * 0.5
(np.abs(part_charge) == 1) + (part_isMuon == 1) * 0.5
part_isMuon + part_isElectron
part_isMuon * 2
~part_isMuon & (part_energy > 10) | part_isElectron
part_energy ** 2 - part_px ** 2
-part_charge % 3
part_charge // 2
np.where(part_isPhoton, part_energy, 0.)
np.where(part_isPhoton, part_energy, jet_energy)
np.where(jet_pt > 500, 1, 0)
np.maximum(1, part_energy)
np.maximum(part_charge, part_energy)
np.log(part_charge)
np.log(500) * part_energy
np.pi * part_energy
np.arctan2(part_py, part_px)
np.sqrt(part_px ** 2 + part_py ** 2)
np.log1p(np.abs(part_pz))
ak.ones_like(part_charge)
ak.zeros_like(part_isMuon)
ak.any(part_isMuon, axis=1)
ak.all(part_energy > 1, axis=1)
ak.sum(part_charge, axis=1)
ak.sum(part_isMuon, axis=1)
ak.count(part_energy, axis=1)
ak.num(part_energy)
ak.count_nonzero(part_charge, axis=1)
ak.sum(part_energy, axis=1)
part_energy / ak.sum(part_energy, axis=1)
ak.mean(part_energy, axis=1)
np.sign(part_charge) * jet_nparticles
jet_tau2 / jet_tau1
jet_label ^ 1
np.exp(-part_deta ** 2)
ak.argsort(part_energy, axis=-1, ascending=False)
ak.argsort(part_isMuon, axis=1, ascending=False)
part_px[ak.argsort(part_energy, axis=-1, ascending=False)]
part_px[ak.argmax(part_energy, axis=1, keepdims=True)]
part_px[(part_charge != 0) & (part_energy > 5)]
ak.sum(part_energy[part_charge == 0], 1)
ak.local_index(part_px, axis=1)
part_px[:, 2:7]
part_px[:, -4:]
part_px[:, -1]
ak.fill_none(ak.firsts(part_px[part_isMuon]), -99)
ak.fill_none(ak.firsts(part_px[part_isMuon]) * 2 + jet_pt, 7)
ak.is_none(ak.firsts(part_px[part_isMuon]))
ak.fill_none(ak.max(part_energy[part_isMuon], axis=1), 0)
ak.fill_none(ak.pad_none(part_px, 40, clip=True), 0)
ak.concatenate([part_px, genpart_px], axis=1)
_concat([part_charge, genpart_pid], axis=1)
ak.where(jet_label <= 16, jet_label, ak.where(jet_label <= 31, jet_label - 13, -1))
ak.values_astype(part_charge, "float32") * 0.5
ak.values_astype(part_px > 1, np.float32)
ak.full_like(part_px, 3)
np.nan_to_num(np.log(part_charge), nan=-1, posinf=5, neginf=-5)
ak.std(part_px, axis=1)
ak.ptp(part_px, axis=1)
ak.max(part_energy, axis=1, keepdims=True)
_hash(jet_label, jet_nparticles)
_pad(part_px, 50, -3)
_repeat_pad(part_px, 150)
(jet_label << 2) >> 1
""".strip().splitlines()


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_has_the_value_and_type_of_weavers_evaluation(weaver_dataset: Any, text: str) -> None:
    from weaver.utils.data.eval_utils import _eval_expr

    table = pq.read_table(JETS)
    formula = compile_formula(text)
    with np.errstate(all="ignore"):
        theirs = _eval_expr(text, ak.from_arrow(table))
    ours = evaluate(formula, {name: from_arrow(table[name], name) for name in formula.names})
    theirs = ak.Array(theirs)  # some are NumPy's
    flat = ak.to_numpy(ak.flatten(theirs) if theirs.ndim > 1 else theirs)
    values = ours.values if isinstance(ours, Jagged) else ours
    if isinstance(ours, Jagged):
        np.testing.assert_array_equal(ours.counts, ak.num(theirs))
    assert isinstance(ours, Jagged) == (theirs.ndim > 1)
    assert values.dtype == flat.dtype or text.startswith("ak.num")  # there weaver's type is that of Arrow's offsets
    # Mean and variance are sums in another order; all else is the same operation on the same numbers.
    tolerance = 1e-6 if re.search(r"ak\.(mean|std)", text) else 0
    np.testing.assert_allclose(values, flat, rtol=tolerance, atol=0)


def test_a_jet_of_no_class_stops_training_as_in_weaver(weaver_dataset: Any, tmp_path: Path) -> None:
    path = written(tmp_path, tree(weights=None, labels={"type": "simple", "value": ["X_QQ", "QCD"]}))
    with pytest.raises(RuntimeError, match="not assigned to any classes"):
        through_weaver(weaver_dataset, path, training=True)
    with pytest.raises(InputError, match=r"no class for \d+ jets \(rows \d+, .*wanted exactly one of X_QQ, QCD"):
        load_data_config(path).apply(pq.read_table(JETS), training=True)
