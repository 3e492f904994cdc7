"""`masksearch doctor`: what it says of packages, features and data is so."""

import json
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def plain(name):
    """A distribution's name as all of its spellings are compared."""
    return re.sub("[-_.]+", "-", name).lower()


def machine(command, *arguments):
    out, err = command("doctor", *arguments, "--json")
    assert err == ""
    return json.loads(out)


def test_versions_are_those_installed(command):
    said = machine(command)["Versions"]
    assert said["Python"] == platform.python_version()
    assert said["torch"] == metadata.version("torch")


def test_features_are_the_extras_of_the_package(command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    of_developers = {"dev", "docs", "bench"}
    extras = project["optional-dependencies"]
    said = machine(command)["Features"]
    assert said.keys() | of_developers == extras.keys() | of_developers
    there = {plain(each.name) for each in metadata.distributions()}
    for extra, line in said.items():
        names = {plain(re.split(r"[^\w.-]", each)[0]) for each in extras[extra]}
        assert line.endswith(": installed") == (names <= there | {"masksearch"}), extra


def test_a_missing_feature_names_its_install_line(monkeypatch, command):
    monkeypatch.setattr("masksearch.cli.doctor.util.find_spec", lambda name: None)
    for extra, line in machine(command)["Features"].items():
        assert re.search(rf": pip install .*\[{extra}\]\"", line), line


def test_data_are_named_by_the_option_that_takes_them(command, tmp_path):
    for task in ("SST-2", "QQP"):
        (tmp_path / "glue" / task).mkdir(parents=True)
        (tmp_path / "glue" / task / "train.tsv").touch()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("word " * 50_000)
    places = [tmp_path / name for name in ("glue", "text", "nothing")]
    assert list(machine(command, *places)["Data"].values()) == [
        "--glue, with the tasks QQP, SST-2",
        "--corpus, 1 text files of 0.2 MB",
        "does not exist",
    ]


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, command, tmp_path):
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
    said = machine(command)["Machine"]["cache"]
    assert said == f"{tmp_path}/new/cache: cannot be written"


def test_people_get_lines(command):
    out, _ = command("doctor")
    assert [line for line in out.splitlines() if line.endswith(":") and line[0] != " "] == [
        "Versions:",
        "Machine:",
        "Features:",
    ]
