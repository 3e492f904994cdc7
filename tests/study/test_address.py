"""Run folders travel: renamed, moved and copied ones are what they were."""

import json
import shutil

import optuna
import pytest
from toy import ToyEvaluator, space

import masksearch as ms


def search(run, trials=3, **settings):
    return ms.search(space, ToyEvaluator(), run=run, trials=trials, progress=None, **settings)


def outcome(study):
    return [(r.number, r.origin, r.fingerprint, r.values) for r in study.records()]


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
    with pytest.raises(
        ms.errors.SearchError, match=r"belongs to the study 'a', which .* does not hold"
    ):
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
        with pytest.raises(
            ms.errors.SearchError, match=r"2 studies: 'first' \(3 trials\), 'renamed' \(0"
        ):
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
