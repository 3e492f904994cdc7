"""The stages of `sparsify`: each finds what it has left, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from masksearch.analysis.pareto import ranked
from masksearch.contracts import Record
from masksearch.driver import Comparison, Study, compare, search
from masksearch.errors import SearchError
from masksearch.evaluators.forecast import describe_work
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.wrappers import read_limits
from masksearch.gates.unit_costs import WORK
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.sparsifier.answers import beside, describe_kept
from masksearch.sparsifier.files import dense_folder
from masksearch.sparsifier.request import (
    HALVING,
    JUDGED,
    PLAIN,
    Judge,
    SparsifyRequest,
    adjust,
    build_judge,
    in_part,
)
from masksearch.strategies.build import build_strategy
from masksearch.strategies.opening import hand_designed
from masksearch.study.console import progress as progress_of_trainings
from masksearch.study.status import finished_trials

SHORT = 4  # a trial recovers for that part of the steps


@dataclass(frozen=True)
class Shortlist:
    """The masks that are judged: the best of each search, and of the hand-designed ones.

    Args:
        searched: Name -> record.
        hand: The hand-designed ones that are left, the best first.
        rungs: Steps of recovery -> how these were compared; none where nothing is recovered.
    """

    searched: Mapping[str, Record]
    hand: Sequence[Record]
    rungs: Mapping[int, Comparison]


def prepare(request: SparsifyRequest) -> Judge:
    """Says what is to come, and fine-tunes the dense model: the evaluator that judges masks on
    that model, on the rows that searches read."""
    start = build_judge(request)
    if isinstance(start, GlueEvaluator):
        request.say(start.describe(start.downstream[0]))
    work = request.work
    if request.faster is not None and start.shape.read is not None:
        work = 1 / request.faster  # about
    counted, budgets = read_limits(in_part(start, SHORT), request.budget, work)
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
    if request.faster is None:
        _say_work(request, start)
    with progress_of_trainings("sparsify") if request.progress else nullcontext():
        weights = dense_folder(start, request.run, request.seed)
        full = adjust(start, weights=weights, keep_recovered=True)
        full.on("holdout").provide_models(request.seed)  # refused here, not after the search
    return full


def _say_work(request: SparsifyRequest, start: Judge) -> None:
    """Says which trainings are to come."""
    if not isinstance(start, GlueEvaluator):
        return
    drawn = hand_designed(*read_limits(start, request.budget, request.work))
    hand, job = len(drawn), not request.draws
    found = [finished_trials(request.search_folder(each)) for each in request.searches.values()]
    found[0] -= hand  # which the first search judges before its own
    gates = request.options.get("config", {}).get("steps", 0) * sum(each < 1 for each in found)
    searched = sum(request.trials_of_a_search - max(job, each) for each in found)
    rungs = [in_part(start, part).recover_steps for part in (SHORT, 2, 1)]
    left = [searched + max(0, -found[0]), -(-hand // 2), -(-hand // 4)]
    left.append(3 * len(request.judging_seeds))
    for at, name in enumerate([*(f"{HALVING}-{steps}" for steps in rungs[1:]), JUDGED], 1):
        left[at] -= finished_trials(request.run / name)
    request.say(describe_work(start, request.seed, hand, gates, rungs, left))


def search_masks(request: SparsifyRequest, full: Judge) -> dict[str, Study]:
    """Name -> study of each search; the first one judges the hand-designed masks, too."""
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
            baselines=None if seed == request.seed else {},
            **request.how,
        )
        for name, seed in request.searches.items()
    }


def shortlist(request: SparsifyRequest, full: Judge, studies: Mapping[str, Study]) -> Shortlist:
    """The masks to judge, by rows that searches read: of hand-designed ones by halving."""
    found, hand = choose_candidates(studies, request.limit)
    if not request.recover_steps or len(hand) < 2:
        return Shortlist(found, hand, {})
    judge = partial(compare, seeds=[request.seed], split="validation", **request.how)
    return Shortlist(found, *halve(hand, full, judge, request.run, request.say))


def judge_masks(
    request: SparsifyRequest, full: Judge, candidates: Shortlist
) -> tuple[Comparison, Comparison]:
    """The candidates on rows that no search has read: after recovery, and as they are."""
    compared: dict[str, Mask | Record | str] = {"dense": Full(), **candidates.searched}
    compared |= {each.name: each for each in candidates.hand[:1]}
    told = {"seeds": request.judging_seeds, "split": "holdout", **request.how}
    told["kinds"] = dict.fromkeys(candidates.searched, "searched")
    told["kinds"] |= {each.name: "hand-designed" for each in candidates.hand[:1]}

    def judge(evaluator: Judge, folder: str) -> Comparison:
        judged = compare(compared, evaluator, run=request.run / folder, **told)
        return replace(judged, budgets={name: request.limit for name in candidates.searched})

    plain = judge(adjust(full, adapt="none"), PLAIN)
    if not request.recover_steps:
        return plain, plain
    for each in [*compared][1:]:
        request.say(f"{each}: {describe_kept(full, plain, each)}")
    return beside(judge(full, JUDGED), plain), plain


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
