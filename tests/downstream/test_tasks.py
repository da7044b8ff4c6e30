from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry import config
from jetfoundry.downstream.tasks import Task, load_tasks
from jetfoundry.downstream.truth import deltaR_pair
from jetfoundry.errors import ConfigError
from jetfoundry.features.jagged import Jagged

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


def test_scheme_task_takes_its_labels_from_jet_label():
    (task,) = load_tasks(TASKS / "xbb_vs_qcd.yaml")
    assert task.labels(truth_table()).tolist() == [0, 0, 0, 1]
    assert task.columns == ["jet_label"]


def test_a_list_file_and_a_folder_name_the_same_tasks():
    assert {task.name for task in load_tasks(TASKS / "demo.yaml")} == {"xbb_vs_qcd", "xbb_opening_angle"}
    assert {task.name for task in load_tasks(TASKS)} >= {"xbb_vs_qcd", "xbb_opening_angle"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": {"formula": "jet_lable"}}, "unknown column 'jet_lable'; nearest: jet_label"),
        ({"label": {}}, "give either a scheme or a formula"),
        ({"label": {"formula": "jet_label"}, "classes": ["a", "b"]}, "gives class 169, but 2 classes are named"),
        ({"label": {"formula": "aux_genpart_pid"}, "classes": ["a"]}, "one value per particle, wanted one per jet"),
        ({"compare": ["X_bbb vs QCD"]}, "X_bbb"),
    ],
)
def test_a_wrong_task_file_says_what_is_wrong(change, message):
    tree = {"name": "t", "title": "t", "label": {"scheme": "binary:X_bb vs QCD"}} | change
    with pytest.raises(ConfigError, match=message):
        config.build(Task, tree).labels(truth_table())
