"""Writes what this version stores, for tests/test_stored.py of every later one.

    PYTHONPATH=.:tests python tests/stored/write.py tests/stored/0.2.0

A folder of an earlier version is never written again: it stands for the files that people have.
A release whose files look different gets a folder of its own beside the others.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_decoder import letter_decoder
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch_decoders import Serving, allocate

LETTERS = "abcdefghijkl="
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 16}
LENGTH = 12
SPACE = '''"""Three trials of it were stored."""

import masksearch as ms
from masksearch import masks


def space(trial):
    near = masks.window(trial.suggest_int("reach", 0, 3))
    return near | masks.stride(trial.suggest_int("period", 3, 10))


def judge():
    return ms.PlantedEvaluator.graded(steps=40, held_out_sequences=64)
'''
CELLS = torch.arange(LENGTH)[:, None] % 3 == torch.arange(LENGTH) % 4
KINDS = {  # one of each kind
    "and": masks.window(4) & masks.stride(3),
    "axial": masks.axial(3, 4),
    "block_columns": masks.block_columns(4, 2),
    "block_layout": masks.block_layout(CELLS[:3, :3], 4),
    "blocks": masks.blocks(4),
    "butterfly": masks.butterfly(2),
    "causal": masks.causal(),
    "columns": masks.columns(2),
    "cropped": masks.cropped(masks.blocks(5), at=LENGTH),
    "dilated": masks.dilated(4, 2),
    "full": masks.full(),
    "global_tokens": masks.global_tokens(1),
    "not": ~masks.window(2),
    "offsets": masks.offsets([0, 3]),
    "or": masks.window(1) | masks.columns(positions=(0, 5)),
    "per_head": masks.per_head([masks.window(1), masks.full()]),
    "per_layer": masks.per_layer([masks.window(1), masks.full()]),
    "powers_of_two": masks.powers_of_two(),
    "random_keys": masks.random_keys(2, seed=3),
    "same_token": masks.same_token([0, 2]),
    "shifts": masks.shifts([1, 4]),
    "special_tokens": masks.special_tokens(0, 2),
    "stride": masks.stride(3),
    "table": masks.table(CELLS),
    "token_columns": masks.token_columns([0, 2]),
    "toeplitz": masks.toeplitz(CELLS[0]),
    "window": masks.window(2),
}


def write_run(run: Path) -> None:
    """Three trials and their page's data, without names of the machine that ran them."""
    run.mkdir()
    (run / "space.py").write_text(SPACE, "utf-8")
    program = [sys.executable, "-m", "masksearch"]
    words = [f"{run}/space.py:space", "--evaluator", f"{run}/space.py:judge", "--trials", "3"]
    subprocess.run([*program, "search", *words, "--run", run], check=True)
    subprocess.run([*program, "report", run], check=True)
    for path in [*run.glob(".*.lock"), run / "report.html"]:
        path.unlink(missing_ok=True)
    shutil.rmtree(run / "tables")
    for path in (run / "figures").iterdir():
        if path.suffix != ".svg":  # the page shows these
            path.unlink()
    database = sqlite3.connect(run / "study.db")
    rows = dict(database.execute("SELECT key, value_json FROM study_user_attributes"))
    calls = json.loads(json.loads(rows["calls"]))
    for call in calls:
        call |= {"machine": "a machine", "folder": "/stored", "script": "/stored/masksearch"}
        call["space"] = "/stored/run/space.py:space"
        call.pop("commit", None)
    change = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'calls'"
    database.execute(change, [json.dumps(json.dumps(calls))])
    database.commit()
    for line in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 512", "VACUUM"):
        database.execute(line)
    database.close()
    status = json.loads((run / "status.json").read_text("utf-8"))
    (run / "status.json").write_text(json.dumps(status | {"host": "a machine"}), "utf-8")
    result = json.loads((run / "result.json").read_text("utf-8"))
    result["versions"] = [[n, v] for n, v in result["versions"] if n != "machine"]
    for recipe in result["recipes"]:
        recipe["rows"] = [row for row in recipe["rows"] if row[0] not in ("machine", "commit")]
    (run / "result.json").write_text(json.dumps(result), "utf-8")
    for path in (run / "command.json", run / "result.json"):
        text = path.read_text("utf-8").replace(str(run.parent), "/stored")
        path.write_text(text.replace(str(Path.cwd()), "/stored"), "utf-8")


def write_masks(folder: Path) -> None:
    """One mask of each kind, with the cells that it has; and one with a table, in both files."""
    cells = {}
    for kind, mask in KINDS.items():
        ms.save_mask(mask, folder / f"{kind}.json")
        if not mask.needs_tokens:
            length = mask.length or LENGTH
            cells[kind] = mask.dense(length, mask.layers or 1, mask.heads or 1).to(torch.uint8)
    mixed = masks.per_head([masks.table(CELLS), masks.window(2) | masks.columns(1)])
    ms.save_mask(mixed, folder / "mixed.json")
    ms.save_mask(mixed, folder / "mixed.safetensors")
    save_file(cells, folder / "cells.safetensors")


@torch.no_grad()
def write_models(folder: Path, aside: Path) -> None:
    """A decoder, a plan for it, the folder with its mask, and one that an engine serves."""
    letter_decoder(aside, LETTERS, **SMALL)
    model = shutil.move(aside / "model", folder / "model")
    small = {"length": 96, "sequences": 16, "local": "columns(1) | window(3)"}
    run, out = aside / "allocated", folder / "served"
    plan = allocate(
        model, aside / "text", 0.6, method="restore", run=run, serve="vllm", out=out,
        sinks="calibrate", serving=Serving(in_flight=8), progress=None, **small,
    )  # fmt: skip
    text = (run / "plan.json").read_text("utf-8").replace(str(folder), "/stored")
    (folder / "plan.json").write_text(text, "utf-8")
    for name in ("serving.json", "SERVING.md"):
        path = out / name
        path.write_text(path.read_text("utf-8").replace(str(folder), "/stored"), "utf-8")
    saved = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ms.save_pretrained(ms.attach(saved, plan.mask), folder / "saved", found=plan)
    served = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokens = torch.arange(24)[None] * 5 % len(LETTERS)
    given = {"tokens": tokens, "saved": saved.eval()(tokens).logits}
    save_file(given | {"served": served.eval()(tokens).logits}, folder / "logits.safetensors")


def main(folder: Path) -> None:
    """Writes the folder, which is not there yet."""
    if folder.exists():
        raise SystemExit(f"{folder} is there: it stands for what an earlier version has written")
    with tempfile.TemporaryDirectory() as place:
        made, aside = Path(place) / "stored", Path(place) / "aside"
        (made / "masks").mkdir(parents=True)
        aside.mkdir()
        write_run(made / "run")
        write_masks(made / "masks")
        write_models(made, aside)
        shutil.copytree(made, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
