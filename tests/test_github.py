"""Workflows, forms for issues and the citation: their schemas hold, and what they call exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from other_process import python

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CONFIG = GITHUB / "ISSUE_TEMPLATE" / "config.yml"
FORMS = sorted(set(CONFIG.parent.glob("*.yml")) - {CONFIG})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [CONFIG]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema_holds(schema, files):
    pytest.importorskip("check_jsonschema")
    given = ["--default-filetype", "yaml", *files]  # a .cff file is YAML
    done = python("-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *given)
    assert done.returncode == 0, done.stdout + done.stderr


def steps(workflow: Path) -> list[tuple[dict, dict]]:
    """Every step of a workflow, with its job."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [(job, step) for job in jobs for step in job.get("steps", [])]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(workflow):
    """Actions have a version, jobs a limit; make's targets, programs and tests exist."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for job, step in steps(workflow):
        assert job["timeout-minutes"] <= 90
        assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1"))
        run = step.get("run", "")
        for target in re.findall(r"\bmake ([\w-]+)", run):
            assert target in targets
        for file in re.findall(r"(?:^| )(\.ci/\w+|tests/\w+\.py)", run):
            assert (ROOT / file).is_file(), file


def test_nothing_may_write_but_what_deploys_and_publishes():
    for workflow in WORKFLOWS:
        whole = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        assert whole["permissions"] == {"contents": "read"}
        for name, job in whole["jobs"].items():
            assert ("permissions" in job) == (name in ("deploy", "publish")), name
        assert "secrets." not in workflow.read_text(encoding="utf-8")


def test_every_python_that_the_package_admits_is_run():
    """The tests run on 3.11 to 3.14; a classifier names none that they leave out."""
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    run = {
        step["with"]["python-version"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "setup-python" in step.get("uses", "")
    }
    run |= set(workflow["jobs"]["other-pythons"]["strategy"]["matrix"]["python"])
    assert {"3.11", "3.12", "3.13", "3.14"} <= run
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert named
    assert set(named) <= run


def test_markers_alone_choose_what_continuous_integration_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "not nightly" in script
    assert not re.search(r"pytest[^\n]* -k|test_\w+\.py|::|--deselect", script)
