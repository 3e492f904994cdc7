"""A trained encoder made sparse: fine-tuned without a mask, searched by its task on that model,
trained on under the mask or not, and judged beside hand-designed masks of the same cost.

found = sparsify("bert-base-uncased", "glue", 0.12, task="STS-B", out="sparse-bert")
print(found.answer)
model = load_pretrained(found.folder)

    OUT/        what save_pretrained writes, result.json, report.html
      run/      dense/ (the fine-tuned model), search/, as-it-is/, compare/, ..

Each step finds what the one before has left, so the same call goes on after a kill.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from masksearch.analysis.agreement import Agreement, agreement
from masksearch.analysis.pareto import ranked
from masksearch.analysis.recommendation import Recommendation
from masksearch.analysis.runs import MaskRuns
from masksearch.analysis.stats import PairedDifference
from masksearch.contracts import POINT, Executor, Record
from masksearch.driver import Comparison, Study, compare, open_study, search
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.embedding import RANDOM, EmbeddingEvaluator, embeds_texts
from masksearch.evaluators.forecast import describe_work
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.speed_target import KEPT, Target, aim
from masksearch.evaluators.tuning import rescale
from masksearch.evaluators.wrappers import read_limits
from masksearch.files import object_in, path_inside, write_text_in_one_move
from masksearch.gates.result import DamResult
from masksearch.gates.unit_costs import WORK
from masksearch.masks.checks import at_least, whole
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.models.card import Findings
from masksearch.models.checkpoints import CONFIG, VERSION, find_folder, quiet
from masksearch.models.pretrained import tuned_kind
from masksearch.models.saving import (
    copy_tokenizer,
    limit_length,
    save_pretrained,
    save_tokenizer,
)
from masksearch.strategies.build import GATES, aim_gates, build_strategy, spec_of
from masksearch.strategies.opening import hand_designed
from masksearch.strategies.prune import NAME
from masksearch.study.console import progress as progress_of_trainings
from masksearch.study.records import read_budgets
from masksearch.study.status import finished_trials
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.tasks import GlueTask
from masksearch.user_code import load_function

Judge = GlueEvaluator | EmbeddingEvaluator
FIRST_SEED, SEEDS = 1000, 3  # of the recoveries that judge; those of a search are its own
SHORT = 4  # a trial recovers for that part of the steps
DEFAULTS: Mapping[str, Any] = {  # of the evaluators, where the caller says nothing
    "learn_from": "both",
    "finetune_batch": 16,
    "gates_batch": 32,
    "rows": None,
    "dev_rows": None,
}
DAM: Mapping[str, Any] = {
    "gates": {"structure": "free"},
    "config": {"steps": 150, "gate_lr": 0.1},
}
TILES: Mapping[str, Any] = {**DAM, "gates": {"structure": "block"}}  # where time is asked for
TIME_BATCH = "time_batch"  # a setting of its own: rows of a batch that is timed
BUDGET = 0.12  # where neither a share nor a time is asked for
SPACE, TRIALS = "masksearch.spaces:head_roles", 24  # of a strategy that draws
SCHEDULES = "masksearch.spaces:token_schedules"  # the space where work is limited
AGAIN = (  # rates by simulation: docs/statistics.md
    "The same call with {} seeds trains the missing ones alone; after such a second look equal "
    "masks are called better in 4.3 %, after one in 2.5 %."
)
MODEL, RESULT, RUN, CALL = "dense", "result.json", "run", "sparsify.json"
SEARCH, PLAIN, JUDGED, HALVING = "search", "as-it-is", "compare", "halving"  # in its run folder
CACHE = "cache"  # there too; its files are named by what they hold
BEGUN = (MODEL, SEARCH)  # of a call that has trained something
UNTRAINED, TIMES = "as it is", "times as fast"  # a score before a recovery; a speed


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
        study: The search.
    """

    answer: str
    mask: Mask
    folder: Path
    comparison: Comparison
    study: Study


def sparsify(
    model: str | Path,
    data: str | Path,
    budget: float | None = None,
    *,
    task: str | GlueTask | Columns | None = None,
    out: str | Path,
    faster: float | None = None,
    work: float | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
    recover_steps: int | None = None,
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

    Hand-designed masks are chosen by successive halving: all recover for a quarter of the steps,
    the better half for half of them, the better quarter for all.

    Args:
        model: A checkpoint: a folder, or a name on the Hugging Face Hub; or an embedding model of
            sentence-transformers, whose masks are searched, judged and saved as they are.
        data: Folder with the task's folder (GLUE's TSV layout), or `hf:...`, as of
            `GlueEvaluator`; with `Columns` a folder of one's own with train.tsv and dev.tsv (or
            .csv). Of an embedding model texts, as of `EmbeddingEvaluator`.
        budget: Largest share of the non-padding query-key pairs that is kept, in (0, 1]. Where
            the head reads [CLS] alone, only that row of the last layer counts. None = .12, unless
            `faster` or `work` is given.
        task: GLUE's name, or a `GlueTask` of one's own, or the `Columns` of such a folder; None =
            the texts of an embedding model are a file's lines.
        out: A new folder, or that of the same call, which goes on.
        faster: In place of a budget: how many times as fast as dense attention the whole model is
            to be (> 1), in the lower quartile of timings on this machine, on development rows as
            they come in batches of 8 (`settings`: `time_batch`). Masks are of whole tiles of the
            device's kernel, the search is DAM with gates on tiles, and its opponents are each as
            dense as the target lets them.
        work: In place of a budget: the largest share of the multiplications that is left once
            tokens that nobody needs are left out, in (0, 1], where the head reads [CLS] alone. The
            saved model leaves them out (`attach(.., drop_tokens=..)`).
        strategy: As of `search`: `"dam"`, `"prune"`, or a sampler, which draws from
            `masksearch.spaces:head_roles` or, where work is limited, `token_schedules`. None =
            "dam", and "prune" where work is limited.
        strategy_options: As of `search`; None = of DAM free gates, 150 steps at a rate of 0.1.
        trials: Trials of the search, beside the hand-designed masks, which it judges as well; None
            = those that DAM and "prune" need, of a sampler 24.
        seed: Of the dense model and of the search.
        seeds: How many recoveries judge each mask, from seed 1000 on, or without recovery how
            many searches there are; at least three recoveries tell masks apart; None = 3
            recoveries, 1 search.
        recover_steps: Steps under the mask; 0 = no weight is trained: all masks are chosen,
            judged and saved as they are, with intervals over rows. None = 160, of an embedding
            model 0.
        settings: Further settings of the evaluator, such as `epochs`, `finetune_lr`, `length`,
            `device`.
        executor: As of `search`.
        progress: As of `search`.

    Returns:
        The answer, the mask, the folder that holds it, the comparison and the search.

    Raises:
        DataError: If model or data cannot be read or do not fit, or `out` holds something else.
        SearchError: If the dense model has learned nothing, or no mask within the budget has.
        ValueError: If the budget is below the diagonal, or no share, or `settings` has an
            argument of `sparsify` itself; if a time is asked for that no mask has.
    """
    if faster is None and work is None:
        (budget,) = read_budgets(BUDGET if budget is None else budget)
    strategy = strategy or (GATES if work is None else NAME)
    if recover_steps is None:
        recover_steps = 0 if embeds_texts(model, task) else 160
    request = SparsifyRequest(
        *(model, data, budget, task, Path(out).expanduser(), strategy, strategy_options),
        *(trials, seed, seeds, recover_steps, dict(settings or {}), executor, progress),
        faster=faster,
        work=work,
    )
    check_folder(request)
    if (ended := _read_ended(request)) is not None:
        return ended
    request, full = prepare(request)
    studies = search_masks(request, full)
    candidates = shortlist(request, full, studies)
    comparison, plain = judge_masks(request, full, candidates)
    return save(request, full, studies, candidates, comparison, plain)


@dataclass(frozen=True)
class SparsifyRequest:
    """The arguments of `sparsify`, and what follows from them; each stage reads it.

    Raises:
        ValueError: If a number is below its least, or a setting has an argument of its own.
    """

    model: str | Path
    data: str | Path
    budget: float | None  # of a target of time known once the model is timed
    task: str | GlueTask | Columns | None
    out: Path
    strategy: str
    strategy_options: Mapping[str, Any] | None
    trials: int | None
    seed: int
    seeds: int | None
    recover_steps: int
    settings: Mapping[str, Any]
    executor: Executor | None
    progress: Literal["auto"] | None
    faster: float | None = None
    target: Target | None = None
    work: float | None = None

    def __post_init__(self) -> None:
        if self.faster is not None:
            self._check_target(self.faster)
        at_least(TIME_BATCH, self.settings.get(TIME_BATCH, 8), 1)
        for name, least in (("recover_steps", 0), ("seeds", 1), ("trials", 1)):
            number = getattr(self, name)
            if number is not None and (whole(number) is None or number < least):
                raise ValueError(f"{name} is a whole number from {least} on, got {number!r}")
        for name in self.settings.keys() & {"recover_steps", "adapt"}:
            raise ValueError(
                f"{name}={self.settings[name]!r} is no further setting; give sparsify "
                "recover_steps itself (--recover-steps; 0 = masks as they are)"
            )
        if self.task is None and not embeds_texts(self.model, None):
            raise ValueError(
                f"task=None is for an embedding model, and {self.model} is none; name the task"
            )
        if self.recover_steps and embeds_texts(self.model, self.task):
            raise ValueError(
                f"no weight of an embedding model is trained, got recover_steps="
                f"{self.recover_steps}; leave it out, or give 0 (--recover-steps 0)"
            )

    def _check_target(self, faster: float) -> None:
        """Refuses a time that is none, or stands beside what it takes the place of."""
        if not (isinstance(faster, int | float) and 1 < faster < math.inf):
            raise ValueError(
                f"faster is how many times as fast as dense attention, above 1; got {faster!r}"
            )
        if self.target is None and (self.budget, self.work) != (None, None):
            raise ValueError(
                f"give either a budget or how much faster, got budget={self.budget!r}, "
                f"work={self.work!r} and faster={faster!r}"
            )
        gates = self.options.get("gates", {}) if self.strategy == GATES else {}
        if gates.get("structure") != "block":
            raise ValueError(
                f"faster={faster:g} searches whole tiles by gates, strategy='dam' with "
                f"gates.structure='block'; got {self.strategy!r} with {gates}"
            )

    @property
    def run(self) -> Path:
        """The folder of all that stands beside the saved model."""
        return self.out / RUN

    @property
    def asked(self) -> dict[str, int | None]:
        """The arguments that may change between two calls into one folder."""
        return {"seeds": self.seeds, "trials": self.trials}

    @property
    def about(self) -> dict[str, Any]:
        """The arguments that may not, as `sparsify.json` holds them."""
        about: dict[str, Any] = {"model": str(self.model), "data": str(self.data)}
        own = {} if isinstance(self.task, str | None) else vars(self.task)
        task = {n: v for n, v in own.items() if v != getattr(type(self.task), n, None)}
        about |= {"task": task or self.task, "budget": self.budget, "strategy": self.strategy}
        about |= {"options": repr(self.strategy_options), "seed": self.seed}
        about |= {"recover_steps": self.recover_steps, "settings": repr(self.settings)}
        if self.faster is not None:
            about |= {"budget": None, "faster": self.faster}
        about |= {} if self.work is None else {"work": self.work}
        plain: dict[str, Any] = json.loads(json.dumps(about, default=vars))
        return plain

    @property
    def noted(self) -> dict[str, Any]:
        """The contents of `sparsify.json`; empty where there is none."""
        path = self.run / CALL
        return object_in(path) if path.is_file() else {}

    @property
    def has_begun(self) -> bool:
        """Whether a call into the folder has trained something."""
        return any((self.run / name).exists() for name in BEGUN)

    def note(self, start: Judge) -> None:
        """Writes `sparsify.json`: the arguments, and a hash of rows, checkpoint and settings."""
        noted = self.about | {"protocol": start.protocol}
        write_text_in_one_move(self.run / CALL, json.dumps(noted, indent=1) + "\n")

    @property
    def draws(self) -> bool:
        """Whether the strategy draws masks from a space."""
        return spec_of(self.strategy).space != "none"

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's options; its gates are aimed at the budget."""
        gated = spec_of(self.strategy).gated
        if gated is None or not gated({}):
            return dict(self.strategy_options or {})
        options = dict(self.strategy_options or (DAM if self.faster is None else TILES))
        aimed = [] if self.budget is None else [self.budget]
        return options | {"config": aim_gates(options.get("config", {}), aimed)}

    @property
    def searches(self) -> dict[str, int]:
        """Name -> seed of each search."""
        count = 1 if self.recover_steps else self.seeds or 1
        seeds = range(self.seed, self.seed + count)
        return {self.strategy if count == 1 else f"{self.strategy}, seed {n}": n for n in seeds}

    def search_folder(self, seed: int) -> Path:
        """The run folder of a search."""
        return self.run / (SEARCH if seed == self.seed else f"{SEARCH}-{seed}")

    @property
    def judging_seeds(self) -> range:
        """Seeds of the recoveries that judge; one where masks are judged as they are."""
        count = (self.seeds or SEEDS) if self.recover_steps else 1
        return range(FIRST_SEED, FIRST_SEED + count)

    @property
    def trials_of_a_search(self) -> int:
        """How many trials a search has, beside the hand-designed masks."""
        return self.trials or (TRIALS if self.draws else 2)

    @property
    def limit(self) -> float:
        """The share of the pairs, or of the work, that masks of the search may keep."""
        limit = self.budget if self.work is None else self.work
        assert limit is not None, "the model is timed first"
        return limit

    @property
    def judged_within(self) -> float:
        """The share that masks are chosen within; any, where they have a time in common."""
        return self.limit if self.target is None else 1.0

    @property
    def how(self) -> dict[str, Any]:
        """Arguments that `search` and `compare` share."""
        return {"executor": self.executor, "progress": self.progress, "work": self.work}

    @property
    def space(self) -> Any:
        """The space of a strategy that draws; None = it draws from none."""
        named = SPACE if self.work is None else SCHEDULES
        return load_function(named) if self.draws else None

    def say(self, line: str) -> None:
        """Prints a line, unless progress is switched off."""
        if self.progress:
            print("sparsify:", line, file=sys.stderr, flush=True)


# -- the stages: each finds what it has left, and goes on ----------------------------------------
@dataclass(frozen=True)
class Shortlist:
    """The masks that are judged: the best of each search, and of the hand-designed ones.

    Args:
        searched: Name -> record, or the mask that was cut out of it to be fast enough.
        hand: The hand-designed ones that are left, the best first.
        rungs: Steps of recovery -> how these were compared; none where nothing is recovered.
    """

    searched: Mapping[str, Record | Mask]
    hand: Sequence[Record]
    rungs: Mapping[int, Comparison]


def prepare(request: SparsifyRequest) -> tuple[SparsifyRequest, Judge]:
    """Says what is to come, and fine-tunes the dense model: the request with its share of the
    pairs, and the evaluator that judges masks on that model, on the rows that searches read."""
    start = _build_judge(request)
    if isinstance(start, GlueEvaluator):
        request.say(start.describe(start.downstream[0]))
    counted, budgets = read_limits(in_part(start, SHORT), request.budget, request.work)
    build_strategy(  # wrong options are refused here, not after a training
        request.strategy,
        request.space,
        counted,
        seed=request.seed,
        run=request.search_folder(request.seed),
        options=request.options,
        budgets=budgets,
    )
    request.note(start)
    if request.faster is not None:
        batch = request.settings.get(TIME_BATCH, 8)
        shown = request.progress is not None
        target = aim(request.faster, start, request.seed, request.run, batch, shown)
        request.say(target.describe())
        request = replace(request, budget=target.share, target=target)
    hand, job = len(drawn_masks(request, start)), not request.draws
    found = [finished_trials(request.search_folder(each)) for each in request.searches.values()]
    found[0] -= hand  # which the first search judges before its own
    gates = request.options.get("config", {}).get("steps", 0) * sum(each < 1 for each in found)
    searched = sum(request.trials_of_a_search - max(job, each) for each in found)
    rungs = [in_part(start, part).recover_steps for part in (SHORT, 2, 1)]
    left = [searched + max(0, -found[0]), -(-hand // 2), -(-hand // 4)]
    left.append(3 * len(request.judging_seeds))
    for at, name in enumerate([*(f"{HALVING}-{steps}" for steps in rungs[1:]), JUDGED], 1):
        left[at] -= finished_trials(request.run / name)
    if isinstance(start, GlueEvaluator):
        request.say(describe_work(start, request.seed, hand, gates, rungs, left))
    with progress_of_trainings("sparsify") if request.progress else nullcontext():
        weights = _dense_model(start, request.run, request.seed)
        full = _adjust(start, weights=weights, keep_recovered=True)
        full.on("holdout").provide_models(request.seed)  # refused here, not after the search
    return request, full


def drawn_masks(request: SparsifyRequest, start: Judge) -> Mapping[str, Mask]:
    """The hand-designed masks within the budget, or within the time."""
    if request.target is not None:
        return request.target.drawn
    return hand_designed(*read_limits(start, request.budget, request.work))


def search_masks(request: SparsifyRequest, full: Judge) -> dict[str, Study]:
    """Name -> study of each search; the first one judges the hand-designed masks, too."""
    drawn = None if request.target is None else request.target.drawn
    return {
        name: search(
            request.space,
            in_part(full, SHORT),
            run=request.search_folder(seed),
            trials=request.trials_of_a_search,
            strategy=request.strategy,
            strategy_options=request.options,
            seed=seed,
            budget=request.budget,
            baselines=drawn if seed == request.seed else {},
            **request.how,
        )
        for name, seed in request.searches.items()
    }


def shortlist(request: SparsifyRequest, full: Judge, studies: Mapping[str, Study]) -> Shortlist:
    """The masks to judge, by rows that searches read: of hand-designed ones by halving."""
    found, hand = choose_candidates(studies, request.judged_within)
    searched: Mapping[str, Record | Mask] = found
    if (target := request.target) is not None:
        searched = {n: _fit_to_time(target, studies[n], n, each) for n, each in found.items()}
    if not request.recover_steps or len(hand) < 2:
        return Shortlist(searched, hand, {})
    judge = partial(compare, seeds=[request.seed], split="validation", **request.how)
    return Shortlist(searched, *halve(hand, full, judge, request.run, request.say))


def _fit_to_time(target: Target, study: Study, name: str, found: Record) -> Record | Mask:
    """The best mask of a search, if it meets the time, else one of a lower share that is cut out
    of the same gates."""
    assert found.mask is not None
    [gates] = [r.artifacts["gates"] for r in study.records() if "gates" in r.artifacts]
    result = DamResult.load(path_inside(study.run, gates))
    mask = target.fit(name, found.mask, lambda share: result.mask(sparsity=1 - share, within=True))
    return found if mask == found.mask else mask


def judge_masks(
    request: SparsifyRequest, full: Judge, candidates: Shortlist
) -> tuple[Comparison, Comparison]:
    """The candidates on rows that no search has read: after recovery, and as they are."""
    compared: dict[str, Mask | Record | str] = {"dense": Full(), **candidates.searched}
    compared |= {each.name: each for each in candidates.hand[:1]}
    told = {"seeds": request.judging_seeds, "split": "holdout", **request.how}
    told["kinds"] = dict.fromkeys(candidates.searched, "searched")
    told["kinds"] |= {each.name: "hand-designed" for each in candidates.hand[:1]}
    if request.target is not None and candidates.hand:
        told["against"] = candidates.hand[0].name

    def judge(evaluator: Judge, folder: str) -> Comparison:
        judged = compare(compared, evaluator, run=request.run / folder, **told)
        if request.target is not None:  # masks have a time in common, and no share
            return judged
        return replace(judged, budgets=dict.fromkeys(candidates.searched, request.limit))

    plain = judge(_adjust(full, adapt="none"), PLAIN)
    if not request.recover_steps:
        return plain, plain
    for each in [*compared][1:]:
        request.say(f"{each}: {_describe_kept(full, plain, each)}")
    return beside(judge(full, JUDGED), plain), plain


def save(
    request: SparsifyRequest,
    full: Judge,
    studies: Mapping[str, Study],
    candidates: Shortlist,
    comparison: Comparison,
    plain: Comparison,
) -> Sparsified:
    """Writes the mask of the better mean with the weights of its median seed, the result and the
    page.

    Args:
        request: The call.
        full: Judges masks, and has kept their weights.
        studies: The searches.
        candidates: The masks that were judged.
        comparison: These after recovery; without one as they are.
        plain: These as they are.
    """
    out, study = request.out, next(iter(studies.values()))
    advice = comparison.recommend(request.judged_within)
    taken = comparison.entries[advice.name]
    sound = [seed for seed in taken.scores if seed not in taken.diverged]
    seed, by_seed = _median_seed(request, full, advice.mask, sound)
    saved = {"mask": taken.name, "score": taken.scores[seed], "density": 1 - taken.sparsity}
    if request.recover_steps:
        saved |= {"seed": seed, "scores on rows of the search": by_seed}
    comparison, speed = _timed(request, comparison, taken)
    records = [record for each in studies.values() for record in each.records()]
    records += [record for each in candidates.rungs.values() for record in each.records]
    records += [*plain.records, *(comparison.records if request.recover_steps else ())]
    result: dict[str, Any] = {
        "model": str(request.model),
        "task": full.downstream[0],
        "budget": request.budget,
        "work": request.work,
        "recover_steps": request.recover_steps,
        "seconds": math.fsum(record.seconds for record in records),
        "trainings": len(records),
        "asked": request.asked,
        "versions": {"masksearch": VERSION, "torch": torch.__version__},
        "saved": saved,
        **facts_of(request, full, candidates, advice, comparison, plain),
    }
    if speed:
        result |= speed | {"answer": f"{speed['answer']} {result['answer']}"}
    about = result["answer"], result["model"], result["task"]
    rows = full.shape.read or False  # that the head reads: work is known of no other model
    model = full.adapted(advice.mask, seed=seed, drop_tokens=rows if request.work else False)
    metric = "agreement with the dense model" if full.keeps_answers else full.objectives[0].name
    score = metric, taken.scores[seed]
    save_pretrained(model, out, found=Findings(*about, *score))
    _put_tokenizer(full, find_folder(result["model"])[1], model, out)
    limit_length(out, model)
    comparison = replace(comparison, notes={"answer": result["answer"]})
    page = comparison.report(request.run / "report" / "report.html").read_text("utf-8")
    page = page.replace("Beside this page", f"In {RUN}/report")  # where its files lie
    write_text_in_one_move(out / "report.html", page)
    write_text_in_one_move(out / RESULT, json.dumps(result, indent=1, default=str) + "\n")
    return Sparsified(result["answer"], advice.mask, out, comparison, study)


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


def _timed(
    request: SparsifyRequest, comparison: Comparison, taken: MaskRuns
) -> tuple[Comparison, dict[str, Any]]:
    """Where a time is asked for, the judged masks timed once more: the comparison with how fast
    each is, and what the result says of it."""
    if (target := request.target) is None:
        return comparison, {}
    judged = {each.name: each.mask for each in comparison.records if each.mask is not None}
    quartiles = target.time_judged(judged)
    comparison, entries = _with_times(comparison, quartiles), comparison.entries
    losses = {n: comparison.difference(entries[n], entries["dense"]) for n in quartiles}
    answer = target.describe_answer(losses, taken.name, quartiles)
    return comparison, {"speed": target.about, TIMES: quartiles, "answer": answer}


def _with_times(comparison: Comparison, quartiles: Mapping[str, Sequence[float]]) -> Comparison:
    """Masks with how many times as fast as dense each is, in the median."""
    middles = {name: middle for name, (_, middle, _) in quartiles.items()}
    return _annotated(comparison, TIMES, {"dense": 1.0} | middles)


def facts_of(
    request: SparsifyRequest,
    full: Judge,
    candidates: Shortlist,
    advice: Recommendation,
    comparison: Comparison,
    plain: Comparison,
) -> dict[str, Any]:
    """The answer, and the figures that it rests on, as `result.json` holds them."""
    taken, steps = comparison.entries[advice.name], request.recover_steps
    loss = comparison.difference(taken, comparison.entries["dense"])
    parts = [f"{advice.sentence} {_describe_kept(full, plain, taken.name)}"]
    facts: dict[str, Any] = {"outcome": advice.outcome}
    facts |= {"difference": _difference_as_json(advice.difference)}
    facts |= {"minus dense": _difference_as_json(loss), "masks": _rows_as_json(comparison)}
    facts |= {"agreement with the dense model": vars(agreement_of(plain, taken))}
    if steps:
        if not full.keeps_answers:
            parts.append(f"Both trained for {steps} steps: {loss.text(signed=True)}.")
        parts.append(f"After {steps} steps it {agreement_of(plain, taken)}.")
        if advice.outcome == "not told apart":
            parts.append(AGAIN.format(len(taken.scores) + 2))
        untrained = plain.difference(plain.entries[taken.name], plain.entries["dense"])
        rungs = {count: scores_of(rung) for count, rung in candidates.rungs.items()}
        facts |= {"hand-designed by steps": rungs, "masks as they are": _rows_as_json(plain)}
        facts |= {"ahead by seed": advice.by_seed}
        facts |= {"minus dense as it is": _difference_as_json(untrained)}
    work = f" and leaves {taken.work:.1%} of the work" if request.work else ""
    kept = f"It keeps {1 - taken.sparsity:.1%} of the non-padding query-key pairs{work}"
    parts.append(kept + (".", "; pairs are not seconds.")[request.target is None])
    return {"answer": " ".join(parts), **facts}


def _build_judge(request: SparsifyRequest) -> Judge:
    """Judges masks on the model that is given, on the rows that searches read.

    Raises:
        DataError: If the folder was begun with others.
    """
    fields: dict[str, Any] = {**request.settings, "split": "validation"}
    fields.pop(TIME_BATCH, None)
    if embeds_texts(request.model, request.task):
        fields = {"columns": getattr(request.task, "texts", ()), **fields}
        start: Judge = EmbeddingEvaluator(request.data, request.model, **fields)
    else:
        fields = {**DEFAULTS, "cache": request.run / CACHE, "read_out": "own", **fields}
        named: Any = {"weights": request.model, "tasks": (request.task,), "adapt": "none"}
        if request.recover_steps:
            named |= {"adapt": "recover", "recover_steps": request.recover_steps}
        start = GlueEvaluator(None, request.data, **named, **fields)
    if request.has_begun and request.noted.get("protocol") not in (None, start.protocol):
        raise DataError(
            f"{request.out} was begun with other rows or another checkpoint than {request.data} "
            f"and {request.model} hold now; give a new folder"
        )
    return start


def _adjust(judge: Judge, **changes: Any) -> Judge:
    """The evaluator with other settings of what is trained; an embedding model has none."""
    return judge if isinstance(judge, EmbeddingEvaluator) else replace(judge, **changes)


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


def _read_ended(request: SparsifyRequest) -> Sparsified | None:
    """The result of the same call, where it has ended: nothing is trained again."""
    out, run = request.out, request.run
    path = out / RESULT
    result = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if result.get("asked") != request.asked:
        return None
    _build_judge(request)  # refuses rows and weights that have changed since
    names = {row["mask"] for row in result["masks"]}
    plain = comparison = _only(names, Comparison.open(run / PLAIN))
    if result["recover_steps"]:
        comparison = beside(_only(names, Comparison.open(run / JUDGED)), plain)
    if TIMES in result:
        comparison = _with_times(comparison, result[TIMES])
    masks = {record.name: record.mask for record in comparison.records}
    answer, mask = result["answer"], masks[result["saved"]["mask"]]
    assert mask is not None
    return Sparsified(answer, mask, out, comparison, open_study(run / SEARCH))


def _only(names: set[str], comparison: Comparison) -> Comparison:
    """The masks of these names; calls with other seeds have left more."""
    kept = tuple(record for record in comparison.records if record.name in names)
    return replace(comparison, records=kept)


def beside(comparison: Comparison, plain: Comparison) -> Comparison:
    """Masks after recovery, each with its score as it is beside the others."""
    return _annotated(comparison, UNTRAINED, scores_of(plain))


def _annotated(comparison: Comparison, word: str, values: Mapping[str, float]) -> Comparison:
    """Masks with one more value each, under that word beside the task's scores."""
    task, *_ = comparison.tasks
    records = [
        replace(each, values={**each.values, f"{task}/{word}": values[each.name]})
        for each in comparison.records
    ]
    return replace(comparison, records=tuple(records))


def describe_loss(plain: Comparison, name: str) -> str:
    """A mask's score as it is minus dense attention's, and whether no training is needed."""
    gap = plain.difference(plain.entries[name], plain.entries["dense"])
    enough = f"; no training is needed: at most {POINT:g} is lost" if gap.low > -POINT else ""
    rows = f"{gap.n_rows:,} rows" if gap.n_rows else "the same on every row"
    return f"{gap.text(signed=True)}, {rows}{enough}."


def _describe_kept(full: Judge, plain: Comparison, name: str) -> str:
    """How far a mask, as it is, keeps the score of dense attention, where there are labels, and
    the dense model's answers."""
    agrees = f"As it is it {agreement_of(plain, plain.entries[name])}."
    if full.keeps_answers:
        return agrees
    return f"Minus dense attention as it is: {describe_loss(plain, name)} {agrees}"


def agreement_of(plain: Comparison, masked: MaskRuns) -> Agreement:
    """How far a masked model answers as the dense one; of several seeds the first."""
    [dense, *_], [own, *_] = (each.rows.values() for each in (plain.entries["dense"], masked))
    [part] = dense.weights  # of MNLI's two development sets the one that is scored
    if not own.predictions:  # an embedding model's score says how far it ranks alike
        score, (random, *_) = masked.shown, masked.values[RANDOM].values()
        ends = score.value, score.low, score.high
        return Agreement(*ends, len(own.scores[part]), random_pairs=random)
    return agreement(dense.predictions[part], own.predictions[part])


def _dense_model(start: Judge, run: Path, seed: int) -> Path:
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


def in_part(full: Judge, part: int) -> Judge:
    """The evaluator with a part of the steps of recovery, whose weights are not kept."""
    steps = max(1, full.recover_steps // part)
    return _adjust(full, recover_steps=steps, keep_recovered=False)


def choose_candidates(
    studies: Mapping[str, Study], limit: float
) -> tuple[dict[str, Record], list[Record]]:
    """The best mask of each search, and the hand-designed ones, the best first, each once, by the
    rows of the searches. Masks that have not begun to learn in a trial's few steps count too.

    Raises:
        SearchError: If none has learned anything.
    """
    objectives = next(iter(studies.values())).objectives
    records = {name: study.records() for name, study in studies.items()}
    listed = [record for each in records.values() for record in each]
    if not ranked(listed, objectives, budget=limit, baselines=True):
        what = WORK if objectives[1].name == WORK else "pairs"
        raise SearchError(
            f"no mask within {limit:g} of the {what} has learned anything; give a larger budget, "
            "or more steps of recovery (recover_steps)"
        )
    found: dict[str, Record] = {}
    for name, each in records.items():
        own = [record for record in each if record.role == "trial"]
        for best in ranked(own, objectives, budget=limit, learned=False)[:1]:
            found[name] = best
    drawn = [record for record in listed if record.role == "baseline"]
    hand: dict[str, Record] = {}
    for record in ranked(drawn, objectives, budget=limit, baselines=True, learned=False):
        hand.setdefault(record.fingerprint, record)
    return found, [*hand.values()]


def halve(
    hand: list[Record],
    full: Judge,
    judge: Callable[..., Comparison],
    run: Path,
    say: Callable[[str], None],
) -> tuple[list[Record], dict[int, Comparison]]:
    """Successive halving: of hand-designed masks that have recovered for a quarter of the steps
    the better half recovers for half of them, and the better half of that for all.

    Args:
        hand: The best first.
        full: Judges masks.
        judge: `compare`, on the rows of the search.
        run: Where the rungs are kept.
        say: Told of each rung.

    Returns:
        The better quarter, the best first; and steps -> rung.
    """
    rungs: dict[int, Comparison] = {}
    for part in (SHORT // 2, 1):
        by_name = {each.name: each for each in hand[: -(-len(hand) // 2)]}
        evaluator = in_part(full, part)
        steps = evaluator.recover_steps
        say(f"the better {len(by_name)} of {len(hand)} hand-designed masks, for {steps} steps")
        masks = {name: each.mask for name, each in by_name.items()}
        kinds = dict.fromkeys(masks, "hand-designed")
        rung = judge(
            masks, evaluator, run=run / f"{HALVING}-{steps}", kinds=kinds, against="nearest"
        )
        order = ranked(rung.records, rung.objectives, baselines=True, learned=False)
        hand = [by_name[each.name] for each in order] or hand
        rungs[steps] = rung
    return hand, rungs


def scores_of(rung: Comparison) -> dict[str, float]:
    """Mask -> score."""
    return {name: each.score.value for name, each in rung.entries.items()}


def _rows_as_json(comparison: Comparison) -> list[dict[Any, Any]]:
    """The rows of a comparison's frame; without seeds where these change nothing."""
    frame = comparison.frame()
    if comparison.seedless:
        frame = frame.drop(columns="n_seeds")
    return frame.to_dict("records")


def _difference_as_json(gap: PairedDifference | None) -> dict[str, Any] | None:
    """A difference with its interval; not known is null."""
    if gap is None:
        return None
    ends = [None if math.isnan(end) else end for end in (gap.low, gap.high)]
    seeds = {} if gap.seedless else {"seeds": gap.n}
    return {"value": gap.value, "interval": ends, **seeds, "rows": gap.n_rows}
