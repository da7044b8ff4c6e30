"""Weights from histograms, and the spectra of what is drawn with them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jetfoundry.data.shards import MASS_EDGES, PT_EDGES, RowGroup, ShardSet, histogram
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.features.data_config import Weights
from jetfoundry.features.reweighting import JetBins, bin_numbers, class_histograms, jet_weights, weight_tables
from jetfoundry.features.transform import load_data_config
from jetfoundry.labels import CLASSES
from jetfoundry.loading.data_statistics import complete
from jetfoundry.loading.sampling import SamplingConfig, balance_of, plan_uses, systematic_draw

EDGES = {"x": (0.0, 1.0, 2.0), "y": (0.0, 10.0)}


def section(**changes: Any) -> Weights:
    usual: dict[str, Any] = {"vars": EDGES, "classes": ("a", "b"), "class_weights": (1.0, 1.0), "threshold": 0.0}
    return Weights(**({"method": "flat"} | usual | changes))


def test_bins_include_their_lower_edge_and_the_last_one_both() -> None:
    x, y = np.array([0, 0.5, 1, 2, -0.1, 2.1, np.nan]), np.array([0.0, 10, 5, 5, 5, 5, 5])
    assert bin_numbers([x, y], list(EDGES.values()), discard=True).tolist() == [0, 0, 1, 1, -1, -1, -1]
    assert bin_numbers([x, y], list(EDGES.values()), discard=False).tolist() == [0, 0, 1, 1, 0, 1, -1]


def test_flat_weights_are_inverse_to_the_counts_and_classes_equal() -> None:
    counts = np.array([[[10.0], [40.0]], [[100.0], [100.0]]])
    tables = weight_tables(counts, section())
    np.testing.assert_allclose(tables[0, :, 0], [0.9, 0.225])  # the scarcer class keeps 90 % of its scarcest bin
    np.testing.assert_allclose(counts * tables, [[[9], [9]], [[9], [9]]], rtol=1e-6)
    shared = weight_tables(counts, section(class_weights=(1.0, 4.0))) * counts
    assert shared[1].sum() / shared[0].sum() == pytest.approx(4)


def test_reference_weights_give_the_shape_of_the_first_class() -> None:
    counts = np.array([[[30.0], [10.0]], [[100.0], [100.0]]])
    used = weight_tables(counts, section(method="ref")) * counts
    assert used[1, 0, 0] / used[1, 1, 0] == pytest.approx(3)
    assert used[1].sum() == pytest.approx(used[0].sum())


def test_empty_bins_weigh_nothing_and_an_empty_class_is_named() -> None:
    tables = weight_tables(np.array([[[10.0], [0.0]], [[5.0], [5.0]]]), section())
    assert tables[0, 1, 0] == 0
    with pytest.raises(InputError, match="reweight_classes: b has no jets inside the bins of x and y"):
        weight_tables(np.array([[[10.0], [1.0]], [[0.0], [0.0]]]), section())
    with pytest.raises(InputError, match="b and a, its reference, have no filled bin in common"):
        weight_tables(np.array([[[10.0], [0.0]], [[0.0], [7.0]]]), section(method="ref"))


def test_a_jet_of_two_classes_counts_in_both_and_weighs_as_the_last() -> None:
    members = np.array([[True, True, False, False], [False, True, True, False]])
    jets = JetBins(np.array([0, 0, 1, 1]), members)
    assert class_histograms(jets, (2, 1))[:, :, 0].tolist() == [[2, 0], [1, 1]]
    tables = np.array([[[0.1], [0.2]], [[0.3], [0.4]]], np.float32)
    np.testing.assert_allclose(jet_weights(jets, tables), [0.1, 0.3, 0.4, 0])
    halved = JetBins(jets.bins, members, np.full(4, 0.5, np.float32))
    np.testing.assert_allclose(jet_weights(halved, tables), [0.05, 0.15, 0.2, 0])


# Below: whole jets in a shard folder. Falling pT, a peaked mass, three groups of very different size.

GROUPS = {"light": "jet_label == 187", "bb": "jet_label == 0", "four": "(jet_label >= 15) & (jet_label <= 20)"}
CONFIG: dict[str, Any] = {
    "selection": "(jet_pt > 200) & (jet_sdmass > 20)",
    "new_variables": GROUPS,
    "inputs": {"jet": {"length": None, "vars": ["jet_pt"]}},
    "labels": {"type": "custom", "value": {"truth": "jet_label"}},
    "weights": {
        "use_precomputed_weights": False,
        "reweight_method": "flat",
        "reweight_vars": {"jet_pt": [200, 300, 450, 700], "jet_sdmass": [20, 60, 100, 200]},
        "reweight_classes": list(GROUPS),
        "class_weights": [1, 0.5, 0.2],
        "reweight_threshold": 0,
    },
}


def changed(**weights: Any) -> dict[str, Any]:
    return CONFIG | {"weights": CONFIG["weights"] | weights}


@pytest.fixture(scope="module")
def jets() -> pa.Table:
    rng = np.random.default_rng(11)
    label = rng.choice([187, 0, 15, 20], 40_000, p=[0.7, 0.2, 0.06, 0.04])
    pt = 200 + rng.exponential(150, len(label))
    mass = np.abs(rng.normal(np.where(label == 0, 110, 40), 60))
    return pa.table({"jet_label": label.astype(np.int32), "jet_pt": pt.astype("f4"), "jet_sdmass": mass.astype("f4")})


@pytest.fixture
def shards(jets: pa.Table, tmp_path: Path) -> ShardSet:
    return as_shards(jets, tmp_path)


def as_shards(table: pa.Table, folder: Path) -> ShardSet:
    path = folder / "train.parquet"
    pq.write_table(table, path, row_group_size=1000)
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    rows = [min(1000, table.num_rows - begin) for begin in range(0, table.num_rows, 1000)]
    label, pt, mass = (table[name].to_numpy() for name in ("jet_label", "jet_pt", "jet_sdmass"))
    counts = np.bincount(label, minlength=len(CLASSES))
    groups = [RowGroup(path, index, number) for index, number in enumerate(rows)]
    return ShardSet(folder, "train", "toys", groups, counts, histogram(label, pt, mass), "hash")


def drawn(shards: ShardSet, jets: pa.Table, tree: dict[str, Any], **sampling: Any) -> tuple[Any, Any]:
    """The completed configuration, and the rows of `jets` that one pass draws."""
    data = load_data_config(yaml.safe_load(complete(tree, shards)))
    uses = plan_uses(shards, data, SamplingConfig(**sampling))
    features = data.apply(jets, training=True)
    chosen = systematic_draw(uses.of(features), round(uses.of(features).sum()), np.random.default_rng([1, 2, 3]))
    return data, features.rows[chosen]


def spectrum(jets: pa.Table, rows: Any, group: str) -> Any:
    """Drawn jets of a group in the bins of CONFIG, (3, 3)."""
    table = jets.take(rows)
    label, pt, mass = (table[name].to_numpy() for name in ("jet_label", "jet_pt", "jet_sdmass"))
    inside = {"light": label == 187, "bb": label == 0, "four": (label >= 15) & (label <= 20)}[group]
    return np.histogram2d(pt[inside], mass[inside], list(CONFIG["weights"]["reweight_vars"].values()))[0]


def chi2_per_bin(counts: Any) -> float:
    return float((((counts - counts.mean()) ** 2) / counts.mean()).mean())


def test_drawn_jets_are_flat_in_each_group_and_groups_stand_in_the_ratio_of_their_weights(
    shards: ShardSet, jets: pa.Table
) -> None:
    data, rows = drawn(shards, jets, CONFIG, max_repeat=100)
    counts = {group: spectrum(jets, rows, group) for group in GROUPS}
    stored = {group: spectrum(jets, np.arange(jets.num_rows), group) for group in GROUPS}
    for group in GROUPS:
        assert chi2_per_bin(counts[group]) < 1.5
        assert chi2_per_bin(stored[group]) > 50  # what it was
    total = {group: counts[group].sum() for group in GROUPS}
    assert total["bb"] / total["light"] == pytest.approx(0.5, rel=0.03)
    assert total["four"] / total["light"] == pytest.approx(0.2, rel=0.03)
    uses = plan_uses(shards, data, SamplingConfig(max_repeat=100))
    assert len(rows) == pytest.approx(uses.per_pass, rel=0.01)
    assert 0.5 < uses.per_pass / jets.num_rows <= 1  # as long as the data, in whole trials


def test_up_sampling_and_the_scale_of_weights_are_weavers(shards: ShardSet) -> None:
    data = load_data_config(yaml.safe_load(complete(CONFIG, shards)))
    assert data.weights is not None
    mean = data.weights.mean
    assert plan_uses(shards, data, SamplingConfig()).trials == min(int(1 / mean), 10)
    assert plan_uses(shards, data, SamplingConfig(up_sample=False)).trials == 1
    scaled = plan_uses(shards, data, SamplingConfig(weight_scale=0.5, max_repeat=1000))
    assert (scaled.trials, scaled.weight_scale) == (int(0.5 / mean), 0.5)


def test_the_same_seed_epoch_and_shard_draw_the_same_jets(shards: ShardSet, jets: pa.Table) -> None:
    data = load_data_config(yaml.safe_load(complete(CONFIG, shards)))
    features = data.apply(jets.slice(0, 1000), training=True)
    uses = plan_uses(shards, data, SamplingConfig()).of(features)
    first, again, other = (systematic_draw(uses, 256, np.random.default_rng([1, epoch, 5])) for epoch in (2, 2, 3))
    assert (first == again).all()
    assert (first != other).any()


def test_statistics_are_kept_beside_the_shards_and_read_back(shards: ShardSet, jets: pa.Table) -> None:
    text = complete(CONFIG, shards)
    (kept,) = (shards.folder / "auto").glob("*.auto.yaml")
    assert kept.read_text(encoding="utf-8") == text
    (shards.folder / "train.parquet").unlink()
    assert complete(CONFIG, shards) == text  # not measured again
    assert yaml.safe_load(complete(CONFIG, shards, weights=False)) == CONFIG
    assert complete(yaml.safe_load(text), shards) == text
    with pytest.raises(InputError, match=r"train\.parquet"):
        complete(changed(reweight_threshold=5), shards)


def test_the_manifest_tells_the_same_as_a_scan(shards: ShardSet, jets: pa.Table, caplog: Any) -> None:
    bins = {"jet_pt": list(PT_EDGES), "jet_sdmass": list(MASS_EDGES)}
    rectangle = "(jet_pt > 200) & (jet_pt < 2500) & (jet_sdmass > 20) & (jet_sdmass < 500)"
    tree = changed(reweight_vars=bins, reweight_threshold=10) | {"selection": rectangle}
    scanned = yaml.safe_load(complete(tree | {"selection": rectangle + " & (jet_label >= 0)"}, shards))
    (shards.folder / "train.parquet").unlink()
    told = yaml.safe_load(complete(tree, shards))
    assert told["weights"]["reweight_hists"] == scanned["weights"]["reweight_hists"]
    assert told["weights"]["statistics"]["jets"] == scanned["weights"]["statistics"]["jets"]
    mean = told["weights"]["statistics"]["mean_weight"]
    assert mean == pytest.approx(scanned["weights"]["statistics"]["mean_weight"], rel=1e-5)
    with pytest.raises(InputError, match=r"train\.parquet"):  # another selection needs the jets
        complete(tree | {"selection": "jet_pt > 300"}, shards)


def test_an_empty_class_is_an_error_with_its_formula_or_left_out_if_asked(
    shards: ShardSet, jets: pa.Table, caplog: Any
) -> None:
    tree = changed(reweight_classes=["light", "gg"], class_weights=[1, 1])
    tree |= {"new_variables": GROUPS | {"gg": "jet_label == 9"}}
    message = "reweight_classes: 1 of 2 have no jets in the bins of jet_pt and jet_sdmass: gg = 'jet_label == 9'"
    with pytest.raises(InputError, match=message):
        complete(tree, shards)
    data = load_data_config(yaml.safe_load(complete(tree, shards, skip_empty=True)))
    assert "gg = 'jet_label == 9'; they are left out" in caplog.text
    weights = data.apply(jets, training=True).weights
    assert weights is not None
    assert 0 < weights.max() <= 1
    nothing = changed(reweight_classes=["gg"], class_weights=[1]) | {"new_variables": {"gg": "jet_label == 9"}}
    with pytest.raises(InputError, match="1 of 1 have no jets"):
        complete(nothing, shards, skip_empty=True)


def test_a_class_that_the_label_scheme_drops_is_no_error(shards: ShardSet, jets: pa.Table) -> None:
    tree = changed(reweight_classes=["light", "bb", "four"])
    data = load_data_config(yaml.safe_load(complete(tree, shards, scheme="sophon42")), scheme="sophon42")
    features = data.apply(jets, training=True)
    assert features.weights is not None
    assert len(features) < (jets["jet_pt"].to_numpy() > 0).sum()
    assert (features.weights > 0).sum() > 1000


@pytest.mark.parametrize("discard", [True, False])
def test_jets_outside_the_bins_are_counted(shards: ShardSet, jets: pa.Table, caplog: Any, discard: bool) -> None:
    tree = changed(
        reweight_discard_under_overflow=discard, reweight_vars={"jet_pt": [250, 300, 400], "jet_sdmass": [20, 500]}
    )
    with caplog.at_level(logging.WARNING):
        data = load_data_config(yaml.safe_load(complete(tree, shards)))
    weights = data.apply(jets, training=True).weights
    assert weights is not None
    pt = jets["jet_pt"].to_numpy()[data.apply(jets, training=True).rows]
    outside = int(((pt < 250) | (pt > 400)).sum())
    assert (f"{outside} of {len(pt)} selected jets are outside the bins" in caplog.text) == discard
    assert (weights[pt < 250].max() == 0) == discard


def test_balance_follows_the_yaml_unless_told(shards: ShardSet) -> None:
    with_weights, without = load_data_config(CONFIG), load_data_config(CONFIG | {"weights": None})
    one_hot = load_data_config(CONFIG | {"weights": None, "labels": {"type": "simple", "value": ["light", "bb"]}})
    assert [balance_of(SamplingConfig(), data) for data in (with_weights, without, one_hot)] == [
        "yaml", "classes", "natural",
    ]  # fmt: skip
    assert balance_of(SamplingConfig(balance="groups"), with_weights) == "groups"
    assert plan_uses(shards, one_hot, SamplingConfig()).per_pass == shards.rows
    with pytest.raises(ConfigError, match="not measured yet"):
        plan_uses(shards, with_weights, SamplingConfig())
    with pytest.raises(ConfigError, match="balance=yaml, but it has no weights section"):
        plan_uses(shards, without, SamplingConfig(balance="yaml"))
    uses = plan_uses(shards, one_hot, SamplingConfig(balance="classes", max_repeat=1000))
    assert uses.of_class is not None
    assert len(uses.of_class) == 2


def test_centers_and_scales_are_percentiles_of_the_selected_jets(shards: ShardSet, jets: pa.Table) -> None:
    inputs = {"jet": {"length": None, "vars": ["jet_pt", ["jet_sdmass", None]]}}
    preprocess = {"method": "auto", "data_fraction": 1.0}
    text = complete(CONFIG | {"weights": None, "inputs": inputs, "preprocess": preprocess}, shards)
    pt, mass = jets["jet_pt"].to_numpy(), jets["jet_sdmass"].to_numpy()
    low, middle, high = np.percentile(pt[(pt > 200) & (mass > 20)], [16, 50, 84])
    variable, raw = load_data_config(yaml.safe_load(text)).inputs["jet"].variables
    assert (variable.center, variable.scale) == pytest.approx((middle, 1 / max(high - middle, middle - low)))
    assert raw.center is None
    part = complete(CONFIG | {"weights": None, "inputs": inputs, "preprocess": {"method": "auto"}}, shards)
    (sampled, _) = load_data_config(yaml.safe_load(part)).inputs["jet"].variables
    assert sampled.center != variable.center  # a tenth of the row groups
    assert sampled.center == pytest.approx(middle, rel=0.05)
    twice = {"jet": inputs["jet"], "more": {"length": None, "vars": [["jet_pt", None]]}}
    with pytest.raises(ConfigError, match=r"inputs\.more: jet_pt stands in another input with other numbers"):
        complete(CONFIG | {"weights": None, "inputs": twice, "preprocess": preprocess}, shards)


def test_auto_needs_a_selected_jet(shards: ShardSet) -> None:
    tree = CONFIG | {"weights": None, "selection": "jet_pt > 1e6", "preprocess": {"method": "auto"}}
    with pytest.raises(InputError, match="jet_pt: no value to standardise with"):
        complete(tree, shards)
    with pytest.raises(InputError, match="no jet of the train split passes the selection"):
        complete(CONFIG | {"selection": "jet_pt > 1e6"}, shards)
