"""cluster/ray-cluster.yaml and cluster/kuberay.yaml against what will read them."""

import copy
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (pip install PyYAML)")

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY = "2.60.0"


def kuberay(kind: str) -> Any:
    documents = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def launcher() -> Any:
    return yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())


def pods() -> dict[str, Any]:
    spec = kuberay("RayCluster")["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {
        name: group["template"]["spec"]
        for name, group in {"head": spec["headGroupSpec"], **groups}.items()
    }


def search_options(command: str) -> dict[str, Any]:
    """A masksearch command line, read by the command line's own parser."""
    from typer.main import get_command

    from masksearch.cli.main import app

    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("masksearch", "search")
    group: Any = get_command(app)
    with group.commands[verb].make_context(verb, words) as context:
        return dict(context.params)


# -- one version everywhere -------------------------------------------------------------------
def test_every_file_names_the_same_ray() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is not None:  # Ray is an extra
        assert pinned[1] == RAY
    assert kuberay("RayCluster")["spec"]["rayVersion"] == RAY
    for pod in pods().values():
        for container in pod["containers"]:
            assert container["image"].rpartition(":")[2].split("-")[0] == RAY
    assert launcher()["docker"]["image"].rpartition(":")[2].split("-")[0] == RAY
    for name in ("Dockerfile", "ray-cluster.yaml"):
        text = (CLUSTER / name).read_text()
        versions = set(re.findall(r"(?:ray:|\]==)(\d+\.\d+\.\d+)", text))
        assert versions == {RAY}, name


# -- the cluster launcher ----------------------------------------------------------------------
def test_launcher_file_passes_rays_own_validation() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))
    broken = {**launcher(), "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_launcher_keeps_the_head_on_demand_and_idle_and_workers_on_spot() -> None:
    config = launcher()
    types = config["available_node_types"]
    head, worker = types[config["head_node_type"]], types["gpu_spot"]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["max_workers"] == config["max_workers"]


def test_launcher_sends_the_token_as_a_file_and_opens_no_dashboard() -> None:
    config = launcher()
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (CLUSTER / "ray-cluster.yaml").read_text()


def test_launcher_mounts_the_shared_folder_before_the_container() -> None:
    config = launcher()
    assert any("mount -t nfs4" in line for line in config["initialization_commands"])
    assert "-v /mnt/shared:/shared" in config["docker"]["run_options"]


# -- KubeRay ------------------------------------------------------------------------------------
def test_kuberay_documents_are_what_the_operator_serves() -> None:
    assert kuberay("RayCluster")["apiVersion"] == kuberay("RayJob")["apiVersion"] == "ray.io/v1"
    assert kuberay("PersistentVolumeClaim")["apiVersion"] == "v1"
    assert kuberay("RayJob")["spec"]["clusterSelector"] == {
        "ray.io/cluster": kuberay("RayCluster")["metadata"]["name"]
    }
    assert kuberay("RayCluster")["spec"]["authOptions"] == {"mode": "token"}


def test_every_mount_has_a_volume_and_the_volume_can_be_shared() -> None:
    claim = kuberay("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods().values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) <= set(volumes)
            assert mounts["shared"] == "/shared"
        named = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert named == claim["metadata"]["name"]


def test_gpus_are_requested_as_limited_and_the_head_takes_no_trials() -> None:
    params = kuberay("RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]
    assert params == {"num-cpus": "0", "num-gpus": "0"}
    for name, pod in pods().items():
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name != "head")


def test_entrypoint_is_a_masksearch_command_that_fits_the_cluster() -> None:
    options = search_options(kuberay("RayJob")["spec"]["entrypoint"])
    assert options["executor"] == "ray"
    assert options["address"] == "auto"
    assert str(options["run"]).startswith("/shared/")
    assert options["storage"].startswith("journal:/shared/")
    (group,) = kuberay("RayCluster")["spec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    trials = int(limits["nvidia.com/gpu"]) / options["gpus"]  # in a pod
    assert options["cpus"] * trials <= int(limits["cpu"])
    assert options["slots"] <= trials * group["maxReplicas"]


def strict(schema: Any) -> Any:
    """A CRD's schema under which an unknown field is an error, as `kubectl apply` has it."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not free:
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_documents_follow_the_operators_schemas(kind: str) -> None:
    folder = os.environ.get("MASKSEARCH_KUBERAY_CRDS")
    if folder is None:
        pytest.skip(
            "MASKSEARCH_KUBERAY_CRDS names no folder with KubeRay's ray-operator/config/crd/bases"
        )
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    definition = yaml.safe_load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    document = kuberay(kind)
    jsonschema.Draft202012Validator(schema).validate(document)
    broken = copy.deepcopy(document)
    broken["spec"]["rayversion"] = "typing error"
    with pytest.raises(jsonschema.ValidationError, match="rayversion"):
        jsonschema.Draft202012Validator(schema).validate(broken)
