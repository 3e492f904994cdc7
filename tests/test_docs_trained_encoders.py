"""docs/trained_encoders.md and docs/adapting.md: their commands run, in their order, on a toy."""

import re
import shlex
from pathlib import Path

import pytest
from toy_sentences import write_sentences

import masksearch as ms

ROOT = Path(__file__).parents[1]
SMALL = {  # what the page says -> what a toy takes
    "MODEL": "checkpoint",
    "GLUE": "glue",
    "STS-B,QQP": "SST-2,RTE",
    "STS-B": "SST-2",
    "--length 64": "--length 32 --set finetune_batch=8 --set device=cpu --set finetune_lr=3e-3",
    "--set epochs=1": "--set epochs=2",
    "--set epochs=3": "--set epochs=4",
    "--adapt recover": "--adapt recover --set recover_steps=3",
    "dam.steps=150": "dam.steps=20",
    "dam.gate_lr=0.1": "dam.gate_lr=.3",
    "dam.density=0.3": "dam.density=0.5",
    "--trials 40": "--trials 3",
    "--budget 0.2 --budget 0.3": "--budget 0.6 --budget 0.8",
    "--seeds 5": "--seeds 3",
    "--seeds 3": "--seeds 2",
}


def commands(name: str, block: int = 0) -> list[list[str]]:
    """Words of the commands in a block of a page, made small."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    text = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[block]
    text = re.sub("|".join(map(re.escape, SMALL)), lambda found: SMALL[found[0]], text)
    named = dict(re.findall(r'^(\w+)="(.*)"', text, re.M))
    lines = [line for line in text.splitlines() if line.startswith("masksearch ")]
    for name, words in named.items():
        quoted = shlex.join(words.split())
        lines = [line.replace(f"${name}", quoted) for line in lines]
    return [shlex.split(line) for line in lines]


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sentences(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_three_searches_a_comparison_and_its_verdict(toys, command):
    *searches, compare, verdict = commands("trained_encoders.md")
    fronts = [command(*words[1:])[0] for words in searches]
    assert ["Front of" in shown for shown in fronts] == [True] * 3
    models = len(list((toys / "cache" / "dense").glob("*.safetensors")))
    assert models == 2  # one for each task, shared by the searches
    compared = command(*compare[1:])[0]
    assert len(list((toys / "cache" / "dense").glob("*.safetensors"))) == 2 + 2 * 3
    comparison = ms.Comparison.open(toys / "runs" / "compared")
    best = {f"{name} within {budget}" for name in ("tpe", "random") for budget in (0.6, 0.8)}
    assert best <= set(comparison.entries)
    assert any(name.startswith("front #") for name in comparison.entries)
    again = command(*verdict[1:])[0]
    assert "Holm" in compared
    assert "Holm" in again


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_the_card_of_the_cheap_settings(toys, command):
    *compared, card = commands("adapting.md", -1)
    for words in compared:
        command(*words[1:])[0]
    shown = command(*card[1:])[0]
    for setting in ("runs/none", "runs/recover", "runs/short"):
        assert setting in shown
    assert "a setting of its own" in shown


def test_losses_of_trained_encoders_stand_inside_their_intervals():
    """In the front page's table and in the guide no estimate stands alone."""
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "trained_encoders.md").read_text(encoding="utf-8")
    parts = {
        "README.md": (front.split("## What has been found")[1].split("\n## ")[0], 5),
        "trained_encoders.md": (guide.split("## Which selector to take")[1].split("\n## ")[0], 8),
    }
    densities = r"(?:keeps|of|heads|DAM|keys) \.\d+"  # no estimates
    for page, (text, least) in parts.items():
        words = " ".join(re.sub(rf"`[^`]*`|{densities}", "", text).split())
        number = r"-?\d*\.\d+"
        whole = re.compile(rf"({number}) \[({number}), ({number})\]")
        estimates = [tuple(map(float, found)) for found in whole.findall(words)]
        assert len(estimates) >= least
        assert all(low <= value <= high for value, low, high in estimates), page
        alone = re.findall(rf"(?<![\d.\w/-]){number}", whole.sub("", words))
        assert not alone, page
