from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry import config
from jetfoundry.downstream.tasks import Task, load_tasks
from jetfoundry.downstream.transfer import _OF_FIGURES
from jetfoundry.downstream.truth import deltaR_pair
from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.discriminants import parse
from jetfoundry.features.jagged import Jagged
from jetfoundry.labels import INDEX

TASKS = Path(__file__).resolve().parents[2] / "datasets" / "tasks"


def truth_table():
    """Three X->bb jets with deltaR(b, b) = 0.5, 0.25 across phi = pi, and a missing b; one QCD jet."""
    pid = [[25, 5, -5], [25, 5, -5], [25, 5], [5, -5]]
    eta = [[0.0, 0.1, 0.4], [0.0, 1.0, 1.0], [0.0, 0.1], [0.0, 0.0]]
    phi = [[0.0, 0.0, 0.4], [0.0, np.pi - 0.1, -np.pi + 0.15], [0.0, 0.0], [0.0, 0.05]]
    decay = [[False, True, True], [False, True, True], [False, True], [False, False]]
    types = {"pid": pa.int32(), "eta": pa.float32(), "phi": pa.float32(), "isResDecayProd": pa.bool_()}
    values = {"pid": pid, "eta": eta, "phi": phi, "isResDecayProd": decay}
    columns = {f"aux_genpart_{name}": pa.array(values[name], pa.list_(kind)) for name, kind in types.items()}
    return pa.table({**columns, "jet_label": pa.array([0, 0, 0, 169], pa.int32())})


def test_deltaR_pair_wraps_phi_and_needs_exactly_two_chosen_particles():
    offsets = np.array([0, 3, 5, 7])
    eta = Jagged(np.array([0.0, 0.3, 9.0, 1.0, 1.0, 0.0, 0.0]), offsets)
    phi = Jagged(np.array([0.0, 0.4, 9.0, 3.1, -3.1, 0.0, 1.0]), offsets)
    chosen = Jagged(np.array([True, True, False, True, True, True, False]), offsets)
    found = deltaR_pair(eta, phi, chosen)
    assert found[:2] == pytest.approx([0.5, 2 * np.pi - 6.2])
    assert np.isnan(found[2])


def test_opening_angle_bins_follow_deltaR_and_other_jets_take_no_part():
    (task,) = load_tasks(TASKS / "xbb_opening_angle.yaml")
    assert task.labels(truth_table()).tolist() == [5, 2, -1, -1]
    assert len(task.class_names) == 10


def test_one_vs_rest_adds_a_discriminant_for_each_class():
    (angle,) = load_tasks(TASKS / "xbb_opening_angle.yaml")
    assert len(angle.discriminants) == 1 + 10
    found = parse(angle.discriminants[3], angle.class_names)
    assert found.signal == (2,)
    assert sorted(found.background) == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_scheme_task_takes_its_labels_from_jet_label():
    (task,) = load_tasks(TASKS / "xbb_vs_qcd.yaml")
    assert task.labels(truth_table()).tolist() == [0, 0, 0, 1]
    assert task.columns == ["jet_label"]


def test_a_list_file_and_a_folder_name_the_same_tasks():
    assert {task.name for task in load_tasks(TASKS / "demo.yaml")} == {"xbb_vs_qcd", "xbb_opening_angle"}
    assert {task.name for task in load_tasks(TASKS)} >= {"xbb_vs_qcd", "xbb_opening_angle"}


def task(**changes):
    tree = {"name": "t", "title": "t", "label": {"scheme": "binary:X_bb vs QCD"}} | changes
    return config.build(Task, tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label": {"formula": "jet_lable"}, "classes": ["a"]},
            "no column 'jet_lable' in the table; nearest: jet_label",
        ),
        ({"selection": "X_bbb"}, "no column 'X_bbb' in the table; nearest: X_bb"),
        ({"label": {}}, "label: give one of scheme, formula, rules and target, got none"),
        ({"label": {"scheme": "sophon188", "target": "jet_pt"}}, "got scheme and target"),
        ({"label": {"formula": "aux_genpart_pid"}, "classes": ["a"]}, "one value per particle, wanted one per jet"),
        ({"label": {"formula": "jet_label"}}, "classes: a label formula, and nothing else, needs the names"),
        ({"label": {"rules": {"a": "X_bb"}, "unlabelled": "drop"}}, "label.unlabelled: wanted one of"),
        ({"label": {"rules": {"a": "X_bb"}, "unlabelled": "other"}}, "other: <class>"),
        ({"label": {"scheme": "binary:X_bb vs QCD", "overlapping": "error"}}, "only rules can overlap"),
        ({"compare": ["X_bbb vs QCD"]}, "X_bbb"),
        ({"compare": ["X_bb vs QCD"], "agree": [["X_bb vs QCD", "QCD vs X_bb"]]}, "agree: wanted pairs of"),
        ({"compare": ["X_bb vs QCD"], "agree": [["X_bb vs QCD"]]}, "agree: wanted pairs of"),
        ({"few": "drop"}, "few: wanted one of error, leave out"),
        ({"budget": {"evaluate_jets": -1}}, "jets and evaluate_jets >= 0"),
        ({"lable": {}}, "unknown key 'lable'; nearest: label"),
        ({"metrics": {"efficency": [0.3]}}, "unknown key 'metrics.efficency'; nearest: efficiencies"),
        ({"metrics": {"efficiencies": [1.5]}}, "metrics: wanted efficiencies between 0 and 1"),
        ({"variables": {"X_bb": "jet_pt"}}, "'X_bb' is no name for a variable"),
        ({"variables": {"a": "b", "b": "a"}}, "variables: a reads b, which does not stand above it"),
        ({"reweighting": {"variables": {"jet_pt": [200, 100]}}}, "reweighting: variables: wanted two"),
        ({"label": {"target": "jet_pt"}, "compare": ["a vs b"]}, "belong to classes, the label is a target"),
    ],
)
def test_a_wrong_task_file_says_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        task(**change).labels(truth_table())


def test_a_class_number_that_no_name_stands_for_is_an_error():
    with pytest.raises(InputError, match="task t, jets: the label formula gives class 169, but 2 classes are named"):
        task(label={"formula": "jet_label"}, classes=["a", "b"]).labels(truth_table())


def test_names_of_classes_groups_and_families_are_conditions():
    table = pa.table({"jet_label": pa.array([0, 5, 15, 187, 188], pa.int32())})
    named = task(label={"rules": {"two prongs": "X_QQ", "four": "X_YY_QQQQ", "QCD": "QCD"}, "unlabelled": "leave out"})
    assert named.labels(table).tolist() == [0, 0, 1, 2, -1]
    assert named.columns == ["jet_label"]


def test_a_scheme_has_no_class_for_jets_beyond_the_188():
    assert task().labels(pa.table({"jet_label": pa.array([0, 188, 161], pa.int32())})).tolist() == [0, -1, 1]


def five_jets():
    return pa.table({"x": [0.0, 1.0, 2.0, 3.0, np.nan], "jet_pt": [100.0, 200.0, 400.0, 800.0, 0.0]})


@pytest.mark.parametrize(
    ("fates", "expected"),
    [
        ({"unlabelled": "leave out", "overlapping": "leave out"}, [0, 0, -1, -1, -1]),
        ({"unlabelled": "other", "overlapping": "leave out", "other": "rest"}, [0, 0, -1, 2, 2]),
        ({"unlabelled": "other", "overlapping": "other", "other": "b"}, [0, 0, 1, 1, 1]),
    ],
)
def test_jets_without_a_class_or_with_several_go_where_the_file_says(fates, expected):
    ruled = task(label={"rules": {"a": "x < 2.5", "b": "(x > 1.5) & (x < 2.5)"}, **fates})
    assert ruled.labels(five_jets()).tolist() == expected
    assert ruled.class_names == (("a", "b", "rest") if fates.get("other") == "rest" else ("a", "b"))


def test_overlaps_and_gaps_are_errors_that_count_and_name_the_first_jet():
    rules = {"a": "x < 2.5", "b": "(x > 1.5) & (x < 2.5)"}
    message = r"task t, jets: 1 of 5 selected jets are in several classes, the first \(row 2\) in a and b"
    with pytest.raises(InputError, match=message):
        task(label={"rules": rules, "unlabelled": "leave out"}).labels(five_jets())
    message = "task t, jets: 2 of 5 selected jets have no class, the first in row 3; .* `unlabelled: leave out`"
    with pytest.raises(InputError, match=message):
        task(label={"rules": rules, "overlapping": "leave out"}).labels(five_jets())
    clean = task(label={"rules": rules}, selection="x < 1.5")  # what the selection leaves out is nobody's gap
    assert clean.labels(five_jets()).tolist() == [0, 0, -1, -1, -1]


def test_a_sample_says_how_its_jets_were_chosen_and_weighs_classes_alike():
    ruled = task(label={"rules": {"a": "x < 1.5", "b": "x == 2"}, "unlabelled": "leave out"}, selection="jet_pt > 0")
    found = ruled.sample(five_jets(), training=True)
    assert found.jets.tolist() == [0, 1, 2]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.weights.tolist() == [0.75, 0.75, 1.5]
    assert found.counts == {"jets": 5, "selected": 4, "unlabelled": 1, "overlapping": 0, "taken": 3, "outside_bins": 0}
    assert ruled.sample(five_jets(), training=False).weights.tolist() == [1, 1, 1]


def test_empty_classes_are_an_error_unless_allowed_and_two_must_have_jets():
    rules = {"a": "x < 1.5", "b": "x > 1.5", "c": "x > 99"}
    message = (
        r"task t, training jets: classes with less than 1 jets: c \(0\); 5 jets, 5 selected, 1 of them without label"
    )
    with pytest.raises(InputError, match=message):
        task(label={"rules": rules, "unlabelled": "leave out"}).sample(
            five_jets(), training=True, where="training jets"
        )
    allowed = task(label={"rules": rules, "unlabelled": "leave out"}, min_jets=0)
    assert allowed.sample(five_jets(), training=True).counts["taken"] == 4
    alone = task(label={"rules": rules, "unlabelled": "leave out"}, min_jets=0, selection="x > 1.5")
    with pytest.raises(InputError, match="only one class has jets"):
        alone.sample(five_jets(), training=True)
    with pytest.raises(InputError, match="no jet takes part: 5 jets, 0 selected"):
        task(label={"rules": rules}, selection="x > 99").sample(five_jets(), training=True)


def test_classes_with_few_jets_are_set_aside_and_counted_where_the_file_says():
    rules = {"a": "x < 10", "b": "(x >= 10) & (x < 30)", "c": "(x >= 30) & (x < 32)", "d": "x >= 32"}
    table = pa.table({"x": np.arange(33.0)})  # 10, 20, 2 and 1 jets
    aside = task(label={"rules": rules}, min_jets=5, few="leave out")
    for training in (True, False):
        found = aside.sample(table, training=training)
        assert np.bincount(found.labels, minlength=4).tolist() == [10, 20, 0, 0]
        assert (found.counts["in_small_classes"], found.counts["taken"]) == (3, 30)
        assert found.jets.tolist() == list(range(30))
    # What is left has all the weight of the loss: one jet of d has none of it, as 10 of a and 20 of b share it alike.
    assert aside.sample(table, training=True).weights[:10].sum() == pytest.approx(15)
    with pytest.raises(InputError, match=r"classes with less than 5 jets: c \(2\), d \(1\); .* `few: leave out`"):
        task(label={"rules": rules}, min_jets=5).sample(table, training=True)
    with pytest.raises(InputError, match=r"only one class has jets; .*13 in classes with less than 15 jets"):
        task(label={"rules": rules}, min_jets=15, few="leave out").sample(table, training=True)
    # The classes keep their numbers: those that are left out are left out of the jets, not of the outputs.
    assert aside.class_names == ("a", "b", "c", "d")


def test_glopart_leaves_out_classes_of_less_than_fifty_jets():
    (glopart,) = load_tasks(TASKS / "glopart.yaml")
    numbers = {"X_bb": 60, "X_cc": 50, "X_ss": 49, "QCD_light": 300}
    label = np.concatenate([np.full(n, INDEX[name]) for name, n in numbers.items()])
    flat = {name: np.full(len(label), value) for name, value in (("jet_pt", 500.0), ("jet_sdmass", 90.0))}
    found = glopart.sample(pa.table({"jet_label": label.astype(np.int32), **flat}), training=False)
    names = {glopart.class_names[number] for number in found.labels}
    assert names == {"H_bb", "H_cc", "QCD_0b0c"}
    assert found.counts["in_small_classes"] == 49


def test_regression_learns_the_logarithm_of_target_over_reference():
    found = task(label={"target": "x * 100", "relative_to": "jet_pt", "unlabelled": "leave out"})
    sample = found.sample(five_jets(), training=True)
    assert sample.jets.tolist() == [1, 2, 3]  # a target of 0 or NaN is none
    assert sample.labels == pytest.approx(np.log([0.5, 0.5, 0.375]))
    assert sample.reference * np.exp(sample.labels) == pytest.approx([100, 200, 300])
    with pytest.raises(InputError, match="2 of 5 selected jets have no target above 0"):
        task(label={"target": "x"}).labels(five_jets())


def test_the_budget_takes_the_same_jets_every_time_and_of_training_only():
    few = task(label={"rules": {"even": "x % 2 == 0", "odd": "x % 2 == 1"}}, budget={"jets": 50})
    table = pa.table({"x": np.arange(400)})
    first = few.sample(table, training=True)
    assert len(first.jets) == 50
    assert (np.diff(first.jets) > 0).all()
    assert first.jets.tolist() == few.sample(table, training=True).jets.tolist()
    assert len(few.sample(table, training=False).jets) == 400


def test_the_budget_of_evaluation_jets_is_drawn_once_and_of_evaluation_only():
    few = task(label={"rules": {"even": "x % 2 == 0", "odd": "x % 2 == 1"}}, budget={"evaluate_jets": 60})
    table = pa.table({"x": np.arange(400)})
    first = few.sample(table, training=False)
    assert (len(first.jets), first.counts["taken"], len(first.labels), len(first.weights)) == (60, 60, 60, 60)
    assert first.jets.tolist() == few.sample(table, training=False).jets.tolist()
    assert first.jets.max() > 300
    assert len(few.sample(table, training=True).jets) == 400


def test_reweighting_makes_classes_flat_and_equal_in_two_variables():
    rng = np.random.default_rng(1)
    number = rng.integers(0, 2, 20_000)
    x, y = rng.uniform(0, 1, 20_000) ** (1 + number), rng.uniform(0, 1, 20_000)
    rule = {"variables": {"x": [0.0, 0.25, 0.5, 0.75, 1.0], "y2": [0.0, 1.0, 2.0]}, "threshold": 1}
    flat = task(label={"formula": "n"}, classes=["a", "b"], variables={"y2": "y * 2"}, reweighting=rule, balance=False)
    found = flat.sample(pa.table({"x": x, "y": y, "n": number}), training=False)
    for label in (0, 1):
        ours = number == label
        sums = np.histogram(x[ours], [0, 0.25, 0.5, 0.75, 1], weights=found.weights[ours])[0]
        assert sums == pytest.approx(np.full(4, 2500), rel=0.03)
    assert found.weights.mean() == pytest.approx(1)


def test_reweighting_of_a_class_outside_all_bins_is_an_error():
    rule = {"variables": {"x": [0.0, 1.5], "jet_pt": [0.0, 1000.0]}}
    ruled = task(label={"rules": {"a": "x < 1.5", "b": "x > 1.5"}}, selection="jet_pt > 0", reweighting=rule)
    with pytest.raises(InputError, match="all 2 jets of class b lie outside the bins of x and jet_pt"):
        ruled.sample(five_jets(), training=True)


def test_baselines_are_finite_scores_of_the_same_jets():
    rules = {"rules": {"a": "x < 1.5", "b": "x > 1.5"}, "unlabelled": "leave out"}
    scored = task(label=rules, baselines={"pt": {"formula": "jet_pt", "compare": ["b vs a"]}})
    assert scored.sample(five_jets(), training=True).baselines["pt"].tolist() == [100, 200, 400, 800]
    with pytest.raises(InputError, match="baseline 'pt': 1 of 4 values are NaN or infinite"):
        task(label=rules, baselines={"pt": {"formula": "1 / x", "compare": ["b vs a"]}}).sample(
            five_jets(), training=True
        )


def test_a_trial_is_known_by_what_is_learnt_and_not_by_where_the_jets_lie():
    def learnt(**keys):
        return config.fingerprint(task(**keys), ignore=_OF_FIGURES)

    assert learnt(title="other", data="elsewhere") == learnt()
    assert learnt(selection="jet_pt > 300") != learnt()


def test_a_missing_simulation_file_or_shard_folder_is_named(tmp_path):
    file = tmp_path / "t.yaml"
    text = 'name: t\ntitle: t\nlabel: {scheme: "binary:X_bb vs QCD"}\ndata: nowhere\n'
    file.write_text(text + "simulation: sim.yaml\n")
    with pytest.raises(ConfigError, match=r"there is no file .*sim.yaml; it is looked for beside the task file"):
        load_tasks(file)
    (tmp_path / "sim.yaml").write_text("")
    (found,) = load_tasks(file)
    with pytest.raises(InputError, match=r"task t: no shards in nowhere .*sim.yaml makes such jets"):
        found.check_data()


def test_two_tasks_of_one_name_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task files"):
        load_tasks(tmp_path)
    for name, label in (("a", "X_bb"), ("b", "X_cc")):
        text = f'name: t\ntitle: t\nlabel: {{scheme: "binary:{label} vs QCD"}}\n'
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match="two different tasks are called 't'"):
        load_tasks(tmp_path)


def test_variables_that_read_two_others_each_are_followed_once():
    names = {"v0": "jet_pt", "v1": "jet_eta"} | {f"v{n}": f"v{n - 1} + v{n - 2}" for n in range(2, 90)}
    task = config.build(Task, {"name": "t", "title": "t", "variables": names, "label": {"target": "v89"}})
    assert task.columns == ["jet_eta", "jet_pt"]


def test_a_list_of_tasks_that_is_a_part_of_itself_is_an_error(tmp_path):
    (tmp_path / "list.yaml").write_text("tasks: [list.yaml]\n")
    with pytest.raises(ConfigError, match="is one a part of itself"):
        load_tasks(tmp_path / "list.yaml")


def test_names_that_no_file_can_have_are_not_there(tmp_path):
    (tmp_path / "list.yaml").write_text(f"tasks: [{'a' * 5000}]\n")
    with pytest.raises(ConfigError, match="cannot read"):
        load_tasks(tmp_path / "list.yaml")
    (tmp_path / "task.yaml").write_text("name: t\ntitle: t\nlabel: {scheme: sophon188}\nsimulation: " + "a" * 5000)
    with pytest.raises(ConfigError, match="there is no file"):
        load_tasks(tmp_path / "task.yaml")


def test_a_target_in_units_that_overflow_is_unlabelled():
    label = {"target": "jet_pt", "relative_to": "jet_pt * 1e-320", "unlabelled": "leave out"}
    task = config.build(Task, {"name": "t", "title": "t", "label": label})
    assert np.isnan(task.labels(pa.table({"jet_pt": pa.array([1e10, 2e10])}))).all()
