"""What people install: one version everywhere, whole distributions, honest metadata."""

import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from other_process import python
from packaging.metadata import Metadata

import masksearch as ms

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPACES = {path.name for path in (ROOT / "search_spaces").glob("*.py")}


def test_version_is_written_once_and_the_citation_follows():
    assert "version" in PROJECT["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ms.__version__}\n" in citation
    assert f'\nrepository-code: "{REPOSITORY}"\n' in citation
    assert "cff-version: 1.2.0" in citation
    for name in ("bench", "decoders"):
        other = tomllib.loads((ROOT / f"masksearch-{name}/pyproject.toml").read_text("utf-8"))
        assert other["project"]["version"] == ms.__version__
    assert "2102.12871" in citation


def test_repository_holds_no_lock_log_or_temporary_file():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not listing.stdout:
        pytest.skip(f"no checkout of git: {listing.stderr.strip() or 'no file is tracked'}")
    litter = re.compile(r"(\.lock|\.log|\.tmp|\.orig|~)$")
    assert not [name for name in listing.stdout.splitlines() if litter.search(name)]


def read_metadata(wheel: Path) -> Metadata:
    """The metadata of a wheel, checked by the rules of its version."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Metadata.from_email(archive.read(name), validate=True)


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(released):
    [wheel] = released.glob("*.whl")
    assert wheel.name == f"masksearch-{ms.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name.partition("/")[0] for name in names}
    assert inside == {"masksearch", f"masksearch-{ms.__version__}.dist-info"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "masksearch").rglob("*.py")}
    ours |= {f"masksearch/spaces/{name}" for name in SPACES}
    assert ours <= names
    others = {name for name in names - ours if name.startswith("masksearch/")}
    assert {Path(name).suffix for name in others} <= {".typed", ".j2", ".css", ".js", ".json"}
    assert "masksearch/py.typed" in others


@pytest.mark.slow
def test_source_distribution_is_the_repository(released):
    [source] = released.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)  # no links
    names = {member.name.partition("/")[2] for member in members}
    wanted = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "DESIGN.md", "SECURITY.md", "setup.py"}
    wanted |= {f"search_spaces/{name}" for name in SPACES}
    for folder in ("docs", "tests", "experiments", "masksearch-bench", "masksearch-decoders"):
        files = (path for path in (ROOT / folder).rglob("*.md") if "/api/" not in str(path))
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    for folder in ("tests", "masksearch-bench", "masksearch-decoders"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
    assert wanted <= names


@pytest.mark.slow
def test_metadata_says_what_is_true(released):
    [wheel] = released.glob("*.whl")
    metadata = read_metadata(wheel)
    assert str(metadata.version) == ms.__version__
    assert metadata.description_content_type == "text/markdown"
    assert set(metadata.provides_extra or ()) == set(PROJECT["optional-dependencies"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown, targets = LINK.findall(metadata.description), LINK.findall(readme)
    assert len(shown) == len(targets)
    for there, here in zip(shown, targets, strict=True):
        if re.match("[a-z]+:|#", here):
            assert there == here
            continue
        assert re.match(rf"{REPOSITORY}/(blob|raw)/v{ms.__version__}/", there), there
        assert (ROOT / there.split(f"/v{ms.__version__}/")[1].partition("#")[0]).exists(), there
    without = re.sub(r"https?://\S+", "", metadata.description)
    assert not re.search(r"""(src|href)=["'][^"'#]""", without)


@pytest.mark.slow
def test_an_index_takes_the_distributions(released):
    pytest.importorskip("twine")
    files = [*released.glob("*.whl"), *released.glob("*.tar.gz")]
    done = python("-m", "twine", "check", "--strict", *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MaskSearchError", "it is masksearch.errors.MaskSearchError"),
        ("Strategy", "it is masksearch.contracts.Strategy"),
        ("window", "it is masksearch.masks.window"),
        ("fingerprint", "it is masksearch.masks.measure.fingerprint"),
        ("training", "it is a module: import masksearch.training"),
        ("serch", "did you mean 'search'"),
    ],
)
def test_a_name_that_is_elsewhere_says_where(name, place, monkeypatch):
    monkeypatch.delattr(ms, name, raising=False)  # a module that was imported
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; {place}"):
        getattr(ms, name)


@pytest.mark.nightly
def test_installed_package_is_not_the_repository(installed, tmp_path):
    code = (
        "import masksearch.spaces.distances as d, masksearch as m; print(m.__file__, d.__file__)"
    )
    python = [installed / "python", "-c", code]
    done = subprocess.run(python, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in done.stdout.split():
        assert Path(file).is_relative_to(installed.parent)
    version = subprocess.run(
        [installed / "masksearch", "--version"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": ""},
    )  # fmt: skip
    assert version.stdout.startswith(f"masksearch {ms.__version__}\n")


ALONE = """
import masksearch as ms
from masksearch.errors import UnknownNameError

def search():
    evaluator = ms.PlantedEvaluator.graded(steps=1)
    ms.search(None, evaluator, run="runs/x", trials=1, strategy="allocate")

for call in (lambda: ms.allocate, search):
    try:
        call()
    except (AttributeError, UnknownNameError) as error:
        print(error)
"""


@pytest.mark.nightly
def test_without_a_distribution_beside_this_one_its_names_say_what_to_install(installed, tmp_path):
    how = {"cwd": tmp_path, "env": {"PATH": ""}, "capture_output": True, "text": True}
    done = subprocess.run([installed / "python", "-c", ALONE], check=True, **how)
    remedy = 'pip install "masksearch[decoders]"'
    name, strategy = done.stdout.splitlines()
    place = f"from masksearch_decoders import allocate ({remedy})"
    assert name == f"masksearch.allocate is in masksearch-decoders now: {place}"
    assert strategy == f"strategy 'allocate' needs masksearch-decoders: {remedy}"
    assert not (tmp_path / "runs").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "command.json").write_text(
        '{"command": "allocate", "options": {"run": "run"}}'
    )
    for words, what, extra in (
        (["proxy-card", "run"], "command 'proxy-card'", "bench"),
        (["allocate", "model", "text"], "command 'allocate'", "decoders"),
        (["resume", "run"], "command 'allocate'", "decoders"),
        (["compare", "full()", "--decoder", "x"], "option '--decoder'", "decoders"),
        (["attach", "x.gguf", "full()"], "file of kind 'gguf'", "decoders"),
    ):
        done = subprocess.run([installed / "masksearch", *words], check=False, **how)
        assert done.returncode == 2, done.stdout
        *before, said = done.stderr.splitlines()
        assert all("masksearch: at work" in line for line in before)  # on a slow machine
        command = f'pip install "masksearch[{extra}]"'
        assert said == f"error: {what} needs masksearch-{extra}: {command}"
    listed = subprocess.run([installed / "masksearch", "--help"], check=True, **how).stdout
    assert "pretrain" in listed
    assert "allocate" not in listed.replace("runs/allocate", "")
