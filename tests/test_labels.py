import numpy as np
import pytest

from jetfoundry.errors import ConfigError
from jetfoundry.labels import CLASSES, FAMILIES, GROUP_WEIGHTS, GROUPS, INDEX, label_scheme, select_classes


def test_there_are_188_different_classes_in_the_published_order():
    assert len(CLASSES) == len(set(CLASSES)) == 188
    published = {0: "X_bb", 9: "X_gg", 14: "X_tauhtauh", 15: "X_YY_bbbb", 63: "X_YY_qqqq", 94: "X_YY_gee"}
    published |= {119: "X_YY_ccbs", 131: "X_YY_bcev", 160: "X_YY_qqtauhv", 161: "QCD_bbccss", 187: "QCD_light"}
    assert {i: CLASSES[i] for i in published} == published


def test_families_and_groups_each_hold_every_class_exactly_once():
    for partition in (FAMILIES, GROUPS):
        assert sorted(i for indices in partition.values() for i in indices) == list(range(188))
    assert [len(FAMILIES[name]) for name in ("Res2P", "Res34P", "QCD")] == [15, 146, 27]
    assert len(GROUPS) == len(GROUP_WEIGHTS) == 30


@pytest.mark.parametrize(("group", "letters"), [("X_YY_QQQQ", 4), ("X_YY_QQQ", 3)])
def test_quark_groups_hold_only_quark_classes(group, letters):
    names = [CLASSES[i].removeprefix("X_YY_") for i in GROUPS[group]]
    assert all(len(name) == letters and set(name) <= set("bcsq") for name in names)


def test_qcd_index_is_161_plus_9_and_3_times_the_missing_quarks():
    for nb in range(3):
        for nc in range(3):
            for ns in range(3):
                index = 161 + 9 * (2 - nb) + 3 * (2 - nc) + (2 - ns)
                assert CLASSES[index] == "QCD_" + ("b" * nb + "c" * nc + "s" * ns or "light")


def test_sophon42_drops_the_146_three_and_four_prong_classes():
    scheme = label_scheme("sophon42")
    assert scheme.num_classes == 42
    assert scheme.apply([0, 14, 15, 160, 161, 187]).tolist() == [0, 14, -1, -1, 15, 41]


def test_binary_scheme_puts_the_first_side_at_zero():
    scheme = label_scheme("binary:X_bb+X_cc vs QCD")
    assert scheme.classes == ("X_bb+X_cc", "QCD")
    assert scheme.apply(np.array([0, 1, 2, 161, 187])).tolist() == [0, 0, -1, 1, 1]


def test_glopart_counts_charm_among_the_quarks_and_b_before_c_in_qcd():
    scheme = label_scheme("glopart32")
    assert scheme.num_classes == 32
    assert set(scheme.table) == {-1, *range(32)}  # every output has a class
    members = dict(zip(scheme.classes, scheme.members, strict=True))
    for name, classes in members.items():
        if name.startswith(("H_VV", "H_WW")):
            quarks = [word.removeprefix("X_YY_").removesuffix("v").split("tau")[0].rstrip("em") for word in classes]
            assert {word.count("c") for word in quarks} == {int(name[-2])}
            assert all("b" not in word for word in quarks)
    assert sum(len(members[name]) for name in members if name.startswith("QCD")) == 27
    assert set(members["QCD_1b"]) == {name for name in CLASSES if name.startswith("QCD") and name.count("b") == 1}
    assert not set(scheme.classes) & set(CLASSES)  # names of merged classes never mean a class of JetClass-II


def test_class_list_hash_changes_with_the_order():
    assert label_scheme("binary:X_bb vs QCD").hash != label_scheme("binary:QCD vs X_bb").hash


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(ConfigError, match=r"'sophon118'; nearest: sophon188"):
        label_scheme("sophon118")
    with pytest.raises(ConfigError, match=r"'X_bbb'; nearest: .*X_bb"):
        select_classes("X_bbb")
    with pytest.raises(ConfigError, match="X_bb stands on both sides"):
        label_scheme("binary:X_bb vs X_QQ")
    with pytest.raises(ConfigError, match="wanted 'binary:<A> vs <B>'"):
        label_scheme("binary:X_bb")


def test_index_is_the_inverse_of_the_class_list():
    assert all(INDEX[name] == i for i, name in enumerate(CLASSES))
