"""The command of one large run: pretrain."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.cli.options import (
    MODEL,
    OUTPUT,
    REQUIRED,
    MaskArgument,
    Preset,
    declare,
    described,
    described_values,
    option,
    takes,
)
from masksearch.cli.resuming import COMMAND, resumable
from masksearch.errors import ResumeError
from masksearch.files import read_object
from masksearch.training.parts import read_settings

if TYPE_CHECKING:
    from masksearch.contracts import Report
    from masksearch.evaluators.mlm import MlmEvaluator
    from masksearch.masks.core import Mask

DATA = "The text"
TRAINING = "The training"
SETTINGS, CURVE = "settings.json", "curve.csv"
OTHER = "the text, or the version of masksearch"  # of what only a protocol tells apart


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Options of pretrain."""

    mask: MaskArgument
    corpus: Annotated[
        str,
        declare("Plain text: a file, a folder of .txt files, or hf:OWNER/NAME.", DATA, "", "TEXT"),
    ]
    out: Path = option(
        "Folder of the model; killed runs go on.", OUTPUT, "", "FOLDER", default=REQUIRED
    )
    preset: Preset = None
    seed: int = option(
        "Seed of weights, order of the text and masked tokens.", TRAINING, "", "N", default=0
    )
    set: list[str] | None = option(
        "Any other setting of ms.MlmEvaluator, by its name; repeatable: batch=64, lr=1e-3, "
        "vocabulary=4096, tokenizer=FILE, architecture=roberta, pretraining=mlm+next, "
        "whole_words=true, dropout=0.1, optimiser=lamb, micro_batches=4, precision=bfloat16, "
        "device=cuda, compile=true, reports=8, checkpoint_seconds=60.",
        *(TRAINING, "", "NAME=VALUE"),
        name="--set",
    )
    size: str | None = described(MODEL)
    weights: str | None = described(MODEL)
    length: int | None = described(DATA)
    steps: int | None = described(TRAINING)


@takes({"": "masksearch.evaluators.mlm:MlmEvaluator"}, config=True)
def pretrain(options: PretrainOptions) -> None:
    """Pre-train one model under a mask: a large run. Repeating the command goes on with it.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m masksearch pretrain ...

    The folder is a checkpoint for transformers and for `masksearch compare MASK --weights`.

    Examples:
        masksearch pretrain "window(8)" --corpus README.md --steps 60 --out runs/model
        masksearch pretrain star --corpus README.md --size 3x96x4 --steps 60 --out runs/star
    """
    from masksearch.cli.build import further_settings, read_mask, split_settings
    from masksearch.evaluators.mlm import MlmEvaluator
    from masksearch.training.accumulation import join_processes

    chosen, seed, out = read_mask(options.mask), options.seed, options.out
    settings = described_values(options)
    texts = split_settings(options.set or (), ()).get("", {})
    settings |= further_settings(MlmEvaluator, texts)
    with join_processes() as group:
        preset = options.preset
        make = MlmEvaluator if preset is None else partial(MlmEvaluator.preset, preset)
        evaluator = make(options.corpus, split="all", **settings)
        run = {
            "mask": str(chosen),
            "digest": chosen.digest,
            "protocol": evaluator.protocol,
            "seed": seed,
            "settings": _plain_settings(evaluator),
        }
        if _holds_finished(out, run):
            if group.first:
                typer.echo(f"{out} holds this model already; --out ANOTHER trains it anew")
            return
        if group.first:  # what failed before it came to a checkpoint is no command to repeat
            (out / COMMAND).unlink(missing_ok=True)
        with resumable(out, "pretrain", vars(options)) if group.first else nullcontext():
            last = _train_and_save(evaluator, chosen, seed, out, run, writes=group.first)
        if group.first:
            values = "  ".join(f"{name} {value:.4f}" for name, value in last.values.items())
            typer.echo(f"step {last.step}  held-out {values}")
            typer.echo(f"model: {out.resolve()}")


def _plain_settings(evaluator: MlmEvaluator) -> dict[str, Any]:
    """The evaluator's settings as plain data."""
    settings = {name: value for name, value in read_settings(evaluator).items() if name != "split"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}


def _holds_finished(out: Path, run: dict[str, Any]) -> bool:
    """Whether a folder holds the finished run. What another one has left is no hindrance where
    that came to no checkpoint.

    Raises:
        ResumeError: If it holds another one, or a model that this command has not written.
        SearchError: If its settings are damaged.
    """
    from masksearch.evaluators.mlm import PRETRAINING
    from masksearch.models.checkpoints import MANIFEST
    from masksearch.training.checkpoints import Checkpoints

    path, weights = out / SETTINGS, (out / "model.safetensors").is_file()
    finished = weights and (out / MANIFEST).is_file()  # which is written last
    if not path.is_file():
        if weights:
            raise ResumeError(f"{out} holds a model of another origin; choose another --out")
        return False
    if not finished and not Checkpoints(out, PRETRAINING).files():
        return False
    stored = read_object(path, "choose another --out", digest=str, protocol=str, seed=int)
    if any(stored[name] != run[name] for name in ("digest", "protocol", "seed")):
        changed = [name for name in ("mask", "seed") if stored.get(name) != run[name]]
        before = dict(stored.get("settings") or {})
        changed += [name for name, value in run["settings"].items() if before.get(name) != value]
        raise ResumeError(
            f"{out} holds another run; not the same: {', '.join(changed) or OTHER}. Repeat "
            "its command, or choose another --out"
        )
    return finished


def _train_and_save(
    evaluator: MlmEvaluator, mask: Mask, seed: int, out: Path, run: dict[str, Any], *, writes: bool
) -> Report:
    """Trains, with everything written to the folder by the process that `writes`.

    Returns:
        The last report.
    """
    import pandas as pd

    from masksearch.attention.attach import attach, detach
    from masksearch.evaluators.mlm import PRETRAINING
    from masksearch.files import write_text_in_one_move
    from masksearch.masks.measure import keys_of_rows
    from masksearch.models.encoders import MaskedLanguageModel
    from masksearch.models.saving import save_pretrained
    from masksearch.study.console import progress
    from masksearch.training.checkpoints import Checkpoints

    keys_of_rows(mask, evaluator.shape)  # refuses a mask that does not fit
    model = evaluator.build_model(seed)
    written: Any = model if isinstance(model, MaskedLanguageModel) else model.encoder
    if writes:
        write_text_in_one_move(out / SETTINGS, json.dumps(run, indent=1))
    curve: list[Report] = []
    with progress("pre-training") if writes else nullcontext():
        for report in evaluator.pretrain(model, mask, seed=seed, workdir=out):
            curve.append(report)
            if writes:
                rows = pd.DataFrame([{"step": r.step, **r.values} for r in curve])
                write_text_in_one_move(out / CURVE, rows.to_csv(index=False, float_format="%.6f"))
    if writes:
        detach(model)
        attach(written, mask)
        save_pretrained(written, out, tokenizer=evaluator.task().corpus)
    Checkpoints(out, PRETRAINING).clear()
    return curve[-1]
