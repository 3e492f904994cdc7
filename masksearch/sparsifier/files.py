"""The folder of `sparsify`: what may be there already, and what is written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from masksearch.driver import Comparison, Study, open_study
from masksearch.errors import DataError
from masksearch.evaluators.embedding import EmbeddingEvaluator
from masksearch.evaluators.tuning import rescale
from masksearch.files import write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.models.card import Findings
from masksearch.models.checkpoints import CONFIG, VERSION, find_folder, quiet
from masksearch.models.pretrained import tuned_kind
from masksearch.models.saving import copy_tokenizer, limit_length, save_pretrained, save_tokenizer
from masksearch.sparsifier.answers import TIMES, beside, facts_of, with_times
from masksearch.sparsifier.request import (
    CACHE,
    CALL,
    JUDGED,
    KEPT,
    MODEL,
    PLAIN,
    RESULT,
    RUN,
    Judge,
    SparsifyRequest,
    build_judge,
)


@dataclass(frozen=True)
class Sparsified:
    """The result of `sparsify`: its answer, and the model that was saved.

    Args:
        answer: Which mask is saved, by the better mean; whether the searched one is shown to be
            better than the best hand-designed one of its cost, or worse; and what the saved one
            loses to dense attention, as it is and recovered.
        mask: The saved one.
        folder: Of the model with its mask, as `load_pretrained` opens it.
        comparison: The masks on rows that no search has read; after a recovery their scores as
            they are stand beside it.
        study: The search; None where no mask was searched.
    """

    answer: str
    mask: Mask
    folder: Path
    comparison: Comparison
    study: Study | None


def check_folder(request: SparsifyRequest) -> None:
    """Refuses a folder of something else, or of another call.

    Raises:
        DataError: If the folder holds other files, or was begun with other arguments.
    """
    out, about, path = request.out, request.about, request.run / CALL
    if not path.is_file() and out.exists():  # a cache alone is of a call that was refused
        files = [each for each in [out, *out.rglob("*")] if not each.is_dir()]
        if any(request.run / CACHE not in each.parents for each in files):
            raise DataError(f"{out} holds something else already; give a new folder")
    before = request.noted or about
    if before.get("task") == repr(request.task):  # as versions before wrote one of one's own
        before["task"] = about["task"]
    other = [name for name in about if before.get(name) != about[name]]
    if other and request.has_begun:
        raise DataError(
            f"{out} was begun with {other[0]}={before.get(other[0])}, got "
            f"{about[other[0]]}; give a new folder, or the same call again"
        )
    if other:
        (request.run / KEPT).unlink(missing_ok=True)  # timings of another call


def read_ended(request: SparsifyRequest) -> Sparsified | None:
    """The result of the same call, where it has ended: nothing is trained again."""
    out, run = request.out, request.run
    path = out / RESULT
    result = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if result.get("asked") != request.asked:
        return None
    build_judge(request)  # refuses rows and weights that have changed since
    names = {row["mask"] for row in result["masks"]}
    plain = comparison = _only(names, Comparison.open(run / PLAIN))
    if result["recover_steps"]:
        comparison = beside(_only(names, Comparison.open(run / JUDGED)), plain)
    if TIMES in result:
        comparison = with_times(comparison, result[TIMES])
    masks = {record.name: record.mask for record in comparison.records}
    answer, mask = result["answer"], masks[result["saved"]["mask"]]
    assert mask is not None
    search = replace(request, work=result["work"]).search_folder(request.seed)
    study = open_study(search) if search.is_dir() else None
    return Sparsified(answer, mask, out, comparison, study)


def _only(names: set[str], comparison: Comparison) -> Comparison:
    """The masks of these names; calls with other seeds have left more."""
    kept = tuple(record for record in comparison.records if record.name in names)
    return replace(comparison, records=kept)


def dense_folder(start: Judge, run: Path, seed: int) -> Path:
    """The folder of the fine-tuned model: the checkpoint itself where it has a head, or embeds."""
    given, folder = find_folder(str(start.weights))[1], run / MODEL
    if isinstance(start, EmbeddingEvaluator) or tuned_kind(given) is not None:
        return given
    if not (folder / CONFIG).is_file():
        (name,) = start.downstream
        head: Any = rescale(start.dense(name, seed), start.unit(name))
        part = folder.with_name(f"{MODEL}.part")
        with quiet():  # its bar
            head.eval().whole.save_pretrained(part)
        _put_tokenizer(start, given, head.whole, part)
        part.rename(folder)
    return folder


def _put_tokenizer(judge: Judge, given: Path, model: Any, out: Path) -> None:
    """Puts the tokenizer that has made the rows beside a model: the checkpoint's, or the one of
    the settings."""
    if isinstance(judge, EmbeddingEvaluator) or judge.tokenizer is None:
        copy_tokenizer(given, out)
    else:
        save_tokenizer(getattr(judge.source, "whole", judge.source), model, out)


def save(
    request: SparsifyRequest,
    full: Judge,
    studies: Mapping[str, Study],
    rungs: Mapping[int, Comparison],
    comparison: Comparison,
    plain: Comparison,
) -> Sparsified:
    """Writes the mask of the better mean with the weights of its median seed, the result and the
    page.

    Args:
        request: The call.
        full: Judges masks, and has kept their weights.
        studies: The searches.
        rungs: Steps of recovery -> how hand-designed masks were compared.
        comparison: The masks that were judged after recovery; without one as they are.
        plain: These as they are.
    """
    study = next(iter(studies.values()))
    advice = comparison.recommend(request.limit)
    taken = comparison.entries[advice.name]
    sound = [seed for seed in taken.scores if seed not in taken.diverged]
    seed, by_seed = _median_seed(request, full, advice.mask, sound)
    saved = {"mask": taken.name, "score": taken.scores[seed], "density": 1 - taken.sparsity}
    if request.recover_steps:
        saved |= {"seed": seed, "scores on rows of the search": by_seed}
    records = [record for each in studies.values() for record in each.records()]
    records += [record for each in rungs.values() for record in each.records]
    records += [*plain.records, *(comparison.records if request.recover_steps else ())]
    result = {
        "trainings": len(records),
        "saved": saved,
        **facts_of(request, full, rungs, advice, comparison, plain),
    }
    rows = full.shape.read or False  # that the head reads: work is known of no other model
    model = full.adapted(advice.mask, seed=seed, drop_tokens=rows if request.work else False)
    return write_folder(request, full, result, advice.mask, model, comparison, study)


def write_folder(
    request: SparsifyRequest,
    full: Judge,
    result: Mapping[str, Any],
    mask: Mask,
    model: nn.Module,
    comparison: Comparison,
    study: Study | None,
    *,
    length: int | None = None,
    section: str = "",
) -> Sparsified:
    """Writes a model with its mask, the result and the page.

    Args:
        request: The call.
        full: Has judged.
        result: What `result.json` holds beside the call: with `answer` and `saved`.
        mask: The one that was taken.
        model: With it.
        comparison: The masks that were judged.
        study: The search, if there was one.
        length: Tokens at which the tokenizer is to cut; None = at the mask's length.
        section: HTML that begins the page.
    """
    out, answer, saved = request.out, result["answer"], result["saved"]
    about: dict[str, Any] = {
        "model": str(request.model),
        "task": full.downstream[0],
        "seconds": request.spent(),
        "budget": request.budget,
        "work": request.work,
        "recover_steps": request.recover_steps,
        "asked": request.asked,
        "versions": {"masksearch": VERSION, "torch": torch.__version__},
    }
    metric = "agreement with the dense model" if full.keeps_answers else full.objectives[0].name
    told = answer, about["model"], about["task"], metric, saved["score"], saved.get("way", "")
    save_pretrained(model, out, found=Findings(*told))
    _put_tokenizer(full, find_folder(about["model"])[1], model, out)
    limit_length(out, model, length)
    comparison = replace(comparison, notes={"answer": answer})
    page = comparison.report(request.run / "report" / "report.html").read_text("utf-8")
    page = page.replace("Beside this page", f"In {RUN}/report")  # where its files lie
    page = page.replace("<main>", f"<main>{section}", 1)
    write_text_in_one_move(out / "report.html", page)
    text = json.dumps({**about, **result}, indent=1, default=str)
    write_text_in_one_move(out / RESULT, f"{text}\n")
    return Sparsified(answer, mask, out, comparison, study)


def _median_seed(
    request: SparsifyRequest, full: Judge, mask: Mask, seeds: Sequence[int]
) -> tuple[int, dict[int, float]]:
    """The seed whose recovery has the median score on rows of the search, and these scores; of
    recoveries that were kept, so that nothing is trained."""
    by_seed: dict[int, float] = {}
    for seed in seeds:
        *_, last = full(mask, seed=seed, workdir=request.run / "choose" / str(seed))
        by_seed[seed] = last.values[full.objectives[0].name]
    middle = statistics.median_low(by_seed.values())
    return next(seed for seed, score in by_seed.items() if score == middle), by_seed
