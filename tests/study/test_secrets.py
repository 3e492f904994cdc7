"""Secret settings and passwords stand in no file and on no page; a resumed run asks for them."""

import inspect
import json
import string
import traceback
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import sqlalchemy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Proposal
from masksearch.errors import SearchError
from masksearch.executors.worker import TrialRunner, TrialSpec, WorkerConfig
from masksearch.gates.gates import Gates
from masksearch.study.storage import hide_secrets
from masksearch.study.store import StudyStore, storable_storage
from masksearch_decoders import CausalEvaluator, EngineEvaluator, allocate

SECRET = "S3CRET-word"
JUDGE = """
import sys
sys.path.insert(0, {folder!r})
from dataclasses import dataclass
from toy import ToyEvaluator

@dataclass(frozen=True)
class Judge(ToyEvaluator):
    hub_token: str = ""
    tokens: int = 7
"""


@dataclass(frozen=True)
class Hub:
    url: str
    api_key: str


@dataclass(frozen=True)
class Secretive(ToyEvaluator):
    token: str = SECRET
    tokenizer: str = "words"
    hub: Any = None


def everywhere(folder: Path) -> str:
    return "".join(p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("token=a b=c", "token=***"),
        ("hub.api-key=x", "hub.api-key=***"),
        ("HF_TOKEN=x", "HF_TOKEN=***"),
        ("strategy.password=1", "strategy.password=***"),
        ('hub={"secret": "x y", "steps": 3}', 'hub={"secret": "***", "steps": 3}'),
        ("Hub(url='https://me:word@host', key='x')", "Hub(url='https://me:***@host', key='***')"),
        ({"token": "x", "n": [{"passwd": 3}]}, {"token": "***", "n": [{"passwd": "***"}]}),
        *(
            (text, text)
            for text in ("tokens=3", "tokenizer=words", "keys=8", "monkey=1", "x=token")
        ),
        ({"keys": 3, "first_token": None}, {"keys": 3, "first_token": None}),
    ],
)
def test_whole_words_of_a_name_make_a_secret(setting, shown):
    assert hide_secrets(setting) == shown


def test_no_setting_of_the_package_is_a_secret():
    kinds = [ms.MlmEvaluator, ms.GlueEvaluator, CausalEvaluator, ms.RayTune, ms.DamConfig]
    kinds += [EngineEvaluator, ms.ParetoHalving, Gates, allocate, ms.search, ms.compare]
    names = {name for each in kinds for name in inspect.signature(each).parameters}
    assert len(names) > 50
    assert hide_secrets(dict.fromkeys(names, "x")) == dict.fromkeys(names, "x")


@pytest.mark.nightly
def test_fields_of_an_evaluator_are_hidden_in_study_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.report.page.write_chart", lambda *_: None)
    judge = Secretive(hub=Hub(f"https://me:{SECRET}@host/x", SECRET))
    run = tmp_path / "run"
    ms.search(space, judge, run=run, trials=1, strategy="random", progress=None)
    settings = ms.open_study(run).store.calls()[0]["evaluator"]
    assert settings["token"] == "***"
    assert settings["tokenizer"] == "words"
    ms.open_study(run).report()
    assert SECRET not in everywhere(tmp_path)


@pytest.mark.nightly
def test_secrets_of_earlier_versions_are_not_shown(tmp_path):
    run = tmp_path / "run"
    ms.search(space, ToyEvaluator(), run=run, trials=1, strategy="random", progress=None)
    options = {"run": str(run), "set": [f"token={SECRET}"]}
    (run / "command.json").write_text(json.dumps({"command": "search", "options": options}))
    page = ms.open_study(run).report(tmp_path / "page" / "report.html")
    assert "--set 'token=***'" in page.with_name("result.json").read_text()
    assert SECRET not in everywhere(page.parent)


@pytest.mark.slow
def test_command_keeps_no_secret_and_resume_asks_for_it(tmp_path, command):
    (tmp_path / "judge.py").write_text(
        JUDGE.format(folder=str(Path(__file__).parents[1] / "contracts"))
    )
    run, judge = tmp_path / "run", f"{tmp_path / 'judge.py'}:Judge"
    settings = ["--set", f"hub_token={SECRET}", "--set", "tokens=8"]
    words = ["search", "masksearch.spaces:distances", "--evaluator", judge, "--run", run]
    said = command(*words, *settings, "--trials", 1, "--strategy", "random")
    assert SECRET not in everywhere(tmp_path) + "".join(said)
    assert json.loads((run / "command.json").read_text())["options"]["set"] == [
        "hub_token=***", "tokens=8"
    ]  # fmt: skip
    said = command.refused("resume", run, "--trials", 2)
    assert said == f"error: {run} keeps no secrets; give this one again: --set hub_token=..\n"
    command("resume", run, "--trials", 2, "--set", f"hub_token={SECRET}")
    assert len(ms.resume(run, trials=3, settings=[f"hub_token={SECRET}"]).records()) == 3
    assert SECRET not in everywhere(tmp_path)


def test_masks_may_have_any_name(tmp_path, command):
    words = ("compare", "key=star()", "--controls", "none", "--run", tmp_path)
    assert command.called(*words)["candidates"] == {"key": ms.masks.star()}
    assert command.called("resume", tmp_path)["candidates"] == {"key": ms.masks.star()}


# -- passwords of any characters -----------------------------------------------------------------
WORD = "9hQ2secret"  # in every password: what must not be found
ENDS = st.text(string.punctuation + string.ascii_letters + string.digits + " \té日", max_size=6)
PASSWORDS = st.tuples(ENDS, ENDS).map(WORD.join)
ODD = [f"K{character}x{WORD}" for character in "/ #?@%&'\"\\:=[]{},;+|`\t"]
ODD += [
    f"@K@/x@{WORD}@ @",
    f"K@x?y{WORD}",
    f"K@x/y{WORD}",
    f"/{WORD}:80/",
    f"***@{WORD}",
    f"{WORD}=",
    f"@{WORD}:",  # in an address a port that is no number, which SQLAlchemy refuses
]
SERVER = "postgresql://me:{}@127.0.0.1:1/trials"
PLACES = [
    SERVER,
    "no answer from mysql+x://me@corp:{}@host, says a://b:c@d",
    "http://host:80/x and postgresql://me:{}@host",
    "Hub(url='postgresql://:{}@host', steps=3)",
    "url=postgresql://:{}@host",
]


def with_examples(test):
    for password in ODD:
        test = example(password)(test)
    return given(PASSWORDS)(test)


@with_examples
def test_no_password_of_an_address_is_written_down(password):
    texts = [place.format(password) for place in PLACES]
    texts += [repr(text) for text in texts]
    assert WORD not in json.dumps(hide_secrets([*texts, {"x": {"y": texts}}]))
    assert WORD not in hide_secrets(f"a\n{texts[0]}\nb@c").partition("b@c")[0]


@with_examples
def test_no_password_of_a_query_is_written_down(password):
    assume("&" not in password)  # which ends it
    texts = [f"postgresql://me@h/db?{key}={password}&x=1" for key in ("password", "sslpassword")]
    assert WORD not in json.dumps(hide_secrets([*texts, *map(repr, texts)]))


def password_of(address):
    """As SQLAlchemy reads it; none where it refuses the address."""
    try:
        return sqlalchemy.make_url(address).password
    except ValueError:
        return ""


@with_examples
def test_what_repeats_a_password_is_struck_however_it_is_spelled(password):
    address = f"postgresql://me:{password}@host/db"
    read = password_of(address)
    assume(WORD in read and not read.isalnum())
    spelled = [read, repr(read), json.dumps(read)]
    spelled += [sqlalchemy.URL.create("x", "y", read).render_as_string(False), password]
    values = {"url": address, **dict(zip("abcde", spelled, strict=True))}
    assert WORD not in json.dumps(hide_secrets(values))


@pytest.mark.slow
@settings(max_examples=20)
@with_examples
def test_no_error_of_a_storage_shows_its_password(tmp_path_factory, password):
    pytest.importorskip("psycopg")
    for url in (SERVER.format(password), f"nonsense://me:{password}@host", f"me:{password}@host"):
        run = tmp_path_factory.mktemp("x") / "run"
        with pytest.raises(SearchError, match="cannot open the storage") as caught:
            StudyStore(run, url)
        assert WORD not in "".join(traceback.format_exception(caught.value))
        assert WORD not in repr(caught.value)


@with_examples
def test_stored_address_has_no_password(password):
    try:
        sqlalchemy.make_url(SERVER.format(password))
        assert WORD not in storable_storage(SERVER.format(password))
    except (SearchError, ValueError):  # a second @, or a port behind it
        assert "@" in password
    else:
        assert "@" not in password
    url = sqlalchemy.make_url("mysql://me@h/db?ssl_ca=ca.pem&passfile=p")
    url = url.update_query_dict(dict.fromkeys(["password", "sslpassword", "api_key"], password))
    url = url.update_query_dict({"odbc_connect": f"DRIVER=x;PWD={{{password}}}"})
    stored = storable_storage(url.render_as_string(hide_password=False))
    assert stored == "mysql://me@h/db?passfile=p&ssl_ca=ca.pem"


def test_an_address_with_a_second_at_is_refused(tmp_path):
    with pytest.raises(SearchError, match=r"x://\*\*\*@h/db: .*any other @ in it is written %40"):
        StudyStore(tmp_path, "x://me:a@b@h/db")
    assert storable_storage("x://me@corp:a%40b@h/db") == "x://me%40corp@h/db"


@pytest.mark.parametrize("password", ["a", "me", "1", " " * 8, "====", "postgres", "2026"])
def test_holes_do_not_tell_a_short_or_common_password(password):
    text = "a postgresql driver on port 12026\n        at me ===="
    hidden = hide_secrets({"url": f"postgresql://me:{password}@host/db", "text": text})
    assert hidden == {"url": "postgresql://me:***@host/db", "text": text}


# -- wherever it could be written ----------------------------------------------------------------
@dataclass(frozen=True)
class Unreachable(ToyEvaluator):
    """Fails with what its fields hold, for masks that are dense."""

    def __call__(self, mask, *, seed, workdir):
        if seed % 2 or mask == masks.full():
            raise ConnectionError("\n".join(map(str, vars(self).values())))
        yield from super().__call__(mask, seed=seed, workdir=workdir)


def unreachable(passwords):
    fields = [f"source{number}" for number in range(len(passwords))]
    kind = make_dataclass(
        "Sources", [(name, str, "") for name in fields], bases=(Unreachable,), frozen=True
    )
    return kind(**dict(zip(fields, map(SERVER.format, passwords), strict=True)))


@pytest.mark.nightly
def test_no_password_is_in_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.report.page.write_chart", lambda *_: None)
    run, judge = tmp_path / "run", unreachable(ODD)
    arguments = dict(run=run, trials=2, strategy="random", progress=None)
    study = ms.search(space, judge, baselines={"dense": masks.full()}, **arguments)
    assert any("ConnectionError" in record.error for record in study.records())
    study.report()
    assert list(run.glob("trials/*/traceback.txt"))
    assert WORD not in everywhere(tmp_path)


@pytest.mark.slow
def test_what_travels_to_ray_holds_no_password(tmp_path):
    config = WorkerConfig(cloudpickle.dumps(unreachable(ODD)), str(tmp_path))
    spec = TrialSpec("0.0", cloudpickle.dumps(Proposal(0, Evaluate(masks.full()), seed=1)))
    runner = TrialRunner(config)
    runner.take(spec)
    result = runner.step()
    assert "ConnectionError" in result.error
    assert WORD not in repr(result) + repr(spec)


@pytest.mark.slow
@pytest.mark.parametrize("password", [f"K/x {WORD}", f"K#?'{WORD}\""])
def test_no_password_is_in_a_command(tmp_path, command, password):
    url = SERVER.format(password)
    judge = JUDGE.replace("tokens: int = 7", 'source: str = ""\n    note: str = ""')
    judge = judge.format(folder=str(Path(__file__).parents[1] / "contracts"))
    (tmp_path / "judge.py").write_text(judge)
    words = ("search", "masksearch.spaces:distances", "--run", tmp_path / "run", "--storage", url)
    words += ("--evaluator", f"{tmp_path / 'judge.py'}:Judge", "--set", f"source={url}")
    assert command.called(*words, "--set", f"note={password}")["storage"] == url
    assert (tmp_path / "run" / "command.json").is_file()
    assert WORD not in everywhere(tmp_path)
