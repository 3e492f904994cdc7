"""Writes the fixtures of this folder.

It was run once, with masksearch 0.1.0 in its first layout, and need not be run again: what it
wrote is committed, and test_stored.py checks that every later version reads it as that one did.
Run by a later version it would only show that this one reads what it writes itself.

    python tests/stored/make.py [PART ...]
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers as hf
from stored import recipes
from stored.judges import Formula

import masksearch as ms
from masksearch import masks

WORDS = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
LEFT_OVER = ("**/*.lock", "**/.reserve", "report.html", "figures", "**/supernet")
WEIGHTS = ("trials/0/pretrained.safetensors", "trials/1/pretrained.safetensors")  # of ended trials
KILLED_AT = {"killed": (3, 2), "glue": (3, 2)}  # call of the evaluator, report of that call


# -- studies -----------------------------------------------------------------------------------
def studies() -> None:
    """Every study, its neighbour in `expected`, and no file that only a running one needs."""
    for name in recipes.SEARCHES:
        made(name)
    for name in recipes.SEARCHES:
        run = recipes.STUDIES / name
        expect(name, recipes.described(ms.Study(run, recipes.storage(name, run))))
        cleaned(run)
    comparisons()
    command()


def made(name: str) -> None:
    """One search; the killed ones in a process of their own, which does not survive."""
    run = recipes.STUDIES / name
    shutil.rmtree(run, ignore_errors=True)
    if name not in KILLED_AT:
        recipes.search(name, run, recipes.SEARCHES[name][1]())
        return
    done = subprocess.run([sys.executable, __file__, "killed:" + name], check=False)
    assert done.returncode == -signal.SIGKILL, done


class Dying(recipes.Counted):
    """An evaluator whose process is killed in the middle of a run."""

    def __init__(self, evaluator: Any, call: int, report: int) -> None:
        super().__init__(evaluator)
        self.call, self.report = call, report

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[ms.Report]:
        self.calls += 1
        reports = self.evaluator(mask, seed=seed, workdir=workdir)
        for number, report in enumerate(reports, 1):
            yield report
            if (self.calls, number) == (self.call, self.report):
                if not hasattr(self.evaluator, "glue"):
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Thread(target=killed_after_pretraining, args=(workdir,)).start()


def killed_after_pretraining(workdir: Path) -> None:
    """Waits for the pre-trained weights, then ends the process."""
    while not list(workdir.glob("*.safetensors")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def begun(name: str) -> None:
    """What the process does that is killed."""
    judge = recipes.SEARCHES[name][1]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inner = judge() if judge else recipes.glue(recipes.glue_corpus().write(place))
        recipes.search(name, recipes.STUDIES / name, Dying(inner, *KILLED_AT[name]))


def comparisons() -> None:
    """Masks over seeds; a mask in a file of its own; the card of the first one's curves."""
    run = recipes.STUDIES / "comparison"
    shutil.rmtree(run, ignore_errors=True)
    found = recipes.compare(run, recipes.planted())
    card = ms.proxy_card(run, proxy="loss", bands=1, resamples=20)
    more = {"verdict": found.verdict(), "frame": recipes.table(found.frame())}
    more["card"] = recipes.table(card.frame())
    expect("comparison", recipes.described(ms.Study(run)) | more)
    cleaned(run)
    run = recipes.STUDIES / "wide"
    shutil.rmtree(run, ignore_errors=True)
    ms.compare(recipes.wide(), Formula(316, 1, 1), run=run, seeds=[0])
    expect("wide", recipes.described(ms.Study(run)))
    cleaned(run)


def command() -> None:
    """A search from the command line; the folder in its command is written as STORED."""
    run, here = recipes.STUDIES / "command", recipes.HERE
    shutil.rmtree(run, ignore_errors=True)
    words = ["search", f"{here / 'spaces.py'}:mixed", "--run", run, "--trials", 4, "--families"]
    words += ["--evaluator", f"{here / 'judges.py'}:formula", "--constraint", "sparsity >= 0.1"]
    words += ["--halving", "1,2", "--strategy", "tpe", "--seed", 5]
    subprocess.run([sys.executable, "-m", "masksearch", *map(str, words)], check=True)
    expect("command", recipes.described(ms.Study(run)))
    path = run / "command.json"
    path.write_text(path.read_text().replace(str(here), "STORED"))
    cleaned(run)


def cleaned(run: Path) -> None:
    """Takes locks and pages away, and the process from the status; packs the database."""
    for pattern in (*LEFT_OVER, *WEIGHTS):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in run.glob("trials/*"):
        if not any(path.iterdir()):
            path.rmdir()
    if (status := run / "status.json").is_file():
        told = json.loads(status.read_text()) | {"pid": 0, "host": "elsewhere"}
        status.write_text(json.dumps(told, indent=1))
    assert not list(run.glob("*.db-*"))
    if run.name != "killed" and (run / "study.db").is_file():  # that one as it was left
        database = sqlite3.connect(run / "study.db")
        database.execute("PRAGMA page_size = 512")
        database.execute("VACUUM")
        database.close()


def expect(name: str, content: Any) -> None:
    """Writes what a test compares with."""
    recipes.EXPECTED.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (recipes.EXPECTED / f"{name}.json").write_text(text + "\n", encoding="utf-8")


# -- masks, models, the rest ---------------------------------------------------------------------
def mask_files() -> None:
    """One file a mask, those with tables in both formats, and what is known of each."""
    shutil.rmtree(recipes.MASKS, ignore_errors=True)
    every = {**recipes.leaves(), **recipes.combined()}
    for name, mask in {**every, **recipes.content()}.items():
        ms.save_mask(mask, recipes.MASKS / f"{name}.json")
        if name in recipes.TENSORS or name == "content_table":
            ms.save_mask(mask, recipes.MASKS / f"{name}.safetensors")
    facts = {name: recipes.mask_facts(mask) for name, mask in every.items()}
    facts |= {name: recipes.content_facts(mask) for name, mask in recipes.content().items()}
    expect("masks", facts)


def models() -> None:
    """Models with masks, and what they answer to fixed tokens."""
    shutil.rmtree(recipes.MODELS, ignore_errors=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    words = {"vocab_size": 30, "num_hidden_layers": 2, "initializer_range": 0.3}
    bert = hf.BertConfig(**sizes, **words, max_position_embeddings=12)
    llama = hf.LlamaConfig(
        **sizes, **words, num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0
    )
    two = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers",)}
    two |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    two |= {f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")}
    bart = hf.BartConfig(
        vocab_size=30, d_model=16, init_std=0.3, max_position_embeddings=24, **two
    )
    table = masks.table(recipes.bits(12, 12, seed=8))
    mixed = masks.per_head([masks.window(1), table])
    parts = {"encoder": masks.window(2), "decoder": mixed, "cross": masks.star()}
    built: dict[str, tuple[Any, Any, Any]] = {
        "bert_table": (hf.BertForMaskedLM, bert, mixed),
        "bert_expression": (hf.BertModel, bert, masks.longformer(1, 1)),
        "bert_content": (hf.BertModel, bert, masks.window(1) | masks.special_tokens(2, 3)),
        "llama": (hf.LlamaForCausalLM, llama, masks.window(3) | masks.columns(1)),
        "bart": (hf.BartModel, bart, parts),
    }
    found = {}
    for name, (cls, config, mask) in built.items():
        torch.manual_seed(0)
        model = ms.attach(cls(copy.deepcopy(config)).eval(), mask)
        ms.save_pretrained(model, recipes.MODELS / name)
        for path in (recipes.MODELS / name).glob(".saving*"):
            shutil.rmtree(path)
        found[name] = {
            "class": cls.__name__,
            "masks": {p: m.digest for p, m in ms.saved_masks(recipes.MODELS / name).items()},
            "outputs": [[round(x, 6) for x in row] for row in recipes.outputs(model).tolist()],
        }
    expect("models", found)


def pretrained() -> None:
    """A checkpoint from the command line; the folder in its settings is written as STORED."""
    shutil.rmtree(recipes.PRETRAINED, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MASKSEARCH_CACHE": folder}
        words = [sys.executable, "-m", "masksearch", *recipes.pretraining(recipes.PRETRAINED)]
        subprocess.run(words, check=True, env=environment)
        judge = ms.MlmEvaluator(
            recipes.DATA / "text.txt", weights=recipes.PRETRAINED, lr=2e-3, length=16,
            cache=Path(folder),
        )  # fmt: skip
        path = recipes.PRETRAINED / "settings.json"
        path.write_text(path.read_text().replace(str(recipes.HERE), "STORED"))
        facts = {"protocol": judge.protocol}
    model = ms.load_pretrained(recipes.PRETRAINED)
    masks_on = {part: mask.digest for part, mask in ms.saved_masks(recipes.PRETRAINED).items()}
    answer = [[round(x, 6) for x in row[:8]] for row in recipes.outputs(model).tolist()]
    expect("pretrained", facts | {"masks": masks_on, "outputs": answer})


def cache() -> None:
    """A finished run as `Cached` keeps it."""
    shutil.rmtree(recipes.CACHE, ignore_errors=True)
    judge = ms.Cached(recipes.planted(), recipes.CACHE)
    reports = list(judge(masks.star(), seed=7, workdir=recipes.CACHE / "none"))
    expect("cache", [[report.step, dict(report.values)] for report in reports])


def importance() -> None:
    """An importance of key positions, as a file."""
    model = ms.load_pretrained(recipes.MODELS / "bert_table")
    ids = recipes.input_ids()
    batches = [{"input_ids": ids, "labels": ids}, {"input_ids": ids.flip(1), "labels": ids}]
    found = ms.importance(model, batches)
    found.save(recipes.HERE / "importance.safetensors")
    expect("importance", recipes.table(found.frame()))


def data() -> None:
    """A text, and one task of each kind of fine-tuning over its words."""
    shutil.rmtree(recipes.DATA, ignore_errors=True)
    (recipes.DATA / "glue" / "SST-2").mkdir(parents=True)
    (recipes.DATA / "squad").mkdir()
    (recipes.DATA / "swag").mkdir()
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    (recipes.DATA / "text.txt").write_text("".join(f"{words(8, 8)}\n" for _ in range(2200)))
    for part, other, count in (("train", "train", 12), ("dev", "val", 6)):
        rows = [f"{words(2, 12)}\t{draw.randint(0, 1)}\n" for _ in range(count)]
        path = recipes.DATA / "glue" / "SST-2" / f"{part}.tsv"
        path.write_text("sentence\tlabel\n" + "".join(rows))
        path = recipes.DATA / "swag" / f"{other}.jsonl"
        items = [
            {
                "startphrase": words(3, 6),
                "answer": draw.randrange(4),
                "choices": [words(2, 5) for _ in range(4)],
            }
            for _ in range(count)
        ]
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        paragraphs = []
        for number in range(count):
            context = words(6, 9)
            answer = context.split()[2]
            place = {"text": answer, "answer_start": len(" ".join(context.split()[:2])) + 1}
            asked = {"id": f"{part}-{number}", "question": words(3, 5), "answers": [place]}
            paragraphs.append({"context": context, "qas": [asked]})
        told = {"version": "1.1", "data": [{"title": part, "paragraphs": paragraphs}]}
        (recipes.DATA / "squad" / f"{part}-v1.1.json").write_text(json.dumps(told) + "\n")


def protocols() -> None:
    """The ids that results are found by."""
    with tempfile.TemporaryDirectory() as folder:
        expect("protocols", recipes.protocols(Path(folder)))


PARTS = {
    "studies": studies,
    "masks": mask_files,
    "models": models,
    "cache": cache,
    "importance": importance,
    "data": data,
    "protocols": protocols,
    "pretrained": pretrained,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for part in sys.argv[1:] or PARTS:
        if part.startswith("killed:"):
            begun(part.removeprefix("killed:"))
        else:
            PARTS[part]()
