"""The answer of `sparsify`, and the figures that it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from masksearch.analysis.agreement import Agreement, agreement
from masksearch.analysis.recommendation import Recommendation
from masksearch.analysis.runs import MaskRuns
from masksearch.analysis.stats import PairedDifference
from masksearch.contracts import POINT
from masksearch.driver import Comparison
from masksearch.evaluators.embedding import RANDOM
from masksearch.sparsifier.request import Judge, SparsifyRequest

AGAIN = (  # rates by simulation: docs/statistics.md
    "The same call with {} seeds trains the missing ones alone; after such a second look equal "
    "masks are called better in 4.3 %, after one in 2.5 %."
)
UNTRAINED, TIMES = "as it is", "times as fast"  # a score before a recovery; a speed


def facts_of(
    request: SparsifyRequest,
    full: Judge,
    rungs: Mapping[int, Comparison],
    advice: Recommendation,
    comparison: Comparison,
    plain: Comparison,
) -> dict[str, Any]:
    """The answer, and the figures that it rests on, as `result.json` holds them."""
    taken, steps = comparison.entries[advice.name], request.recover_steps
    loss = comparison.difference(taken, comparison.entries["dense"])
    parts = [f"{advice.sentence} {describe_kept(full, plain, taken.name)}"]
    facts: dict[str, Any] = {"outcome": advice.outcome}
    facts |= {"difference": difference_as_json(advice.difference)}
    facts |= {"minus dense": difference_as_json(loss), "masks": rows_as_json(comparison)}
    facts |= {"agreement with the dense model": vars(agreement_of(plain, taken))}
    if steps:
        if not full.keeps_answers:
            parts.append(f"Both trained for {steps} steps: {loss.text(signed=True)}.")
        parts.append(f"After {steps} steps it {agreement_of(plain, taken)}.")
        if advice.outcome == "not told apart":
            parts.append(AGAIN.format(len(taken.scores) + 2))
        untrained = plain.difference(plain.entries[taken.name], plain.entries["dense"])
        scores = {count: scores_of(rung) for count, rung in rungs.items()}
        facts |= {"hand-designed by steps": scores, "masks as they are": rows_as_json(plain)}
        facts |= {"ahead by seed": advice.by_seed}
        facts |= {"minus dense as it is": difference_as_json(untrained)}
    last = f" and leaves {taken.work:.1%} of the work" if request.work else "; pairs are no time"
    parts.append(f"It keeps {1 - taken.sparsity:.1%} of the non-padding query-key pairs{last}.")
    return {"answer": " ".join(parts), **facts}


def with_times(comparison: Comparison, quartiles: Mapping[str, Sequence[float]]) -> Comparison:
    """Masks with how many times as fast as dense each is, in the median."""
    middles = {name: middle for name, (_, middle, _) in quartiles.items()}
    return _annotated(comparison, TIMES, {"dense": 1.0} | middles)


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


def describe_kept(full: Judge, plain: Comparison, name: str) -> str:
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


def scores_of(rung: Comparison) -> dict[str, float]:
    """Mask -> score."""
    return {name: each.score.value for name, each in rung.entries.items()}


def rows_as_json(comparison: Comparison) -> list[dict[Any, Any]]:
    """The rows of a comparison's frame; without seeds where these change nothing."""
    frame = comparison.frame()
    if comparison.seedless:
        frame = frame.drop(columns="n_seeds")
    return frame.to_dict("records")


def difference_as_json(gap: PairedDifference | None) -> dict[str, Any] | None:
    """A difference with its interval; not known is null."""
    if gap is None:
        return None
    ends = [None if math.isnan(end) else end for end in (gap.low, gap.high)]
    seeds = {} if gap.seedless else {"seeds": gap.n}
    return {"value": gap.value, "interval": ends, **seeds, "rows": gap.n_rows}
