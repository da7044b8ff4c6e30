"""Every file of cluster/, offline, by the most real check of its kind: Ray's own, EC2 imitated, Kubernetes' schemas."""

from __future__ import annotations

import copy
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
BIN = Path(sys.executable).parent


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def code_of(path: Path) -> str:
    """A file without its comments; those of Slurm are options."""
    lines = path.read_text().splitlines()
    return "\n".join(re.sub(r"(^|\s)#(?!SBATCH|!).*", "", line) for line in lines)


# ---- what no file may hold


FORBIDDEN = {
    r"0\.0\.0\.0": "listens on, or opens, every address",
    r"(?i)hostNetwork|LoadBalancer|NodePort|kind:\s*Ingress": "a way in from outside Kubernetes",
    r"symmetric-run": "ends other people's Ray",
    r"RAY_AUTH_MODE[=:\s\"']+(?!token)": "without the token",
    r"RAY_AUTH_TOKEN\b": "a secret belongs into a file, RAY_AUTH_TOKEN_PATH, or a Secret",
    r"\b[0-9a-f]{32,}\b": "looks like a secret",
    r"(?i)aws_secret|aws_access_key|private_key:\s*-----|password": "a secret",
    r"kill(all)?\s+-f|pkill|killall": "kills by name",
    r"--dashboard-host=(?!127\.0\.0\.1)": "a dashboard for others",
}


def faults(path: Path, text: str) -> list[str]:
    found = [f"{path.name}: {re.search(bad, text)!r}: {why}" for bad, why in FORBIDDEN.items() if re.search(bad, text)]
    if "ray stop" in text and path.name not in ("aws.yaml", "gcp.yaml"):  # there in a container that is ours alone
        found.append(f"{path.name}: `ray stop` ends every Ray of this user on the machine")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_opens_anything_to_the_world_or_holds_a_secret_or_ends_what_is_not_its_own(path):
    assert not faults(path, code_of(path))
    starts_ray = re.search(r"ray start|ray_node\.sh|RayCluster|RayJob|python ", code_of(path))
    sets_mode = re.search(r"RAY_AUTH_MODE=token|authOptions: \{mode: token\}", code_of(path))
    assert sets_mode or not starts_ray, "RAY_AUTH_MODE is left to whatever the machine has set"


BAD = """--dashboard-host=0.0.0.0 | hostNetwork: true | type: NodePort | - ray stop | export RAY_AUTH_MODE=disabled |
RAY_AUTH_TOKEN=abc | token: 0123456789abcdef0123456789abcdef | srun ray symmetric-run | --dashboard-host=::"""


@pytest.mark.parametrize("bad", [line.strip() for line in BAD.split("|")])
def test_the_search_for_forbidden_things_finds_them(bad):
    assert faults(CLUSTER / "onprem.yaml", bad)


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "runtime_env.yaml"], ids=lambda path: path.name)
def test_every_file_begins_by_telling_what_it_starts_and_those_that_start_machines_also_cost_and_stop(path):
    lines = path.read_text().splitlines()
    about = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert len(about) > 3
    if path.suffix in (".yaml", ".sub") or path.name == "slurm.sh":
        text = "\n".join(about).lower()
        assert "cost" in text
        assert re.search(r"sizes|16 tasks", text + path.read_text())
        assert re.search(r"ray down|kubectl delete|condor_rm|scancel|ray_node.sh stop", text)


# ---- what `ray job submit` sends


def test_runtime_env_sends_the_library_and_leaves_data_and_runs_at_home():
    env = load("runtime_env.yaml")
    assert env["py_modules"] == ["platform/jetfoundry"]
    assert env["working_dir"] == "."
    assert {"/data/", "/runs/", ".venv/"} <= set((ROOT / ".gitignore").read_text().split())
    rooms = {path.name for path in (ROOT / "platform" / "jetfoundry").iterdir()}
    assert not rooms & set(env["excludes"])  # an unanchored `data` would leave the library's data/ behind


# ---- `ray up`


def checked(tree: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(tree))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_cloud_clusters_pass_rays_own_validation(name):
    tree = load(name)
    types = checked(tree)["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert [types[kind]["min_workers"] for kind in ("cpu", "gpu")] == [0, 0]
    assert sum(types[kind]["max_workers"] for kind in ("cpu", "gpu")) <= tree["max_workers"]
    spot = {kind for kind, node in types.items() if re.search("spot", json.dumps(node["node_config"]), re.IGNORECASE)}
    assert spot == {"cpu", "gpu"}  # never the head
    assert tree["docker"]["run_options"][0] == "--env RAY_AUTH_MODE=token"
    assert "~/.ray/auth_token" in tree["file_mounts"]
    for spoil in (
        lambda t: t["available_node_types"]["gpu"].update(max_worker=3),
        lambda t: t["available_node_types"]["gpu"].update(min_workers=9),
        lambda t: t.update(head_node_type="hed"),
        lambda t: t["docker"].update(run_option=["--privileged"]),
    ):
        spoilt = copy.deepcopy(tree)
        spoil(spoilt)
        with pytest.raises(Exception, match=r"max_worker|min_workers|head_node_type|run_option"):
            checked(spoilt)


@pytest.fixture
def imitated_aws(monkeypatch, tmp_path):
    """EC2 and IAM in this process; Ray writes its SSH key into a home of its own."""
    moto = pytest.importorskip("moto")
    import boto3

    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}
    for name, value in {**names, "HOME": str(tmp_path), "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        iam = boto3.client("iam")  # where Ray must make this role, it waits 15 s for it
        iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
        iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(InstanceProfileName="ray-autoscaler-v1", RoleName="ray-autoscaler-v1")
        yield boto3.resource("ec2")


def test_ray_launches_the_aws_machines_on_an_imitation_of_ec2_and_opens_nothing(imitated_aws):
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    (vpc,) = imitated_aws.vpcs.all()
    group = imitated_aws.create_security_group(GroupName="jetfoundry", Description="ours", VpcId=vpc.id)
    (placeholder,) = set(re.findall(r"sg-\w+", code_of(CLUSTER / "aws.yaml")))
    text = (CLUSTER / "aws.yaml").read_text().replace(placeholder, group.id)
    config = bootstrap_aws(checked(yaml.safe_load(text)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-user-node-type": kind, "ray-node-kind": "worker"}, 1)

    machines = {machine.instance_type: machine for machine in imitated_aws.instances.all()}
    market = {kind: machine.instance_lifecycle for kind, machine in machines.items()}
    assert market == {"m6i.2xlarge": None, "m6i.4xlarge": "spot", "g5.12xlarge": "spot"}
    for machine in machines.values():
        assert [held["GroupId"] for held in machine.security_groups] == [group.id]
        assert [disk["Ebs"]["DeleteOnTermination"] for disk in machine.block_device_mappings] == [True]
    # Without SecurityGroupIds Ray makes a group that opens SSH to the whole internet.
    group.reload()
    assert not group.ip_permissions
    assert {held.group_name for held in imitated_aws.security_groups.all()} == {"default", "jetfoundry"}


def misfits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str) -> list[str]:
    """Where `value` is not of the type that a Google API's own description gives."""
    schema = schemas.get(schema.get("$ref", ""), schema)
    kind = {"object": dict, "array": list, "string": (str, int), "boolean": bool, "integer": int}[schema["type"]]
    if not isinstance(value, kind) or value not in schema.get("enum", [value]):
        return [f"{at}: {value!r} is no {schema.get('enum', schema['type'])}"]
    if isinstance(value, list):
        return [fault for item in value for fault in misfits(item, schema["items"], schemas, at)]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    found = [f"{at}.{key} is unknown" for key in value if key not in known]
    return found + [f for key in value if key in known for f in misfits(value[key], known[key], schemas, f"{at}.{key}")]


def test_gcp_machines_fit_googles_own_description_and_its_network_is_not_the_open_one():
    documents = importlib.resources.files("googleapiclient.discovery_cache") / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text())["schemas"]
    for kind, node in load("gcp.yaml")["available_node_types"].items():
        machine = node["node_config"]
        assert not misfits(machine, schemas["Instance"], schemas, kind)
        (interface,) = machine["networkInterfaces"]
        assert "default" not in interface["subnetwork"]  # that one lets in SSH from the whole internet
        assert machine["tags"]["items"]
        (disk,) = machine["disks"]
        assert disk["initializeParams"]["diskType"].endswith("pd-balanced")  # G2 takes no pd-standard, the default
        spoilt = {**machine, "scheduling": [{"preemptible": True}], "machinetype": "n2-standard-8"}
        assert len(misfits(spoilt, schemas["Instance"], schemas, kind)) == 2


def test_on_premises_cluster_passes_rays_own_validation_and_ends_nothing_that_is_not_its_own():
    prepared = checked(load("onprem.yaml"))
    (workers,) = prepared["available_node_types"].values()
    assert (workers["min_workers"], workers["max_workers"]) == (1, 2)
    # Ray's own commands, which begin with `ray stop`, are filled in wherever a list is missing.
    assert "ray stop" not in json.dumps(prepared)
    commands = [prepared[f"{kind}_start_ray_commands"] for kind in ("head", "worker")]
    assert all("ray_node.sh restart" in command for (command,) in commands)


# ---- shell


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_clean(path):
    subprocess.run(["bash", "-n", path], check=True)
    result = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "onprem.yaml"])
def test_shell_commands_in_the_yamls_are_clean(name):
    prepared = checked(load(name))
    kinds = ["initialization", "setup", "head_start_ray", "worker_start_ray"]
    text = "\n".join(
        line for kind in kinds for line in prepared[f"{kind}_commands"] if not line.startswith(("which", "("))
    )
    command = [BIN / "shellcheck", "--shell=bash", "--exclude=SC2086", "-"]  # $RAY_HEAD_IP has no spaces
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# ---- Kubernetes


def kuberay(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    resource, policy = yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text())
    return resource, policy


def spec_of(name: str) -> dict[str, Any]:
    resource, _ = kuberay(name)
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    return dict(spec)


def pods_of(name: str) -> list[dict[str, Any]]:
    spec = spec_of(name)
    pods = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    job, _ = kuberay(name)
    return pods + [job["spec"][key] for key in job["spec"] if key == "submitterPodTemplate"]


def check_resource(resource: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


BOTH = pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])


@BOTH
def test_pods_and_policies_fit_the_schemas_of_kubernetes(name):
    _, policy = kuberay(name)
    check_resource(policy)
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for template in pods_of(name):
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        pod["metadata"]["name"] = "pod"
        check_resource(pod)
        assert template["metadata"]["labels"] == labels  # whom the policy shuts off
        spoilt = copy.deepcopy(pod)
        spoilt["spec"]["containers"][0]["ressources"] = {}
        with pytest.raises(Exception, match="ressources"):
            check_resource(spoilt)


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required.split(), "additionalProperties": False
    }  # fmt: skip


NAME, NUMBER, FLAG, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}, {"type": "object"}
PARAMETERS = {"type": "object", "additionalProperties": NAME}  # a number without quotes is refused by Kubernetes
# The fields that we use of KubeRay's ray.io/v1, by its API reference (1.7); pods are checked above.
CLUSTER_SPEC = closed(
    "headGroupSpec",
    rayVersion=NAME,
    enableInTreeAutoscaling=FLAG,
    authOptions=closed("mode", mode={"enum": ["disabled", "token"]}),
    autoscalerOptions=closed(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=NUMBER,
        resources=ANY,
    ),
    headGroupSpec=closed("template", serviceType={"const": "ClusterIP"}, rayStartParams=PARAMETERS, template=ANY),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName template maxReplicas minReplicas",
            groupName=NAME, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, rayStartParams=PARAMETERS,
            template=ANY,
        ),
    },
)  # fmt: skip
JOB_SPEC = closed(
    "rayClusterSpec entrypoint",
    entrypoint=NAME, runtimeEnvYAML=NAME, submitterPodTemplate=ANY, backoffLimit=NUMBER, activeDeadlineSeconds=NUMBER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=NUMBER, rayClusterSpec=CLUSTER_SPEC,
)  # fmt: skip


@BOTH
def test_kuberay_resources_have_the_fields_of_its_reference_and_no_others(name):
    import jsonschema

    resource, _ = kuberay(name)
    assert resource["apiVersion"] == "ray.io/v1"
    schema = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}[resource["kind"]]
    jsonschema.validate(resource["spec"], schema)
    resource["spec"]["idleTimeout"] = 60
    with pytest.raises(jsonschema.ValidationError, match="idleTimeout"):
        jsonschema.validate(resource["spec"], schema)


@BOTH
def test_rays_autoscaler_reads_the_kuberay_cluster_as_we_mean_it(name):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "jetfoundry", "namespace": "default"}, "spec": spec_of(name)}
    config = _derive_autoscaling_config_from_ray_cr(resource)  # validates it, too
    assert config["idle_timeout_minutes"] == 10
    types = config["available_node_types"]
    shapes = {kind: (node["resources"]["CPU"], node["resources"].get("GPU", 0)) for kind, node in types.items()}
    assert shapes == {"headgroup": (0, 0), "cpu": (16, 0), "gpu": (32, 4)}
    limits = {kind: (node["min_workers"], node["max_workers"]) for kind, node in types.items()}
    assert limits == {"headgroup": (0, 0), "cpu": (0, 6), "gpu": (0, 2)}


def test_ray_version_is_the_one_that_is_pinned():
    assert {spec_of(name)["rayVersion"] for name in ("raycluster.yaml", "rayjob.yaml")} == {version("ray")}
    assert f"rayproject/ray:{version('ray')}-" in (CLUSTER / "Dockerfile").read_text()


def test_the_job_has_the_cluster_of_the_cluster_file():
    cluster, job = spec_of("raycluster.yaml"), spec_of("rayjob.yaml")
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    renamed = json.loads(json.dumps(job).replace("jetfoundry-pretrain", "jetfoundry"))
    assert renamed == cluster


def test_the_jobs_runtime_env_is_one():
    from ray.runtime_env import RuntimeEnv

    job, _ = kuberay("rayjob.yaml")
    env = RuntimeEnv(**yaml.safe_load(job["spec"]["runtimeEnvYAML"]))
    assert env["working_dir"].startswith("local:///shared/")


# ---- HTCondor


@pytest.mark.parametrize("name", ["jetfoundry.sub", "glidein.sub"])
def test_htcondor_reads_the_submit_files_as_we_mean_them(name):
    htcondor = pytest.importorskip("htcondor2", reason="HTCondor's bindings have no wheel for this platform")
    classad = pytest.importorskip("classad2")
    text = (CLUSTER / "htcondor" / name).read_text()
    submit = htcondor.Submit("nodes = 3\ngpus = 2\ncommand = jobs/pretrain.py recipe.yaml run=/run\n" + text)
    assert submit.expand("request_gpus") == "2"
    assert "jobs/pretrain.py recipe.yaml run=/run" in submit.expand("arguments")
    assert submit.expand("MY.MaxRuntime") == "86400"
    assert submit.getQArgs().strip() in ("", "1", "3", "$(nodes:4)")
    for path in [submit["executable"], *submit["transfer_input_files"].split(", ")]:
        assert (ROOT / path).exists()
    done = {code: leaves(classad, submit["on_exit_remove"], code) for code in (0, 1, 130)}
    assert done == {0: True, 1: True, 130: False}  # 130: a checkpoint was written, go on
    assert leaves(classad, submit["on_exit_remove"], 130, starts=20)  # not for ever
    used = set(submit) - {"nodes", "gpus", "command", "MY.MaxRuntime"}
    assert used <= set(SUBMIT_COMMANDS.split())  # the parser keeps what it does not know
    with pytest.raises(ValueError, match="parse"):
        htcondor.Submit(text.replace("request_cpus            =", "request_cpus "))


SUBMIT_COMMANDS = """universe container_image executable arguments transfer_input_files should_transfer_files
when_to_transfer_output transfer_output_files environment request_cpus request_gpus request_memory request_disk kill_sig
job_max_vacate_time on_exit_remove log output stream_output"""


def leaves(classad: Any, expression: str, code: int, starts: int = 1) -> bool:
    ad = classad.ClassAd({"ExitBySignal": False, "ExitCode": code, "NumJobStarts": starts})
    ad["leaves"] = classad.ExprTree(expression)
    return bool(ad.eval("leaves"))


# ---- the image


def test_dockerfile_is_clean():
    result = subprocess.run([BIN / "hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_image_installs_the_dependencies_at_the_pinned_versions_and_not_the_library(tmp_path):
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.findall("COPY (.*)", text) == ["pyproject.toml constraints.txt /tmp/"]
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    lines = text.replace("\\\n", " ").splitlines()
    command = next(line for line in lines if line.startswith("RUN python")).removeprefix("RUN ").split("&&")[0]
    command = command.replace("/tmp/", f"{tmp_path}/").replace("python", sys.executable, 1)
    subprocess.run(["bash", "-euc", command], env={"EXTRAS": "s3,sim"}, check=True)
    wanted = [Requirement(line) for line in (tmp_path / "requirements.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {name.lower().replace("_", "-"): number for name, number in pins.items()}
    assert {"ray", "torch", "s3fs", "pythia8mc"} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert "jetfoundry" not in {requirement.name for requirement in wanted}
