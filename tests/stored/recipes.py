"""How the stored fixtures were made, in public names: read by make.py and by test_stored.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stored.judges import Formula

import masksearch as ms
from masksearch import masks

HERE = Path(__file__).parent
STUDIES, EXPECTED, DATA = HERE / "studies", HERE / "expected", HERE / "data"
MODELS, MASKS, CACHE = HERE / "models", HERE / "masks", HERE / "cache"
PRETRAINED = HERE / "pretrained"
LENGTH = 12  # positions of the planted process
SEEDS = (100, 101, 102)  # of the comparison


# -- evaluators --------------------------------------------------------------------------------
def planted() -> ms.PlantedEvaluator:
    """A tenth of a second a mask."""
    process = ms.PlantedProcess(length=LENGTH, offsets=(4,), vocabulary=4)
    return ms.PlantedEvaluator(
        process, steps=6, downstream_steps=2, held_out_sequences=32, gate_batch=8
    )


def glue_corpus() -> ms.PlantedGlue:
    """Text and tasks of some kilobytes, written anew by each test."""
    return ms.PlantedGlue(lines=200, valid_lines=40, rows=72, dev_rows=36)


def glue(folder: Path) -> ms.GlueEvaluator:
    """Half a second a mask.

    Args:
        folder: What `glue_corpus().write` has filled.
    """
    return ms.GlueEvaluator(
        folder / "text",
        folder,
        tasks=("acceptability",),
        rows=64,
        steps=4,
        reports=2,
        size="nano",
        length=19,
        vocabulary=40,
        batch=8,
        epochs=1,
        held_out_sequences=8,
        cache=folder / "cache",
        device="cpu",
        half="all",
    )


class Counted(ms.Evaluator):
    """An evaluator that counts how often it is called."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator
        self.shape, self.objectives = evaluator.shape, evaluator.objectives
        self.protocol = evaluator.protocol
        self.calls = 0

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[ms.Report]:
        self.calls += 1
        return self.evaluator(mask, seed=seed, workdir=workdir)

    def differentiable(self, seed: int) -> Any:
        self.calls += 1
        return self.evaluator.differentiable(seed)


# -- studies -----------------------------------------------------------------------------------
def space(name: str) -> Callable[..., ms.Mask]:
    """A function of spaces.py, whose text the studies know."""
    return ms.load_function(f"{HERE / 'spaces.py'}:{name}")


def finished() -> dict[str, Any]:
    return {
        "space": space("windows"),
        "trials": 6,
        "seed": 0,
        "constraints": ["sparsity >= 0.2"],
        "baselines": {"star": masks.star(), "longformer": masks.longformer(2, 1)},
    }


def killed() -> dict[str, Any]:
    return {
        "space": space("windows"),
        "trials": 6,
        "seed": 1,
        "baselines": {"star": masks.star()},
        "scheduler": ms.ParetoHalving(rungs=(3,), metric="loss"),
    }


def dam() -> dict[str, Any]:
    return {
        "space": None,
        "trials": 4,
        "strategy": "dam",
        "strategy_options": {
            "gates": {"structure": "toeplitz+global", "global_count": 1},
            "config": {"steps": 12, "density": 0.3},
            "densities": (0.4, 0.3, 0.01),
        },
    }


def shared() -> dict[str, Any]:
    return {
        "space": space("windows"),
        "trials": 4,
        "strategy": "shared+tpe",
        "strategy_options": {"steps": 6, "candidates": 12, "bands": 3},
    }


def evolution() -> dict[str, Any]:
    return {
        "space": space("mixed"),
        "trials": 12,
        "seed": 2,
        "strategy": "evolution",
        "strategy_options": {"population": 4, "sample": 2},
    }


def random() -> dict[str, Any]:
    return {"space": space("mixed"), "trials": 8, "strategy": "random"}


def journal() -> dict[str, Any]:
    return {
        "space": space("mixed"),
        "trials": 8,
        "seed": 4,
        "strategy": "random",
        "scheduler": ms.ParetoHalving(rungs=(1, 2)),
    }


def glue_search() -> dict[str, Any]:
    return {"space": space("windows"), "trials": 3, "strategy": "random", "seed": 1}


# Name -> arguments of `ms.search` beside evaluator, run and storage, and the evaluator.
SEARCHES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], Any] | None]] = {
    "finished": (finished, planted),
    "killed": (killed, planted),
    "dam": (dam, planted),
    "shared": (shared, planted),
    "evolution": (evolution, Formula),
    "random": (random, Formula),
    "journal": (journal, Formula),
    "glue": (glue_search, None),  # its evaluator takes a folder of data
}


def storage(name: str, run: Path) -> str | None:
    """Where the trials of a study are kept; None = in the run folder's SQLite."""
    return f"journal:{run / 'study.journal'}" if name == "journal" else None


def search(name: str, run: Path, evaluator: Any, **changed: Any) -> ms.Study:
    """The stored search, begun or gone on with."""
    given = SEARCHES[name][0]() | changed
    return ms.search(given.pop("space"), evaluator, run=run, storage=storage(name, run), **given)


def bits(*shape: int, seed: int = 0, share: float = 0.4) -> torch.Tensor:
    """Random cells, and the diagonal of square ones; numpy has frozen this stream."""
    draws = np.random.RandomState(seed).random_sample(shape)
    cells = draws < share
    if len(shape) > 1 and shape[-1] == shape[-2]:
        cells |= np.eye(shape[-1], dtype=bool)
    return torch.from_numpy(cells)


def candidates() -> dict[str, ms.Mask]:
    """The masks of the comparison."""
    return {
        "dense": masks.full(),
        "star": masks.star(),
        "random keys": masks.random_keys(3) | masks.window(0),
        "found": masks.table(bits(LENGTH, LENGTH)),
        "mine": masks.per_head([masks.window(2), masks.stride(3)]),
    }


def compare(run: Path, evaluator: Any, seeds: tuple[int, ...] = SEEDS) -> ms.Comparison:
    """The stored comparison."""
    return ms.compare(candidates(), evaluator, run=run, seeds=seeds)


def wide() -> dict[str, ms.Mask]:
    """A mask so big that a study keeps it in a file of its own."""
    return {"wide": masks.table(bits(316, 316)), "dense": masks.full()}


# -- what is compared --------------------------------------------------------------------------
def described(study: ms.Study) -> dict[str, Any]:
    """What a study says of itself, as JSON gives it back."""
    found = {
        "shape": [study.shape.length, study.shape.layers, study.shape.heads],
        "objectives": [[o.name, o.goal, o.worst] for o in study.objectives],
        "records": [row(record) for record in study.records()],
        "frontier": [record.number for record in study.frontier()],
        "best": [study.best(s, baselines=True).number for s in (0.0, 0.5)],
        "columns": list(study.frame().columns),
    }
    return json.loads(json.dumps(found))


def row(record: ms.Record) -> dict[str, Any]:
    """A record, its mask and its job as text."""
    names = ("Evaluate", "OneShot", "Shared")
    kinds = [name for name in names if isinstance(record.job, getattr(ms, name))]
    return {
        "number": record.number,
        "status": record.status,
        "job": kinds[0] if kinds else "",
        "mask": "" if record.mask is None else str(record.mask),
        "digest": "" if record.mask is None else record.mask.digest,
        "fingerprint": record.fingerprint,
        "protocol": record.protocol,
        "seed": record.seed,
        "params": dict(record.params),
        "origin": record.origin,
        "values": dict(record.values),
        "step": record.step,
        "curve": [[report.step, dict(report.values)] for report in record.curve],
        "measures": dict(record.measures),
        "artifacts": dict(record.artifacts),
        "seconds": record.seconds,
        "error": record.error,
    }


def table(frame: Any) -> list[dict[str, Any]]:
    """The rows of a data frame as JSON gives them back; NaN as None."""
    rows = frame.to_dict("records")
    return json.loads(
        json.dumps(
            [
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()}
                for r in rows
            ],
            default=lambda value: value.item(),
        )
    )


# -- masks -------------------------------------------------------------------------------------
SEP, TOKENS = 3, [2, 7, 8, 3, 9, 10, 11, 3]  # a row of input ids, as for BERT


def leaves() -> dict[str, ms.Mask]:
    """A mask of every kind."""
    return {
        "full": masks.full(),
        "causal": masks.causal(),
        "window": masks.window(2),
        "dilated": masks.dilated(6, 3),
        "stride": masks.stride(3),
        "offsets": masks.offsets([0, 1, 5]),
        "shifts": masks.shifts([-2, 0, 1]),
        "powers_of_two": masks.powers_of_two(),
        "blocks": masks.blocks(4),
        "block_columns": masks.block_columns(4, 2),
        "columns": masks.columns(2),
        "columns_at": masks.columns(positions=[0, 5, 400]),
        "global_tokens": masks.global_tokens(2),
        "global_tokens_at": masks.global_tokens(positions=[3, 1]),
        "random_keys": masks.random_keys(3, seed=7),
        "axial": masks.axial(32, 32, 1) | masks.window(0),
        "butterfly": masks.butterfly(2),
        "block_layout": masks.block_layout(bits(6, 6), 4),
        "table": masks.table(bits(24, 24)),
        "table_heads": masks.table(bits(2, 24, 24, seed=1)),
        "table_layers": masks.table(bits(2, 2, 24, 24, seed=2)),
        "toeplitz": masks.toeplitz(torch.tensor([True, False, True, True] * 6)),
        "toeplitz_signed": masks.toeplitz(bits(2, 47, seed=3), signed=True) | masks.window(0),
    }


def combined() -> dict[str, ms.Mask]:
    """Every combinator, and the recipes."""
    window, hubs = masks.window(3), masks.global_tokens(1)
    return {
        "or": window | hubs | masks.stride(7),
        "and": masks.causal() & masks.window(4),
        "not": ~masks.window(2),
        "minus": masks.window(4) - masks.offsets([2]),
        "nested": ((window | hubs) & ~masks.dilated(4, 2)) | masks.window(0),
        "per_head": masks.per_head([window, masks.table(bits(24, 24, seed=4))]),
        "per_layer": masks.per_layer(
            [masks.per_head([window, hubs | window]), masks.per_head([masks.full(), window])]
        ),
        "cropped": masks.cropped(masks.table(bits(30, 30, seed=5)), 30),
        "without_diagonal": masks.without_diagonal(window | hubs),
        "layer_of": masks.layer_of(masks.per_layer([window, masks.stride(2)]), 1),
        "a_shape": masks.a_shape(2, 3),
        "vertical_slash": masks.vertical_slash([0, 4], [0, 2]),
        "parsed": masks.parse("window(2) | global_tokens(1) - offsets([1])"),
        **{f"family_{name}": mask for name, mask in ms.FAMILIES.items()},
    }


def content() -> dict[str, ms.Mask]:
    """Masks that depend on the tokens."""
    seps = masks.special_tokens(SEP)
    return {
        "special_tokens": masks.special_tokens(2, SEP) | masks.window(0),
        "content_or": masks.window(1) | seps,
        "content_and": (seps & masks.causal()) | masks.window(0),
        "content_not": ~seps | masks.window(0),
        "content_per_head": masks.per_head([masks.window(1) | seps, masks.full()]),
        "content_per_layer": masks.per_layer([masks.window(1) | seps, masks.star()]),
        "content_table": masks.table(bits(8, 8, seed=6)) | seps,
    }


LENGTHS = (24, 30, 1000)  # at which cells are counted, where a mask has them
TENSORS = ("table", "table_heads", "table_layers", "toeplitz_signed", "block_layout", "per_head")


def mask_facts(mask: ms.Mask) -> dict[str, Any]:
    """What must be equal after reading: identity, text, kept cells, bits."""
    kept, prints = {}, {}
    for length in LENGTHS:
        try:
            kept[str(length)] = mask.kept(length)
        except ms.LengthError:
            continue
        shape = ms.Shape(length, mask.layers or 1, mask.heads or 1)
        try:
            prints[str(length)] = ms.fingerprint(mask, shape)
        except ms.EmptyRowError:
            prints[str(length)] = "empty rows"
    return {
        "digest": mask.digest,
        "text": str(mask),
        "layers": mask.layers,
        "heads": mask.heads,
        "length": mask.length,
        "kept": kept,
        "fingerprints": prints,
    }


def content_facts(mask: ms.Mask) -> dict[str, Any]:
    """The same of a content mask: its tables over `TOKENS`, one a layer."""
    tables = []
    for layer in range(mask.layers or 1):
        cells = masks.layer_of(mask, layer).table(torch.tensor([TOKENS]))
        tables.append(cells[0].int().tolist())
    return {"text": str(mask), "tables": tables}


# -- models ------------------------------------------------------------------------------------
def input_ids() -> torch.Tensor:
    """One row of fixed tokens."""
    return torch.tensor([[2, 7, 19, 4, 11, 23, 5, 17, 9, 28, 6, 3]])


def outputs(model: Any) -> torch.Tensor:
    """Logits, or last states, for `input_ids`, `[12, width]`."""
    more = {}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = input_ids().flip(1)
    with torch.no_grad():
        return model(input_ids=input_ids(), **more)[0][0]


def pretraining(out: Path) -> list[str]:
    """The command of the stored checkpoint."""
    words: dict[str, Any] = {"corpus": DATA / "text.txt", "out": out, "size": "nano", "steps": 4}
    words |= {"length": 16, "vocabulary": 60, "batch": 4, "reports": 2, "device": "cpu"}
    given = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    return ["pretrain", "window(2) | global_tokens(1)", *given]


# -- protocols ---------------------------------------------------------------------------------
def protocols(folder: Path) -> dict[str, str]:
    """Ids of evaluators, over the files of `DATA`; of all rows, as versions without halves had it.

    Args:
        folder: For caches and planted data.
    """
    text, cache = DATA / "text.txt", folder / "cache"
    glue_corpus().write(folder / "planted")
    mlm = ms.MlmEvaluator(text, cache=cache, half="all")
    plain = ms.PlantedEvaluator()
    judges = {
        "PlantedEvaluator()": plain,
        "planted()": planted(),
        "PlantedEvaluator(2 keys)": ms.PlantedEvaluator(ms.PlantedProcess(keys=2), size="tiny"),
        "MlmEvaluator(text)": mlm,
        "MlmEvaluator(text, roberta, bfloat16)": ms.MlmEvaluator(
            text,
            cache=cache,
            half="all",
            architecture="roberta",
            precision="bfloat16",
            dropout=0.1,
        ),
        "MlmEvaluator(text, mlm+order)": ms.MlmEvaluator(
            text,
            cache=cache,
            half="all",
            pretraining="mlm+order",
            whole_words=True,
            micro_batches=2,
        ),
        "GlueEvaluator(text, glue)": ms.GlueEvaluator(
            text, DATA / "glue", tasks=("SST-2",), cache=cache, half="all"
        ),
        "GlueEvaluator(text, glue, frozen)": ms.GlueEvaluator(
            text,
            DATA / "glue",
            tasks=("SST-2",),
            cache=cache,
            half="all",
            frozen=1,
            finetune_seeds=2,
        ),
        "GlueEvaluator(planted)": glue(folder / "planted"),
        "SquadEvaluator(text, squad)": ms.SquadEvaluator(
            text, DATA / "squad", cache=cache, half="all"
        ),
        "SwagEvaluator(text, swag)": ms.SwagEvaluator(
            text, DATA / "swag", cache=cache, half="all"
        ),
        "CostEvaluator()": ms.CostEvaluator(),
        "CostEvaluator(flops, memory)": ms.CostEvaluator(length=64, measure=("flops", "memory")),
        "WithCost(PlantedEvaluator(), memory)": ms.WithCost(plain, latency=False, memory=True),
        "Cached(PlantedEvaluator())": ms.Cached(plain, cache),
    }
    return {name: judge.protocol for name, judge in judges.items()}
