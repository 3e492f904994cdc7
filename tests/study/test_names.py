"""A run folder may have any name, and travels; no name opens another place."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from tests.parsed import every_command

NAMES = (
    "does it pay?",
    "a?mode=memory",
    "a?mode=ro&uri=true",
    "100%",
    "50%25 off",
    "a#1",
    "a#",
    "a@0.9",
    'it\'s "two"',
    "{run}",
    "{SCHEMA_VERSION}{",
    "two\nlines\ttab",
    "a;b&c|d$HOME`e`",
    "\u4e2d\u6587 \u0437\u0430\u043f\u0443\u0441\u043a \u0627\u0644\u0639",
    "-x",
    "[0-9]*",
    "x=y,z:w",
    "file:a?uri=true",
    "back\\slash",
)


def search(run: Path, trials: int = 3, **settings: Any) -> Any:
    return ms.search(space, ToyEvaluator(), run=run, trials=trials, progress=None, **settings)


def outcome(study: Any) -> list[Any]:
    return [(r.number, r.origin, r.fingerprint, r.values, r.params) for r in study.records()]


def address(path: Path) -> str:
    """Of an SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def check_name(
    folder: Path, name: str, expected: list[Any], inside: str = "", *, pages: bool = True
) -> None:
    """A search in a folder of that name begins, goes on, is read and reported, and nothing else
    is written."""
    run = folder / name
    storage = None if not inside else inside.format(run=str(run.resolve()))
    if inside.startswith("sqlite"):
        storage = address(run.resolve() / "own.db")
    search(run, 2, storage=storage)
    assert outcome(search(run)) == expected
    assert [path.name for path in folder.iterdir()] == [name]
    assert outcome(ms.open_study(run)) == expected
    if name.isprintable():  # a mask's text is
        assert [masks.parse(f"{run}#{number}").digest for number, *_ in expected] == [
            record.mask.digest for record in ms.open_study(run).records()
        ]
    if not inside:
        assert (run / "study.db").is_file()
        done = CliRunner().invoke(every_command()["status"], [str(run), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["counts"]["done"] == 3
    page = ms.open_study(run).report() if pages else run / "study.json"
    assert page.is_file()
    assert page.is_relative_to(run)
    moved = folder / f"{name} 2"
    run.rename(moved)
    assert outcome(ms.open_study(moved)) == expected
    assert outcome(search(moved)) == expected


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return outcome(search(tmp_path_factory.mktemp("plain") / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:2])
def test_any_name_is_a_run_folder(tmp_path: Path, name: str, expected: list[Any]) -> None:
    check_name(tmp_path, name, expected)


@pytest.mark.nightly
@pytest.mark.parametrize("inside", ["journal:{run}/log", "sqlite"])
@pytest.mark.parametrize("name", NAMES)
def test_a_storage_in_it_moves_with_it(tmp_path, name, inside, expected):
    check_name(tmp_path, name, expected, inside, pages=False)


@pytest.mark.nightly
@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_law_of_names(tmp_path_factory, name, expected):
    name = name.replace("/", "").replace("\0", "").strip(".") or "x"
    check_name(tmp_path_factory.mktemp("names"), name, expected, pages=False)


@pytest.mark.parametrize("name", ["does it pay?", "50%25 off", "two\nlines", "{run}"])
def test_the_command_of_a_run_is_read_back(tmp_path: Path, name: str, command: Any) -> None:
    run = tmp_path / name
    place = address(run / "own.db")
    words = ("search", "masksearch.spaces:distances", "--run", run, "--storage", place)
    first, again = command.called(*words), command.called("resume", run)
    assert (again["run"], again["storage"]) == (run, place)
    assert first.keys() == again.keys()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ms.errors.SearchError, match=r"a\\udcffb/study\.db' is not UTF-8"):
        search(tmp_path / os.fsdecode(b"a\xffb"), 2)


# -- run folders travel: renamed, moved and copied ones are what they were ----------------------
@pytest.mark.slow
def test_copies_with_their_databases_go_on_apart(tmp_path):
    search(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(search(tmp_path / "b", trials=5).records()) > 5  # a known mask is no trial
    assert len(ms.Study(tmp_path / "a").records()) == 3


@pytest.mark.slow
def test_renamed_folder_of_a_shared_storage_finds_its_study(tmp_path):
    storage = f"sqlite:///{tmp_path / 'team.db'}"
    first, second = (search(tmp_path / name, storage=storage) for name in ("a", "b"))
    assert outcome(first) == outcome(second)
    (tmp_path / "a").rename(tmp_path / "c")
    assert len(search(tmp_path / "c", trials=4, storage=storage).records()) == 4
    assert len(ms.Study(tmp_path / "c", storage).records()) == 4  # the folder says which study
    assert len(ms.Study(tmp_path / "b", storage).records()) == 3
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(ms.errors.SearchError, match=r"belongs to the study 'a', .* not hold"):
        search(tmp_path / "c", storage=other)


def two_studies(run):
    """As `resume` of an earlier version left a folder that had been renamed."""
    search(run)
    (run / "study.json").unlink()
    optuna.create_study(storage=f"sqlite:///{run / 'study.db'}", study_name="renamed")


@pytest.mark.slow
def test_two_studies_are_listed_and_one_can_be_chosen(tmp_path):
    run = tmp_path / "first"
    two_studies(run)
    for opened in (lambda: ms.Study(run), lambda: search(run)):
        with pytest.raises(ms.errors.SearchError, match=r"2 studies: 'first' \(3 .*'renamed' \(0"):
            opened()
    with pytest.raises(ms.errors.SearchError) as refused:
        ms.Study(run)
    remedy = str(refused.value).partition("echo ")[2]
    assert remedy == f'\'{{"study": "first"}}\' > {run / "study.json"}'
    (run / "study.json").write_text('{"study": "first"}')
    assert len(search(run, trials=4).records()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", '{"study": 3}', '{"storage": null}'])
def test_damaged_file_is_named(tmp_path, text):
    search(tmp_path / "run")
    (tmp_path / "run" / "study.json").write_text(text)
    with pytest.raises(ms.errors.SearchError, match=r"study\.json is damaged .* it reads"):
        ms.Study(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (
            "postgresql://me:secret@db/masks?password=secret&sslmode=require",
            "postgresql://me@db/masks?sslmode=require",
        ),
        ("postgresql://me:s3cret@db:5432/masks", "postgresql://me@db:5432/masks"),
        *((place, place) for place in ("postgresql:///masks", "journal:/log", "sqlite:////x.db")),
    ],
)
def test_a_command_names_its_storage_without_password(tmp_path, command, given, written):
    words = ("search", "masksearch.spaces:distances", "--run", tmp_path, "--storage", given)
    assert command.called(*words)["storage"] == given
    stored = json.loads((tmp_path / "command.json").read_text())
    assert stored["options"]["storage"] == written


def test_a_storage_in_the_run_folder_is_written_down_as_there(tmp_path):
    search(tmp_path / "run", storage=f"journal:{tmp_path / 'run' / 'log'}")
    stored = json.loads((tmp_path / "run" / "study.json").read_text())
    assert stored == {"study": "run", "storage": "journal:{run}/log"}
