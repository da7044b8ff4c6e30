import json
import sys
import types

import pytest

from jetfoundry.errors import ConfigError
from jetfoundry.train.metrics_log import MlflowLog

ROWS = [
    {"step": 10, "epoch": 0.5, "loss": 5.1, "position": [0, 0, 1, [1]]},
    {"step": 20, "epoch": 1.0, "val_loss": 4.5, "val_auc/X_bb vs QCD": 0.75},
]


def log_twice(uri, folder):
    """A run that is interrupted after its first row and continued."""
    for row in ROWS:
        log = MlflowLog(uri, folder)
        log(row)
        log.close()
    return json.loads((folder / "mlflow.json").read_text())["run"]


@pytest.fixture
def stand_in(monkeypatch):
    """The few names of MLflow's client that we call, kept in a list."""
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("at", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("create", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run, status):
            calls.append((status, run))

        def log_batch(self, run, metrics):
            calls.extend((run, *metric[:2], metric[3]) for metric in metrics)

        def set_terminated(self, run):
            calls.append(("end", run))

    names = {"": {"MlflowClient": Client}, ".entities": {"Metric": lambda *fields: fields}}
    for name, content in {
        **names,
        ".exceptions": {"MlflowException": type("MlflowException", (Exception,), {})},
    }.items():
        module = types.ModuleType(f"mlflow{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_a_continued_run_is_one_run_of_mlflow(stand_in, tmp_path):
    assert log_twice("http://mlflow", tmp_path) == "abc"
    begin = [("at", "http://mlflow"), ("RUNNING", "abc")]
    first = [("abc", "epoch", 0.5, 10), ("abc", "loss", 5.1, 10), ("end", "abc")]
    second = [("abc", "epoch", 1.0, 20), ("abc", "val_loss", 4.5, 20), ("abc", "val_auc/X_bb vs QCD", 0.75, 20)]
    assert stand_in == [begin[0], ("create", "7", tmp_path.name), begin[1], *first, *begin, *second, ("end", "abc")]


@pytest.mark.filterwarnings("ignore")
def test_a_real_mlflow_has_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only one that mlflow-skinny can do without a server
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "store").as_uri()
    run = log_twice(uri, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run, "epoch")] == [(10, 0.5), (20, 1.0)]
    assert client.get_run(run).data.metrics["val_auc/X_bb vs QCD"] == 0.75
    assert client.get_run(run).info.status == "FINISHED"


def test_what_mlflow_refuses_ends_the_run_at_its_start_only(stand_in, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        msg = "no\n such table"
        raise sys.modules["mlflow.exceptions"].MlflowException(msg)

    log = MlflowLog("http://mlflow", tmp_path)
    monkeypatch.setattr(sys.modules["mlflow"].MlflowClient, "log_batch", refuse)
    log(ROWS[0])
    assert "MLflow did not take the row of step 10" in caplog.text
    monkeypatch.setattr(sys.modules["mlflow"].MlflowClient, "update_run", refuse)
    with pytest.raises(ConfigError, match="mlflow: http://mlflow cannot be used: no such table"):
        MlflowLog("http://mlflow", tmp_path)


def test_a_missing_mlflow_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="mlflow: the package is not installed: `pip install mlflow-skinny`"):
        MlflowLog("http://mlflow", tmp_path)
