import numpy as np
import pytest

from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.discriminants import SIGNALS, discriminant, group_outputs, outputs, parse, resolve
from jetfoundry.labels import CLASSES, FAMILIES, GROUPS, INDEX, label_scheme

RNG = np.random.default_rng(7)


def test_discriminant_by_hand():
    # Softmax numerators 2, 1, 1: D = 2 / (2 + 1 + 1).
    logits = np.log([[2.0, 1.0, 1.0, 9.0]])
    assert discriminant(logits, ["A", "B1", "B2", "C"], "A", "B1+B2") == pytest.approx([0.5])


def test_discriminant_equals_the_ratio_of_softmax_sums():
    logits = RNG.normal(size=(20, 188))
    g = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = g[:, 0] / (g[:, 0] + g[:, 161:].sum(axis=1))
    np.testing.assert_allclose(discriminant(logits, CLASSES), expected, rtol=1e-12)


def test_splitting_a_class_leaves_the_discriminant():
    whole = RNG.normal(size=(50, 3))
    share = RNG.random(50)
    split = np.column_stack([whole[:, 0] + np.log(share), whole[:, 0] + np.log(1 - share), whole[:, 1:]])
    before = discriminant(whole, ["A", "B", "C"], "A", "B")
    np.testing.assert_allclose(discriminant(split, ["A1", "A2", "B", "C"], "A1+A2", "B"), before, rtol=1e-12)


def test_adding_a_class_leaves_the_discriminant():
    logits, more = RNG.normal(size=(50, 3)), RNG.normal(scale=5, size=(50, 1))
    before = discriminant(logits, ["A", "B", "C"], "A", "B+C")
    after = discriminant(np.hstack([more, logits]), ["new", "A", "B", "C"], "A", "B+C")
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_the_order_of_the_class_list_does_not_matter():
    logits, order = RNG.normal(size=(30, 188)), RNG.permutation(188)
    shuffled = discriminant(logits[:, order], [CLASSES[i] for i in order])
    np.testing.assert_allclose(shuffled, discriminant(logits, CLASSES), rtol=1e-12)


def test_restriction_to_42_classes_leaves_the_discriminant():
    scheme, logits = label_scheme("sophon42"), RNG.normal(size=(30, 188))
    kept = [INDEX[name] for name in scheme.classes]
    np.testing.assert_allclose(discriminant(logits[:, kept], scheme.classes), discriminant(logits, CLASSES), rtol=1e-12)


def test_extreme_logits_neither_overflow_nor_tie_in_log_odds():
    found = parse("A vs B", ["A", "B"])
    logits = np.array([[80.0, 0.0], [90.0, 0.0], [0.0, 1000.0]], np.float32)
    assert found.log_odds(logits).tolist() == [80.0, 90.0, -1000.0]
    assert found(logits).tolist() == [1.0, 1.0, 0.0]


def test_half_precision_logits_are_summed_in_double():
    logits = RNG.normal(scale=3, size=(100, 188)).astype(np.float16)
    np.testing.assert_allclose(discriminant(logits, CLASSES), discriminant(logits.astype(np.float64), CLASSES))


def test_weights_multiply_the_summed_scores():
    # g_A = 0.3 * 2 + 0.6 * 1 = 1.2, g_B = 4
    logits = np.log([[2.0, 1.0, 4.0]])
    value = discriminant(logits, ["A1", "A2", "B"], "A1+A2", "B", weights={"A1": 0.3, "A2": 0.6})
    assert value == pytest.approx([1.2 / 5.2])


def test_named_signals_have_the_published_classes():
    # Sophon, BOOST 2024: W bump 5; top bump 41, 56, 70, 127, 128, 129; triboson with weights 0.3, 0.1, 0.6
    assert parse("W bump vs QCD", CLASSES).signal == (5,)
    assert sorted(parse("top bump vs QCD", CLASSES).signal) == [41, 56, 70, 127, 128, 129]
    triboson = parse("triboson vs QCD", CLASSES)
    by_weight = {
        w: {i for i, v in zip(triboson.signal, triboson.weights, strict=True) if v == w} for w in (0.1, 0.3, 0.6)
    }
    assert by_weight == {0.3: {5, 3}, 0.1: {33, 125, 63}, 0.6: {43, 44, 57, 59, 71, 72, 73}}
    assert set(SIGNALS) == {"W bump", "top bump", "triboson"}


def test_groups_and_families_expand_to_their_outputs():
    assert outputs("X_QQ", CLASSES) == tuple(range(9))
    assert outputs("QCD", label_scheme("sophon42").classes) == tuple(range(15, 42))


def test_outputs_of_a_binary_scheme_are_found_by_their_own_names():
    scheme = label_scheme("binary:X_bb+X_cc vs QCD")
    assert outputs("X_bb+X_cc", scheme.classes) == (0,)
    assert outputs("QCD", scheme.classes) == (1,)


def test_unknown_names_get_the_nearest_output():
    with pytest.raises(ConfigError, match=r"has not output 'X_bbb'.*nearest: .*X_bb"):
        outputs("X_bbb", CLASSES)


def test_a_group_of_which_the_model_lacks_classes_is_refused():
    classes = [name for name in CLASSES if name != "QCD_b"]
    with pytest.raises(ConfigError, match=r"has not all of group 'QCD' \(lacks QCD_b\)"):
        outputs("QCD", classes)
    with pytest.raises(ConfigError, match=r"all of group 'X_YY_QQQQ'.*42 outputs"):
        outputs("X_YY_QQQQ", label_scheme("sophon42").classes)


def test_overlapping_sides_repeats_and_bad_weights_are_refused():
    with pytest.raises(ConfigError, match="QCD_b stands on both sides"):
        parse("QCD_b vs QCD", CLASSES)
    with pytest.raises(ConfigError, match="twice: X_bb"):
        outputs("X_bb+X_QQ", CLASSES)
    with pytest.raises(ConfigError, match="wanted 'A vs B'"):
        parse("X_bb", CLASSES)
    with pytest.raises(ConfigError, match="for a part of X_bb"):
        resolve("X_bb", "QCD", CLASSES, {"X_cc": 0.5})
    with pytest.raises(ConfigError, match="wanted a number > 0"):
        resolve("X_bb", "QCD", CLASSES, {"X_bb": 0.0})


def test_logits_of_another_model_or_not_finite_are_refused():
    found = parse("X_bb vs QCD", CLASSES)
    with pytest.raises(InputError, match="of the model it was made for"):
        found(np.zeros((2, 42)))
    logits = np.zeros((2, 188))
    logits[1, 170] = np.inf
    with pytest.raises(InputError, match="background logits: 1 of 54"):
        found(logits)


def test_every_output_falls_into_its_group():
    names, group = group_outputs(CLASSES)
    assert names == tuple(GROUPS)
    assert all(i in GROUPS[names[group[i]]] for i in range(188))
    families, family = group_outputs(CLASSES, FAMILIES)
    assert families == ("Res2P", "Res34P", "QCD")
    assert np.bincount(family).tolist() == [15, 146, 27]


def test_groups_of_restricted_merged_and_foreign_outputs():
    names, group = group_outputs(("QCD", "X_bb+X_cc", "X_bb+X_gg", "b-jet"))
    assert [names[i] for i in group] == ["QCD", "X_QQ", "X_bb+X_gg", "b-jet"]
    assert names == ("X_QQ", "QCD", "X_bb+X_gg", "b-jet")
