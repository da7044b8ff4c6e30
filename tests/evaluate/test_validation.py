import json
import math

import numpy as np
import pytest

from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.validation import EvaluationConfig, discriminants_of, evaluate_scores
from jetfoundry.labels import CLASSES, label_scheme


def scored(labels, num_classes=188, seed=0):
    logits = np.random.default_rng(seed).normal(size=(len(labels), num_classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 2
    return logits


def test_figures_of_a_binary_model_by_hand():
    # Log-odds: signal 2, 1; background 0, 1.5: pairs won (2,0) (2,1.5) (1,0) -> AUC 3/4; accuracy: jet 3 wrong.
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5], [1.5, 0.0]])
    figures = evaluate_scores(logits, [0, 0, 1, 1], ("X_bb", "QCD"))
    assert figures["accuracy"] == 0.75
    only = figures["discriminants"]["X_bb vs QCD"]
    assert (only["signal_jets"], only["background_jets"], only["auc"]) == (2, 2, 0.75)
    assert [point["efficiency"] for point in only["rejections"]] == [0.3, 0.5]
    assert all(point["is_lower_bound"] for point in only["rejections"])
    assert figures["bound_confidence"] == 0.95


def test_everything_is_json_with_classes_missing_from_the_sample():
    labels = np.array([3, 3, 20, 100])  # neither X_bb nor QCD
    figures = evaluate_scores(scored(labels), labels, CLASSES, {"jet_pt": np.array([250.0, 700.0, 5000.0, 300.0])})
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    only = figures["discriminants"]["X_bb vs QCD"]
    assert (only["auc"], only["rejections"][0]["rejection"]) == (None, None)
    assert figures["classes_with_jets"] == 3


def test_an_empty_sample_does_not_crash():
    figures = evaluate_scores(np.empty((0, 188)), np.empty(0, np.int64), CLASSES, {"jet_pt": np.empty(0)})
    assert (figures["jets"], figures["accuracy"], figures["loss"]) == (0, None, None)
    json.dumps(figures, allow_nan=False)


def test_jets_of_dropped_classes_are_counted_and_change_nothing():
    scheme = label_scheme("sophon42")
    kept = np.array([0, 0, 20, 41])
    logits = scored(kept, 42)
    extra = np.vstack([logits, np.full((2, 42), 9.0, np.float32)])
    pt = np.full(6, 500.0)
    with_dropped = evaluate_scores(extra, [*kept, -1, -1], scheme.classes, {"jet_pt": pt})
    assert with_dropped.pop("jets_without_class") == 2
    plain = evaluate_scores(logits, kept, scheme.classes, {"jet_pt": pt[:4]})
    assert plain.pop("jets_without_class") == 0
    assert with_dropped == plain


def test_pt_ranges_share_out_all_jets_inside_the_edges():
    labels = np.repeat([0, 187], 50)
    pt = np.tile(np.linspace(200, 2499, 50), 2)
    figures = evaluate_scores(scored(labels), labels, CLASSES, {"jet_pt": pt})["discriminants"]["X_bb vs QCD"]
    assert sum(part["signal_jets"] for part in figures["jet_pt_ranges"]) == figures["signal_jets"] == 50
    assert [part["jet_pt_min"] for part in figures["jet_pt_ranges"]] == [200, 400, 600, 1000]


def test_group_accuracy_forgives_confusion_inside_a_group():
    logits = np.zeros((2, 188))
    logits[0, 1] = logits[1, 9] = 1.0  # X_bb called X_cc (same group), X_bb called X_gg (another)
    figures = evaluate_scores(logits, [0, 0], CLASSES)
    assert (figures["accuracy"], figures["group_accuracy"]) == (0.0, 0.5)


def test_default_discriminants_follow_the_class_list():
    assert [d.name for d in discriminants_of(CLASSES)] == ["X_bb vs QCD"]
    assert [d.name for d in discriminants_of(("near", "far"))] == ["near vs far"]
    assert discriminants_of(("b", "c", "light")) == []


def test_a_discriminant_asked_for_but_unknown_is_an_error():
    with pytest.raises(ConfigError, match="X_bs"):
        discriminants_of(CLASSES, ("X_bs vs QCD",))


def test_wrong_shapes_and_options_are_named():
    with pytest.raises(InputError, match=r"wanted shape \(2, 188\).*got \(2, 42\)"):
        evaluate_scores(np.zeros((2, 42)), [0, 1], CLASSES)
    with pytest.raises(InputError, match="observer jet_pt: wanted 2 values"):
        evaluate_scores(np.zeros((2, 188)), [0, 1], CLASSES, {"jet_pt": [1.0]})
    with pytest.raises(InputError, match="logits: 1 of 376"):
        evaluate_scores(np.where(np.eye(2, 188, k=5) * [[1], [0]] > 0, math.nan, 0.0), [0, 1], CLASSES)
    with pytest.raises(ValueError, match="between 0 and 1"):
        EvaluationConfig(efficiencies=(30.0,))
    with pytest.raises(ValueError, match="rising"):
        EvaluationConfig(pt_edges=(400.0, 200.0))
