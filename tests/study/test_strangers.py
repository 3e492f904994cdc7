"""A run folder is data: a stranger's opens no server and makes no file that its reader did not
name."""

import json
import os
import shutil
import socket
import sqlite3
import threading
from contextlib import contextmanager

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.study.store import follow_storage
from masksearch_bench import proxy_card

PASSWORD = "the-users-own-password"
RULE = "names a storage outside of itself, and a run folder may come from a stranger"
PLACES = {  # what a stranger's study.json names; outside of the run folder
    "postgresql": "postgresql://me@127.0.0.1:{port}/x",
    "mysql": "mysql://me@127.0.0.1:{port}/x",
    "sqlite": "sqlite:///{outside}/created/new.db",
    "journal": "journal:{outside}/created/log",
    "by dots": "journal:{{run}}/../created",
    "by a link": "journal:{{run}}/link/log",
    "as a URI": "sqlite:///file:{outside}/new.db?uri=true",
}
COMMANDS = {
    "report": "report {run}",
    "report of two": "report {run} {good} --out {outside}/page.html",
    "report of its mask": "report {run}#0",
    "compare": "compare {run} --run {outside}/compared --controls none",
    "compare its front": "compare --front {run} --run {outside}/compared --controls none",
    "export": "export {run}@0.1 --out {outside}/mask.json",
    "proxy-card": "proxy-card {run}",
    "resume": "resume {run}",
}
CALLS = {
    "open_study": ms.open_study,
    "Comparison.open": ms.Comparison.open,
    "parse": lambda run: masks.parse(f"{run}#1"),
    "parse with a sparsity": lambda run: masks.parse(f"{run}@0.9"),
    "search": lambda run: ms.search(space, ToyEvaluator(), run=run, trials=2, progress=None),
    "proxy_card": proxy_card,
    "ms.resume": ms.resume,
}


@contextmanager
def server():
    """A port, and the connections to it so far, each of which is closed at once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = []

        def accept():
            while True:
                try:
                    line, address = listening.accept()
                except OSError:
                    return
                connections.append(address)
                line.close()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], connections
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A search of two trials."""
    run = tmp_path_factory.mktemp("good") / "run"
    ms.search(space, ToyEvaluator(), run=run, trials=2, strategy="random", progress=None)
    return run


@pytest.fixture
def strange(good, tmp_path, monkeypatch):
    """Makes a folder that names a storage; nothing else lies in `tmp_path`."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.delenv("MASKSEARCH_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)

    def make(storage):
        run = tmp_path / "run"
        shutil.copytree(good, run)
        (run / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (run / "study.json").write_text(json.dumps({"study": "run", "storage": storage}))
        (run / "study.db").unlink()
        options = {"space": "masksearch.spaces:distances", "run": str(run), "storage": storage}
        (run / "command.json").write_text(json.dumps({"command": "search", "options": options}))
        return run

    return make


def everything(folder):
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "entry"),
    [
        *((place, entry) for place in list(PLACES)[:4] for entry in (*COMMANDS, *CALLS, "status")),
        *((place, entry) for place in list(PLACES)[4:] for entry in ("report", "open_study")),
    ],
)
def test_stranger_opens_no_server_and_makes_no_file(
    place, entry, good, strange, tmp_path, command
):
    with server() as (port, connections):
        run = strange(PLACES[place].format(port=port, outside=tmp_path))
        before = everything(tmp_path)
        if entry in CALLS:
            with pytest.raises(ms.errors.SearchError, match=RULE) as refused:
                CALLS[entry](run)
            said = str(refused.value)
        else:
            text = COMMANDS.get(entry, "status {run}")
            words = [w.format(run=run, good=good, outside=tmp_path) for w in text.split()]
            code, _, said = command.run(*words)
            assert code == (0 if entry == "status" else 2), said
            assert said.count("\n") == (0 if entry == "status" else 1)
        assert entry == "status" or (RULE in said and "--storage " in said)
        assert connections == []
    assert everything(tmp_path) == before
    assert PASSWORD not in said


def test_server_that_the_call_names_is_asked(strange, tmp_path, command, monkeypatch):
    pytest.importorskip("psycopg")
    with server() as (port, connections):
        address = f"postgresql://me@127.0.0.1:{port}/x"
        run = strange(address)
        words = ["report", str(run), "--storage", address]
        assert f"cannot open the storage {address}" in command.refused(*words)
        count = len(connections)
        assert count > 0
        monkeypatch.setenv("MASKSEARCH_STORAGE", address)
        with pytest.raises(ms.errors.SearchError, match="cannot open the storage"):
            ms.open_study(run)
        assert len(connections) > count


def test_refusal_hides_the_password_and_quotes_what_a_shell_would_run(strange):
    run = strange("postgresql://me:s3cret@host/x;touch y?password=s3cret")
    with pytest.raises(ms.errors.SearchError) as refused:
        ms.open_study(run)
    assert "s3cret" not in str(refused.value)
    assert "--storage 'postgresql://me@host/x%3Btouch y'" in str(refused.value)


# -- what users do every day ----------------------------------------------------------------------
@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A search and a comparison of its mask in a journal outside of their folders."""
    monkeypatch.delenv("MASKSEARCH_STORAGE", raising=False)
    storage = f"journal:{tmp_path / 'shared' / 'log'}"
    arguments = dict(storage=storage, progress=None)
    ms.search(space, ToyEvaluator(), run=tmp_path / "a", trials=2, strategy="random", **arguments)
    ms.compare(
        {"mine": f"{tmp_path / 'a'}#0", "star": masks.star()}, ToyEvaluator(),
        run=tmp_path / "b", seeds=[1, 2], **arguments,
    )  # fmt: skip
    return storage


@pytest.mark.slow
def test_named_storage_is_read_resumed_and_compared(shared, good, tmp_path, command, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    for each in (a, b):
        with pytest.raises(ms.errors.SearchError, match=RULE):
            ms.open_study(each)
    assert len(ms.open_study(a, shared).records()) == 2
    judged = ms.Comparison.open(b, shared)
    assert judged.kinds["mine"] == "searched"
    resumed = dict(run=a, trials=3, strategy="random", progress=None)
    study = ms.search(space, ToyEvaluator(), storage=shared, **resumed)
    assert len(study.records()) == 3
    out, _ = command("report", f"{a}#2", "--storage", shared, "--length", 16)
    assert str(study.records()[2].mask) in out
    monkeypatch.setenv("MASKSEARCH_STORAGE", f"journal:{tmp_path / 'shared'}")  # a folder of them
    assert len(ms.open_study(a).records()) == 3
    assert len(ms.search(space, ToyEvaluator(), **resumed).records()) == 3
    assert masks.parse(f"{a}#2") == study.records()[2].mask


@pytest.mark.slow
def test_a_storage_is_named_once_for_several_runs(shared, good, tmp_path):
    from masksearch.report.collect import studies_in

    shutil.copytree(good, tmp_path / "c")  # its study is in its folder
    assert [each.run.name for each in studies_in(tmp_path, shared)] == ["a", "b", "c"]
    with pytest.warns(UserWarning, match=RULE):
        assert [each.run.name for each in studies_in(tmp_path)] == ["c"]


@pytest.mark.nightly
def test_page_of_a_comparison_says_how_it_was_made(shared, tmp_path):
    page = ms.Comparison.open(tmp_path / "b", shared).report(tmp_path / "page.html")
    assert json.loads(page.with_name("page_result.json").read_text())["recipes"]


@pytest.mark.parametrize(
    ("named", "allowed", "followed"),
    [
        ("journal:/s/log", "journal:/s", "journal:/s/log"),
        ("sqlite:////s/a.db", "journal:/s", "sqlite:////s/a.db"),
        ("journal:/s/../t/log", "journal:/s", None),
        ("journal:/sx/log", "journal:/s", None),
        ("postgresql://me@db/x", "postgresql://me:word@db/x", "postgresql://me:word@db/x"),
        ("postgresql://me@db.evil/x", "postgresql://me@db/x", None),
        ("postgresql://me@db/x?host=evil", "postgresql://me@db/x", None),
        ("postgresql://me@db/x2", "postgresql://me@db/x", None),
        ("mysql://me@db/x", "journal:/", None),
    ],
)
def test_setting_allows_one_server_or_the_files_of_a_folder(
    named, allowed, followed, tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKSEARCH_STORAGE", allowed)
    if followed is None:
        with pytest.raises(ms.errors.SearchError, match=RULE):
            follow_storage(tmp_path, named)
    else:
        assert follow_storage(tmp_path, named) == followed


def told(run, **options):
    """With other options in the command that a folder keeps."""
    stored = json.loads((run / "command.json").read_text())
    stored["options"] |= options
    (run / "command.json").write_text(json.dumps(stored))
    return run


@pytest.mark.parametrize("option", ["address", "storage_path"])
def test_resume_joins_no_server_that_only_the_folder_names(option, strange, command):
    run = told(strange(None), **{"executor": "ray", option: "ray://10.0.0.1:10001"})
    assert f"--{option.replace('_', '-')} ray://10.0.0.1:10001" in command.refused("resume", run)


def test_resume_names_options_of_another_version(strange, command):
    run = told(strange(None), batch=16, rows=8, squad=None)  # the last was not given
    said = command.refused("resume", run)
    assert "does not have (batch, rows): report it, or give its command in another folder" in said
    with pytest.raises(ms.errors.MaskSearchError, match=r"does not have \(batch, rows\)"):
        ms.resume(run)


# -- links and paths out of the folder -----------------------------------------------------------
def test_database_that_is_a_link_out_is_not_opened(good, strange, tmp_path):
    run = strange(None)
    other = tmp_path / "mine.db"
    with sqlite3.connect(other) as line:
        line.execute("CREATE TABLE mine (x)")
    line.close()
    before = other.read_bytes()
    (run / "study.db").symlink_to(other)
    with pytest.raises(ms.errors.SearchError, match=RULE):
        ms.open_study(run)
    assert other.read_bytes() == before
    with pytest.raises(ms.errors.SearchError, match="no study"):  # reading makes no tables
        ms.open_study(run, f"sqlite:///{other}")
    assert b"trials" not in other.read_bytes()


def test_lock_that_is_a_link_is_left_alone(good, strange, tmp_path, command):
    run = strange(None)
    shutil.copyfile(good / "study.db", run / "study.db")
    (tmp_path / "precious").write_text("mine")
    (run / ".writer.lock").unlink(missing_ok=True)
    (run / ".writer.lock").symlink_to(tmp_path / "precious")
    status = json.loads((run / "status.json").read_text()) | {"state": "running"}
    (run / "status.json").write_text(json.dumps(status))
    assert "killed" in command("status", run)[0]
    with pytest.raises(ms.errors.SearchError, match=r"\.writer\.lock is a link"):
        ms.search(space, ToyEvaluator(), run=run, trials=3, strategy="random", progress=None)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("link", ["figures", "tables", "tables/front.csv"])
def test_page_is_written_through_no_link(link, good, strange, tmp_path):
    run = strange(None)
    shutil.copyfile(good / "study.db", run / "study.db")
    target = tmp_path / "precious"
    (run / link).parent.mkdir(exist_ok=True)
    if link.endswith("csv"):
        target.write_text("mine")
    else:
        target.mkdir()
    (run / link).symlink_to(target)
    before = everything(target)
    with pytest.raises(ValueError, match="is a link, which no page follows; delete it"):
        ms.open_study(run).report()
    assert everything(target) == before
    assert target.is_dir() or target.read_text() == "mine"


def test_files_are_written_through_no_link(tmp_path, command):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f"command.json.{os.getpid()}.part").symlink_to(precious)
    (tmp_path / "command.json").symlink_to(precious)
    command.called("search", "masksearch.spaces:distances", "--run", tmp_path)
    assert precious.read_text() == "mine"
    assert json.loads((tmp_path / "command.json").read_text())["command"] == "search"


@pytest.mark.parametrize("outside", ["/etc/hostname", "../other/mask.safetensors"])
def test_mask_of_another_folder_is_not_read(outside, good, strange):
    run = strange(None)
    shutil.copyfile(good / "study.db", run / "study.db")
    with sqlite3.connect(run / "study.db") as line:
        query = "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes"
        for number, text in line.execute(f"{query} WHERE key = 'proposal'").fetchall():
            data = json.loads(text)
            data["job"] = {"kind": "evaluate", "file": outside}
            change = "UPDATE trial_user_attributes SET value_json = ?"
            line.execute(f"{change} WHERE trial_user_attribute_id = ?", (json.dumps(data), number))
    line.close()
    with pytest.raises(ms.errors.SearchError, match="a file outside of itself; it is not read"):
        ms.open_study(run).records()
