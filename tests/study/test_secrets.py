"""Secret settings and passwords stand in no file and on no page; a resumed run asks for them."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch.gates.gates import Gates
from masksearch.study.storage import hide_secrets
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
