from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


def test_runtime_env_sends_the_library_and_leaves_data_and_runs_at_home():
    env = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert env["py_modules"] == ["platform/jetfoundry"]
    assert env["working_dir"] == "."
    assert {"/data/", "/runs/", ".venv/"} <= set((CLUSTER.parent / ".gitignore").read_text().split())
    rooms = {path.name for path in (CLUSTER.parent / "platform" / "jetfoundry").iterdir()}
    assert not rooms & set(env["excludes"])  # an unanchored `data` would leave the library's data/ behind


def test_autoscaling_cluster_passes_rays_own_validation():
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(tree))
    tree["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(tree))
