"""A trained encoder made sparse: fine-tuned without a mask, searched by its task on that model,
trained on under the mask, and judged beside hand-designed masks of the same cost.

found = sparsify("bert-base-uncased", "glue", 0.12, task="STS-B", out="sparse-bert")
print(found.answer)
model = load_pretrained(found.folder)

    OUT/        what save_pretrained writes, result.json, report.html
      run/      dense/ (the fine-tuned model), search-0.12/, compare-0.12/, ..

Each step finds what the one before has left, so the same call goes on after a kill.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from masksearch.analysis.pareto import ranked
from masksearch.analysis.stats import PairedDifference
from masksearch.contracts import Executor, Record
from masksearch.driver import Comparison, Study, compare, search
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.files import write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full, Window
from masksearch.masks.measure import effective_density
from masksearch.models.card import Findings
from masksearch.models.checkpoints import VERSION, find_folder, quiet
from masksearch.models.pretrained import tuned_kind
from masksearch.models.saving import copy_tokenizer, save_pretrained
from masksearch.strategies.build import kind_of
from masksearch.strategies.enqueued import hand_designed
from masksearch.study.records import read_budgets
from masksearch.study.status import clock
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.read import describe_rows
from masksearch.tasks.glue.tasks import GlueTask
from masksearch.user_code import load_function

FIRST_SEED = 1000  # of the recoveries that judge; those of a search are its own
SHORT = 4  # a trial recovers for that part of the steps
TEACHER = 1.4  # time of a step that learns from the dense model, too
DEFAULTS: Mapping[str, Any] = {  # of the evaluators, where the caller says nothing
    "learn_from": "both",
    "finetune_batch": 16,
    "recover_steps": 160,
    "gates_batch": 32,
    "rows": None,
    "dev_rows": None,
}
DAM: Mapping[str, Any] = {
    "gates": {"structure": "free"},
    "config": {"steps": 150, "gate_lr": 0.1},
}
SPACE, TRIALS = "masksearch.spaces:head_roles", 24  # of a strategy that draws
AGAIN = (  # rates by simulation: docs/statistics.md
    " The same call with {} seeds trains the missing ones alone; after such a second look equal "
    "masks are called better in 4.3 %, after one in 2.5 %."
)
MODEL, RESULT, RUN = "dense", "result.json", "run"
BEGUN = (MODEL, "cache")  # in its run folder, of a call that has trained something


@dataclass(frozen=True)
class Sparsified:
    """The result of `sparsify`: its answer, and the model that was saved.

    Args:
        answer: Which mask is saved, by the better mean; whether the searched one is shown to be
            better than the best hand-designed one of its cost, or worse; and what the saved one
            loses to dense attention.
        mask: The saved one.
        folder: Of the model with its mask, as `load_pretrained` opens it.
        comparison: The masks on rows that no search has read.
        study: The search.
    """

    answer: str
    mask: Mask
    folder: Path
    comparison: Comparison
    study: Study


@dataclass(frozen=True)
class Request:
    """The request of one call; fields are as of `sparsify`."""

    model: str | Path
    data: str | Path
    task: str | GlueTask | Columns
    out: Path
    strategy: str = "dam"
    strategy_options: Mapping[str, Any] | None = None
    trials: int | None = None
    seed: int = 0
    seeds: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)
    executor: Executor | None = None
    progress: Literal["auto"] | None = "auto"

    @property
    def run(self) -> Path:
        """Where dense model, searches and comparisons are."""
        return self.out / RUN

    @property
    def gated(self) -> bool:
        """Whether the strategy trains gates, by options of its own."""
        gated = kind_of(self.strategy).gated
        return gated is not None and gated({})

    @property
    def drawn(self) -> bool:
        """Whether the strategy draws from a space."""
        return kind_of(self.strategy).space != "none"

    def evaluator(self, weights: str | Path, **settings: Any) -> GlueEvaluator:
        """The evaluator of the task on those weights."""
        own = {"cache": self.run / "cache", "adapt": "recover", "tasks": (self.task,)}
        return GlueEvaluator(
            None, self.data, weights=weights, **{**DEFAULTS, **own, **self.settings, **settings}
        )


def sparsify(
    model: str | Path,
    data: str | Path,
    budget: float = 0.12,
    *,
    task: str | GlueTask | Columns,
    out: str | Path,
    strategy: str = "dam",
    strategy_options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seed: int = 0,
    seeds: int = 3,
    settings: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    progress: Literal["auto"] | None = "auto",
) -> Sparsified:
    """Gives a trained encoder a sparse mask, recovers it under that mask, and saves both.

    One dense model is fine-tuned on the task, in the class that
    `AutoModelForSequenceClassification` takes (a checkpoint that has a head for the task is taken
    as it is). The search, the hand-designed masks of the same cost and the export are all about
    this model. The best mask of each kind by rows that searches read is recovered with new
    seeds, and on rows that no search has read the better mean is saved. Whether it is shown to be
    better is said apart.

    Args:
        model: A checkpoint: a folder, or a name on the Hugging Face Hub.
        data: Folder with the task's folder (GLUE's TSV layout), or `hf:...`, as of
            `GlueEvaluator`; with `Columns` a folder of one's own with train.tsv and dev.tsv (or
            .csv).
        budget: Largest share of the non-padding query-key pairs that is kept, in (0, 1]. Where
            the head reads [CLS] alone, only that row of the last layer counts.
        task: GLUE's name, or a `GlueTask` of one's own, or the `Columns` of such a folder.
        out: A new folder, or that of the same call, which goes on.
        strategy: As of `search`: `"dam"`, `"prune"`, or a sampler, which draws from
            `masksearch.spaces:head_roles`.
        strategy_options: As of `search`; None = of DAM free gates, 150 steps at a rate of 0.1.
        trials: Trials of the search; None = those that DAM and "prune" need, of a sampler 24.
        seed: Of the dense model and of the search.
        seeds: How many recoveries judge each mask, from seed 1000 on; at least three decide.
        settings: Further settings of `GlueEvaluator`, such as `epochs`, `finetune_lr`,
            `recover_steps`, `length`, `device`.
        executor: As of `search`.
        progress: As of `search`.

    Returns:
        The answer, the mask, the folder that holds it, the comparison and the search.

    Raises:
        DataError: If model or data cannot be read or do not fit, or `out` holds something else.
        SearchError: If the dense model has learned nothing, or no mask within the budget has.
        ValueError: If the budget is below the diagonal, or no share.
    """
    request = Request(
        model,
        data,
        task,
        Path(out).expanduser(),
        strategy=strategy,
        strategy_options=strategy_options,
        trials=trials,
        seed=seed,
        seeds=seeds,
        settings=settings or {},
        executor=executor,
        progress=progress,
    )
    (found,) = sparsify_within(request, [budget]).values()
    return found


def sparsify_within(request: Request, budgets: Sequence[float]) -> dict[float, Sparsified]:
    """`sparsify` for several budgets, a folder each in `request.out`; of one it is that folder."""
    limits = read_budgets(budgets)
    claim_folder(request, limits)
    if isinstance(task := request.task, Columns):
        folder = Path(request.data).expanduser().resolve()
        request = replace(request, data=folder.parent, task=task.read(folder))
    first = request.evaluator(request.model, read_out="own")
    if request.progress:
        (name,) = first.downstream
        labels = describe_rows(first.glue_task(name), first.data(name).train)
        print(f"sparsify: {name}: {labels}", file=sys.stderr, flush=True)
    for limit in limits:
        if limit < (least := effective_density(Window(0), first.shape)):
            raise ValueError(
                f"a budget is at least what the diagonal costs, {least:.4g} of the pairs; got "
                f"{limit:g}: raise it"
            )
    full = request.evaluator(dense_model(request), keep_recovered=True)
    if request.progress:
        print(f"sparsify: {describe_work(request, full, limits)}", file=sys.stderr, flush=True)
    folders = [request.out if len(limits) == 1 else request.out / f"{limit:g}" for limit in limits]
    return {
        limit: sparsify_once(request, full, limit, folder)
        for limit, folder in zip(limits, folders, strict=True)
    }


def claim_folder(request: Request, limits: Sequence[float]) -> None:
    """Refuses a folder of something else, and writes what this call is about into a new one.

    Raises:
        DataError: If the folder holds other files, or was begun with other arguments.
    """
    path = request.run / "sparsify.json"
    about = {
        "model": str(request.model),
        "data": str(request.data),
        "task": repr(request.task),
        "budgets": list(limits),
        "strategy": request.strategy,
        "options": repr(request.strategy_options),
        "seed": request.seed,
        "settings": repr(dict(request.settings)),
    }
    if not path.is_file() and request.out.exists():
        if not request.out.is_dir() or any(request.out.iterdir()):
            raise DataError(f"{request.out} holds something else already; give a new folder")
    before = json.loads(path.read_text("utf-8")) if path.is_file() else about
    other = [name for name in about if before.get(name) != about[name]]
    if other and any((request.run / name).exists() for name in BEGUN):
        raise DataError(
            f"{request.out} was begun with {other[0]}={before.get(other[0])}, got "
            f"{about[other[0]]}; give a new folder, or the same call again"
        )
    write_text_in_one_move(path, json.dumps(about, indent=1) + "\n")


def dense_model(request: Request) -> Path:
    """The folder of the fine-tuned model: the checkpoint itself where it has a head."""
    start, folder = find_folder(str(request.model))[1], request.run / MODEL
    if tuned_kind(start) is not None:
        return start
    if not (folder / "config.json").is_file():
        evaluator = request.evaluator(request.model, read_out="own", split="validation")
        (task,) = evaluator.downstream
        head: Any = evaluator.dense(task, request.seed)
        beside = folder.with_name(f"{MODEL}.part")
        with quiet():  # its bar
            head.eval().whole.save_pretrained(beside)
        copy_tokenizer(start, beside)
        beside.rename(folder)
    return folder


def describe_work(request: Request, full: GlueEvaluator, limits: Sequence[float]) -> str:
    """The trainings to come, for about how long, and the memory that they take."""
    (task,), steps = full.downstream, full.recover_steps
    model = full.dense(task, FIRST_SEED)
    batch = full.inputs(full.tokens(task).train, [*range(full.finetune_batch)])
    seconds = list[float]()
    for _ in range(3):
        begun = time.perf_counter()
        model(**{name: part.to(full.torch_device) for name, part in batch.items()}).loss.backward()
        seconds.append(time.perf_counter() - begun)
    hand = [len(hand_designed(full, [limit])) for limit in limits]
    short = sum(hand) + len(limits) * (request.trials or (TRIALS if request.drawn else 1))
    whole = len(limits) * 3 * request.seeds
    taken = (short * steps / SHORT + whole * steps) * min(seconds) * TEACHER
    gates = DAM["config"]["steps"] * 2 * len(limits) if request.gated else 0
    size = sum(weight.nbytes for weight in model.parameters()) / 2**30
    return (
        f"{short} short recoveries of {max(1, steps // SHORT)} steps ({sum(hand)} of "
        f"hand-designed masks), {whole} of {steps}{', and gates' if gates else ''}: about "
        f"{clock(taken + gates * min(seconds))}; {5 * size:.1f} GB of memory a training, "
        f"{whole * size:.1f} GB of disk in {request.run / 'cache'}"
    )


def sparsify_once(request: Request, full: GlueEvaluator, limit: float, folder: Path) -> Sparsified:
    """Search, compare, export, for one budget."""
    (task,), study = full.downstream, search_masks(request, full, limit)
    seeds = range(FIRST_SEED, FIRST_SEED + request.seeds)
    comparison = compare(
        {"dense": Full(), **choose_candidates(study, request.strategy, limit)},
        full,
        run=request.run / f"compare-{limit:g}",
        seeds=seeds,
        split="holdout",
        executor=request.executor,
        progress=request.progress,
    )
    advice = comparison.recommend(limit)
    chosen = comparison.entries[advice.name]
    loss = comparison.difference(chosen, comparison.entries["dense"])
    more = AGAIN.format(request.seeds + 2) if advice.outcome == "not told apart" else ""
    answer = (
        f"{advice.sentence}{more} Minus dense attention trained as long: "
        f"{loss.text(signed=True)}, with {1 - chosen.sparsity:.1%} of the non-padding query-key "
        "pairs. Pairs are not seconds."
    )
    by_seed = {seed: score_to_choose(request, full, advice.mask, seed, limit) for seed in seeds}
    middle = statistics.median_low(by_seed.values())
    seed = next(seed for seed, score in by_seed.items() if score == middle)
    saved = {"mask": advice.name, "seed": seed, "score": chosen.scores[seed]}
    saved |= {"density": 1 - chosen.sparsity, "scores on rows of the search": by_seed}
    records = [*study.records(), *comparison.records]
    result = {
        "answer": answer,
        "outcome": advice.outcome,
        "model": str(request.model),
        "task": task,
        "budget": limit,
        "saved": saved,
        "difference": difference_as_json(advice.difference),
        "ahead by seed": advice.by_seed,
        "minus dense": difference_as_json(loss),
        "masks": comparison.frame().to_dict("records"),
        "seconds": math.fsum(record.seconds for record in records),
        "trainings": len(records),
        "versions": {"masksearch": VERSION, "torch": torch.__version__},
    }
    score = full.objectives[0].name, chosen.scores[seed]
    found = Findings(answer, str(request.model), task, *score)
    save_pretrained(full.adapted(advice.mask, seed=seed), folder, found=found)
    copy_tokenizer(find_folder(str(request.model))[1], folder)
    write_text_in_one_move(folder / RESULT, json.dumps(result, indent=1, default=str) + "\n")
    page = comparison.report(request.run / f"report-{limit:g}" / "report.html")
    shutil.copyfile(page, folder / "report.html")
    return Sparsified(answer, advice.mask, folder, comparison, study)


def score_to_choose(
    request: Request, full: GlueEvaluator, mask: Mask, seed: int, limit: float
) -> float:
    """The score on rows of the search of a recovery that was kept; no training."""
    place = request.run / f"choose-{limit:g}" / str(seed)
    *_, last = replace(full, split="validation")(mask, seed=seed, workdir=place)
    return last.values[full.objectives[0].name]


def difference_as_json(gap: PairedDifference | None) -> dict[str, Any] | None:
    """A difference with its interval; not known is null."""
    if gap is None:
        return None
    ends = [None if math.isnan(end) else end for end in (gap.low, gap.high)]
    return {"value": gap.value, "interval": ends, "seeds": gap.n, "rows": gap.n_rows}


def search_masks(request: Request, full: GlueEvaluator, limit: float) -> Study:
    """The search within a budget on the dense model, begun at the hand-designed masks; its trials
    recover for a part of the steps."""
    options = dict(request.strategy_options or (DAM if request.gated else {}))
    if request.gated:
        options["config"] = {"density": limit, **options.get("config", {})}
    short = max(1, full.recover_steps // SHORT)
    return search(
        load_function(SPACE) if request.drawn else None,
        replace(full, recover_steps=short, keep_recovered=False, split="validation"),
        run=request.run / f"search-{limit:g}",
        trials=request.trials or (TRIALS if request.drawn else 2),
        strategy=request.strategy,
        strategy_options=options,
        seed=request.seed,
        budget=limit,
        executor=request.executor,
        progress=request.progress,
    )


def choose_candidates(study: Study, strategy: str, limit: float) -> dict[str, Record]:
    """The best mask of the strategy and the best hand-designed one, by a search's rows. A kind of
    which no mask has begun to learn in a trial's few steps is judged after the full recovery too.

    Raises:
        SearchError: If neither has learned anything.
    """
    records = study.records()
    if not ranked(records, study.objectives, budget=limit, baselines=True):
        raise SearchError(
            f"no mask within {limit:g} of the pairs has learned anything; give a larger budget, "
            "or more steps of recovery (recover_steps)"
        )
    chosen: dict[str, Record] = {}
    for role in ("trial", "baseline"):
        own = [record for record in records if record.role == role]
        order = ranked(own, study.objectives, budget=limit, baselines=True, learned=False)
        chosen |= {best.name or strategy: best for best in order[:1]}
    return chosen
