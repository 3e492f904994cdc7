"""The files of cluster/untried against what will read them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (pip install PyYAML)")

ROOT = Path(__file__).parents[2]
UNTRIED = ROOT / "cluster" / "untried"
RAY = "2.60.0"


def kuberay(kind: str) -> Any:
    documents = yaml.safe_load_all((UNTRIED / "kuberay.yaml").read_text())
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def launcher() -> Any:
    return yaml.safe_load((UNTRIED / "ray-cluster.yaml").read_text())


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
    for name in ("kuberay.Dockerfile", "ray-cluster.yaml"):
        text = (UNTRIED / name).read_text()
        versions = set(re.findall(r"(?:ray:|\]==)(\d+\.\d+\.\d+)", text))
        assert versions == {RAY}, name


def test_what_nobody_has_run_lies_apart_and_says_so() -> None:
    listing = (UNTRIED / "README.md").read_text()
    assert listing.startswith("# Not run by us\n")
    files = {path.name for path in UNTRIED.iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `(\S+)` \|", listing, re.MULTILINE)) == files
    for name in files:
        assert re.match(r"# Not \w+ by us", (UNTRIED / name).read_text()), name
    elsewhere = [*ROOT.glob("*"), *(ROOT / "cluster").glob("*")]
    assert not [each for each in elsewhere if "docker" in each.name.lower()]


# -- the cluster launcher ----------------------------------------------------------------------
def test_launcher_file_passes_rays_own_validation() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))
    broken = {**launcher(), "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_launcher_sends_the_token_as_a_file_and_opens_no_dashboard() -> None:
    config = launcher()
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (UNTRIED / "ray-cluster.yaml").read_text()


# -- KubeRay ------------------------------------------------------------------------------------


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
