"""Fronts, ranks, crowding and hypervolume of arrays; fronts, state and cautions of records.

The functions of arrays take `gains`, float `[points, objectives]`, where more is better in every
column; the functions of records make them from the objectives' goals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from masksearch.contracts import LOW, MAJORITY, POINT, Objective, OneShot, Record, Status
from masksearch.masks.measure import MEASURES

NEAR = 0.005  # of a constant answer's score: noise, where no interval over rows is reported
FEWEST = 3  # scored masks before their scores say anything together
IN_A_ROW = 5  # draws of known masks after which a space seems to be used up
SPENT = 200  # and after which a search ends
REMEDY = (
    "train longer (more steps, epochs or rows), with another learning rate, or take an easier task"
)
ATTENTION_REMEDY = (
    "give more steps (--set dam.steps=..) or another lr; of random weights larger initial weights "
    "(a standard deviation of about 1 / sqrt(width)); of a checkpoint another finetune_lr, or "
    "adapt='none', which trains gates alone on a model that has learned"
)

HAND = "hand"  # where a hand-designed mask comes from
SLACK = 1e-6  # share of a budget that rounding may add
SPARSITIES = ("effective_sparsity", "sparsity")  # over non-padding pairs, over the n x n cells


# -- arrays ------------------------------------------------------------------------------------
def on_front(gains: ArrayLike) -> NDArray[np.bool_]:
    """Which points nothing dominates (nowhere worse, and somewhere better); equal points are on
    the front together.

    Args:
        gains: `[points, objectives]`, more is better.

    Returns:
        bool `[points]`.

    >>> on_front([(1, 3), (3, 1), (1, 1), (3, 1)]).tolist()
    [True, True, False, True]
    """
    result: NDArray[np.bool_] = nondominated_ranks(gains) == 0
    return result


def nondominated_ranks(gains: ArrayLike) -> NDArray[np.int64]:
    """Front of each point: 0 = nothing dominates it, 1 = nothing but points of front 0, ...

    Args:
        gains: `[points, objectives]`, more is better; infinite values are compared as they are. A
            point with a NaN dominates nothing, and nothing dominates it.

    Returns:
        int64 `[points]`.

    Reference: non-dominated sorting, NSGA-II, IEEE TEC 6(2), 2002.

    >>> nondominated_ranks([(1, 3), (3, 1), (1, 1), (0, 3), (0, 0)]).tolist()
    [0, 0, 1, 1, 2]
    """
    points = np.asarray(gains, dtype=np.float64)
    ranks = np.zeros(len(points), dtype=np.int64)
    complete = ~np.isnan(points).any(-1)
    if points.size and complete.any():
        # Places in the order of each column, because moocore crashes where values are infinite.
        levels = [np.unique(column, return_inverse=True)[1] for column in points[complete].T]
        ranks[complete] = moocore.pareto_rank(np.stack(levels, 1), maximise=True)
    return ranks


def crowding(gains: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance of each point of one front: how far its neighbours lie apart.

    The gaps between the neighbours on both sides are divided by the front's range and added over
    the objectives; the ends of the front have infinite distance. An objective without a range, or
    with an infinite one, adds no gap. Of equal points the first counts; its copies have 0.

    Args:
        gains: `[points, objectives]`.

    Returns:
        float `[points]`, 0 and above.

    Reference: crowding distance, NSGA-II, IEEE TEC 6(2), 2002.

    >>> crowding([(0, 4), (1, 3), (4, 0), (4, 0)]).tolist()
    [inf, 2.0, inf, 0.0]
    """
    points, first = np.unique(np.asarray(gains, dtype=np.float64), axis=0, return_index=True)
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        distance[order[[0, -1]]] = np.inf
        if 0 < (span := float(ordered[-1]) - float(ordered[0])) < np.inf:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
    result = np.zeros(len(np.asarray(gains)))
    result[first] = distance
    return result


def dominated_volume(gains: ArrayLike) -> float:
    """Volume of the union of the boxes from the origin to each point.

    Args:
        gains: `[points, objectives]`, at least one objective. Points that are not above 0 in
            every objective add nothing; duplicates and dominated points change nothing.

    Returns:
        0.0 for no points.

    >>> dominated_volume([(2.0, 1.0), (1.0, 3.0)])
    4.0
    """
    boxes = np.asarray(gains, dtype=np.float64)
    boxes = boxes[(boxes > 0).all(-1)] if len(boxes) else boxes
    if not len(boxes) or np.isinf(boxes).any():
        return math.inf if len(boxes) else 0.0
    if boxes.shape[1] == 2:  # by a sweep: recorded claims hold to its last digit
        boxes = boxes[np.argsort(-boxes[:, 1], kind="stable")]
        widths = np.maximum.accumulate(boxes[:, 0])
        return float(np.sum(np.diff(widths, prepend=0.0) * boxes[:, 1]))
    return float(moocore.hypervolume(boxes, ref=0.0, maximise=True))


# -- records -----------------------------------------------------------------------------------
def gains_of(records: Sequence[Record], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """The objectives of records, with their sign turned where less is better.

    Returns:
        float `[records, objectives]`, more is better.

    Raises:
        KeyError: If a record lacks an objective.
    """
    values = [[record.value(o.name) for o in objectives] for record in records]
    signs = [1.0 if o.goal == "max" else -1.0 for o in objectives]
    return np.asarray(values, dtype=np.float64).reshape(len(values), len(signs)) * signs


def beats_constant(values: Mapping[str, float]) -> dict[str, bool]:
    """Task -> whether its score exceeds that of a constant answer by more than noise.

    Args:
        values: What was reported. A task is a value with a `"<task>/majority"` beside it. The
            lower end of its interval over rows, `"<task>/low"`, has to be above that; where none
            was reported, the score itself by more than `NEAR`. Less is better of a value whose
            name ends in `loss` or is `nll`; its `/low` is the upper end.

    >>> beats_constant({"RTE": 0.56, "RTE/majority": 0.53, "RTE/low": 0.5, "loss": 7.0})
    {'RTE': False}
    """
    beaten: dict[str, bool] = {}
    for name, constant in values.items():
        task = name.removesuffix(MAJORITY)
        if task == name or task not in values:
            continue
        sign = -1 if task.endswith(("loss", "nll")) else 1
        needed = sign * constant + (0.0 if task + LOW in values else NEAR)
        beaten[task] = sign * values.get(task + LOW, values[task]) > needed
    return beaten


def default_goal(measure: str, objectives: Iterable[Objective] = ()) -> str:
    """The direction in which a measure is better: its objective's, else min for a loss."""
    lower = ("loss", "perplexity", "error", "seconds", "latency", "memory")
    usual = "min" if measure.lower().endswith(lower) else "max"
    return next((o.goal for o in objectives if o.name == measure), usual)


def score_title(score: str, records: Iterable[Record]) -> str:
    """The name of a score for readers: the task's own, where the score is that of one task."""
    scored = [record.values for record in records if record.scored]
    ends = {key for values in scored for key in values if key.endswith(MAJORITY)}
    task = min(ends, default="").removesuffix(MAJORITY)
    alone = len(ends) == 1 and all(v.get(task) == v.get(score) for v in scored)
    return task if alone else score


def learned_nothing(record: Record) -> bool:
    """Whether a record reports what constant answers earn, and beats none of them.

    Such a record tells nothing of its mask: it is on no front and never the best.
    """
    beaten = beats_constant(record.values)
    return bool(beaten) and not any(beaten.values())


def pareto(records: Iterable[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The non-dominated records among those with a full-fidelity result.

    Running, failed and early-stopped records and one-shot jobs never enter, and neither do
    non-finite values and records that have learned nothing (`learned_nothing`). Of several
    records with equal values in every objective (the same mask twice, or a tie) the one with the
    lowest number stays. A record beyond an objective's `worst` may be on the front; it only adds
    no hypervolume.

    Args:
        records: Any records; several seeds of one mask count as several points, so average
            them first where a mask was run more than once (`Comparison`).
        objectives: At least one.

    Returns:
        Best value of the first objective first.

    Raises:
        KeyError: If a scored record lacks an objective.
        ValueError: If there is no objective, or if the scored records come from more than one
            protocol: their scores cannot be ranked against each other.
    """
    if not objectives:
        raise ValueError("a front needs at least one objective, got none")
    scored = sorted((r for r in records if r.scored), key=lambda r: r.number)
    protocols = {r.protocol for r in scored}
    if len(protocols) > 1:
        raise ValueError(
            "a front needs records of one protocol, got "
            f"{', '.join(sorted(map(repr, protocols)))}; filter them by record.protocol"
        )
    first: dict[tuple[float, ...], Record] = {}  # gains -> the lowest number that has them
    for record, gains in zip(scored, gains_of(scored, objectives).tolist(), strict=True):
        if all(map(math.isfinite, gains)) and not learned_nothing(record):
            first.setdefault(tuple(gains), record)
    points = sorted(first, reverse=True)
    gains = np.asarray(points).reshape(len(points), len(objectives))
    return [first[p] for p, kept in zip(points, on_front(gains), strict=True) if kept]


def sparsity_of(record: Record) -> float:
    """Of the record's mask, over the non-padding query-key pairs, in [0, 1].

    It is what masks are ranked, matched and filtered by. Where it was not measured, that of the
    table stands for it, else 0.
    """
    return record.measures.get("effective_sparsity", record.measures.get("sparsity", 0.0))


def cost_of(record: Record, objectives: Sequence[Objective]) -> float:
    """The cost of the record's mask, as a share of dense attention: the second objective, where
    that is a measure of the evaluator's own (`kv_bytes`), else its effective density."""
    costs = [
        o.name for o in objectives[1:2] if o.name in record.measures and o.name not in MEASURES
    ]
    return record.measures[costs[0]] if costs else 1 - sparsity_of(record)


def keeps_budget(record: Record, objectives: Sequence[Objective], budget: float) -> bool:
    """Whether a mask costs no more than a share of what dense attention costs (`cost_of`)."""
    return cost_of(record, objectives) <= budget * (1 + SLACK)


def has_rival(record: Record, records: Iterable[Record], objectives: Sequence[Objective]) -> bool:
    """Whether a hand-designed mask of the cost of a record's was evaluated as well: one that
    costs at most a point more, and at least half as much."""
    most = cost_of(record, objectives)
    costs = (cost_of(each, objectives) for each in records if each.scored and each.source == HAND)
    return any(most / 2 <= cost <= most + POINT for cost in costs)


def sparsities_differ(records: Iterable[Record]) -> bool:
    """Whether any mask's sparsity is not that of its n x n table, so that both must be shown."""
    tables = ((record.measures.get("sparsity"), sparsity_of(record)) for record in records)
    return any(table is not None and table != share for table, share in tables)


def ranked(
    records: Iterable[Record],
    objectives: Sequence[Objective],
    sparsity: float = 0.0,
    budget: float = math.inf,
    *,
    baselines: bool = False,
    learned: bool = True,
) -> list[Record]:
    """The masks at least that sparse and within a budget, the best first objective first.

    A tie goes to the mask that the other objectives prefer, then to the sparser one, then to the
    lowest number, so that no other eligible mask dominates the first. Records that `pareto` leaves
    out are left out.

    Args:
        records: Any records, of one protocol.
        objectives: At least one.
        sparsity: Least sparsity, in [0, 1].
        budget: What masks cost at most (`cost_of`).
        baselines: Whether masks count that no strategy has proposed.
        learned: Whether records that have learned nothing are left out.
    """
    eligible = [
        record
        for record in records
        if record.scored
        and sparsity_of(record) >= sparsity - 1e-9
        and keeps_budget(record, objectives, budget)
        and (baselines or record.role != "baseline")
        and all(math.isfinite(record.value(o.name)) for o in objectives)
        and not (learned and learned_nothing(record))
    ]
    by_sparsity = any(o.name in SPARSITIES for o in objectives)

    def order(item: tuple[Record, list[float]]) -> tuple[float, ...]:
        record, (first, *others) = item
        sparser = sparsity_of(record)
        others = [sparser, *others] if by_sparsity else [*others, sparser]
        return first, *others, -record.number

    gains = gains_of(eligible, objectives).tolist()
    pairs = sorted(zip(eligible, gains, strict=True), key=order, reverse=True)
    return [record for record, _ in pairs]


def hypervolume(points: Iterable[Sequence[float]], objectives: Sequence[Objective]) -> float:
    """Exact volume dominated by `points`, measured from each objective's `worst`.

    Args:
        points: One finite value per objective, in the objectives' units. Points at or beyond a
            `worst` add nothing; duplicates and dominated points change nothing.
        objectives: Any number (>= 1).

    Returns:
        The product of the objectives' units; 0.0 for no points.

    Raises:
        ValueError: If a `worst` is not finite.

    >>> score, sparsity = Objective("glue", "max", 0.0), Objective("sparsity", "max", 0.0)
    >>> hypervolume([(2.0, 1.0), (1.0, 3.0)], (score, sparsity))
    4.0
    """
    for objective in objectives:
        if not math.isfinite(objective.worst):
            raise ValueError(
                f"objective {objective.name!r} has worst={objective.worst}; the hypervolume "
                "needs a finite reference: choose the worst value that still counts"
            )
    boxes = [
        [
            value - o.worst if o.goal == "max" else o.worst - value
            for value, o in zip(point, objectives, strict=True)
        ]
        for point in points
    ]
    return dominated_volume(boxes)


@dataclass(frozen=True)
class Snapshot:
    """State of a search after one of its records: `Snapshot(objectives).after(*records)`.

    Raises:
        ValueError: If there is no objective.
    """

    objectives: tuple[Objective, ...]
    finished: int = 0  # records so far, failed and stopped ones and baselines included
    front: tuple[Record, ...] = ()  # as `pareto`: best value of the first objective first
    joined: bool = False  # whether the last record is on the front (it may leave it later)
    statuses: Mapping[Status, int] = field(default_factory=dict)  # records so far, by status
    seconds: float = 0.0  # compute so far, in seconds, failed and stopped records included
    best: Record | None = None  # of what the strategy has proposed, the first of `ranked`
    unlearned: int = 0  # scored records so far that have learned nothing

    def __post_init__(self) -> None:
        pareto((), self.objectives)  # refuses a search without objectives

    def after(self, *records: Record) -> Snapshot:
        """The state after further records; those that are still running, and draws that were
        refused as beyond their budget, change nothing.

        Raises:
            KeyError: If a scored record lacks an objective.
            ValueError: If scored records come from more than one protocol.
        """
        ended = [each for each in records if each.status != "running" and not each.refused]
        statuses = dict(self.statuses)
        for record in ended:
            statuses[record.status] = statuses.get(record.status, 0) + 1
        front = tuple(pareto([*self.front, *ended], self.objectives))
        before = [self.best] if self.best else []
        return Snapshot(
            self.objectives,
            self.finished + len(ended),
            front,
            bool(records) and any(record is records[-1] for record in front),
            MappingProxyType(statuses),
            self.seconds + sum(record.seconds for record in ended),
            next(iter(ranked([*before, *ended], self.objectives)), None),
            self.unlearned + sum(r.scored and learned_nothing(r) for r in ended),
        )

    @cached_property
    def hypervolume(self) -> float:
        """Of the front; NaN where an objective's `worst` is not finite."""
        if not all(math.isfinite(objective.worst) for objective in self.objectives):
            return math.nan
        points = [[r.value(o.name) for o in self.objectives] for r in self.front]
        return hypervolume(points, self.objectives)

    def count(self, status: Status) -> int:
        """Records with that status so far."""
        return self.statuses.get(status, 0)

    @property
    def trials(self) -> int:
        """Records that are done, reused or stopped; to a budget the reused count as none."""
        return self.count("done") + self.count("reused") + self.count("stopped")


def hypervolume_curve(
    records: Iterable[Record], objectives: Sequence[Objective]
) -> list[Snapshot]:
    """The state of a search, with its hypervolume, after each finished record in the order given.

    A study gives its records in the order of their completion. Failed ones add their seconds
    but no trial: a search pays for its failures. Leave baselines out (`record.role`) where
    strategies are compared.

    Raises:
        KeyError: If a scored record lacks an objective.
        ValueError: If there is no objective, or scored records come from several protocols.
    """
    states = [Snapshot(tuple(objectives))]
    for record in records:
        if record.status != "running":
            states.append(states[-1].after(record))
    return states[1:]


# -- what records say against believing them ------------------------------------------------------
def search_cautions(records: Sequence[Record]) -> list[str]:
    """Cautions for whoever runs or reads a search; empty where there is nothing.

    Args:
        records: Of one search or of several, finished ones and others.
    """
    return [
        *constant_scores(records),
        *_repeated_masks(records),
        *_idle_parameters(records),
        *unlearned_gates(records),
    ]


def nothing_learned(records: Sequence[Record]) -> str:
    """How many finished trials score no better than constant answers; empty where all do.

    Args:
        records: Of a search; those that have learned nothing are on no front.
    """
    scored = [record for record in records if record.scored]
    those = [record for record in scored if learned_nothing(record)]
    if not those:
        return ""
    tasks = list(dict.fromkeys(task for r in those for task in beats_constant(r.values)))
    constant = f"a constant answer on {' or '.join(tasks)}"
    if len(those) < len(scored):
        return (
            f"{len(those)} of the {len(scored)} finished trials have learned nothing and are on "
            f"no front: their scores are no better than those of {constant}"
        )
    return (
        f"nothing learned: none of the {len(scored)} finished trials scores better than "
        f"{constant}, so that there is no front"
    )


def describe_none_within(
    records: Sequence[Record], objectives: Sequence[Objective], budget: float
) -> str:
    """Why `ranked` has no mask within a budget, and what to do."""
    weak = ranked(records, objectives, budget=budget, learned=False)
    if not weak:
        return f"no mask within {budget:g} among {len(records)} trials: give more trials"
    values, (task, *_) = weak[0].values, beats_constant(weak[0].values)
    return (
        f"{len(weak)} of {len(records)} trials judged a mask within {budget:g}, and none scores "
        f"better than a guess that reads no context: the best has {task} {values[task]:.4f}, the "
        f"guess {values[task + MAJORITY]:.4f}: give a larger budget or a wider local mask"
    )


def constant_scores(records: Sequence[Record]) -> list[str]:
    """Tasks on which every mask has the score of a constant answer (`TASK/majority`)."""
    trained = [record for record in records if record.status == "done" and record.scored]
    if len(trained) < FEWEST:
        return []
    if all(map(learned_nothing, trained)):
        return [f"{nothing_learned(records)}; {REMEDY}"]
    beaten = [beats_constant(record.values) for record in trained]
    constants = [
        task
        for task in sorted({task for each in beaten for task in each})
        if len(beats := [each[task] for each in beaten if task in each]) >= FEWEST
        and not any(beats)
    ]
    if not constants:
        return []
    return [
        f"none of the {len(trained)} masks trained so far scored better on "
        f"{', '.join(constants)} than a constant answer, so that this says nothing about the "
        f"masks: {REMEDY}"
    ]


def _repeated_masks(records: Sequence[Record]) -> list[str]:
    """Strategies that draw the same masks again and again."""
    texts = []
    drawn = [r for r in records if r.scored and r.role == "trial"]
    for origin in dict.fromkeys(record.origin for record in drawn):
        trials = sorted((r for r in drawn if r.origin == origin), key=lambda r: r.number)
        again = [record.status == "reused" for record in trials]
        if (len(again) >= IN_A_ROW and all(again[-IN_A_ROW:])) or (
            sum(again) >= IN_A_ROW - 1 and 2 * sum(again) >= len(again)
        ):
            masks = len({record.fingerprint for record in trials})
            texts.append(
                f"{sum(again)} of the {len(again)} draws of {origin} were of a mask that had been "
                f"trained before ({masks} different masks in all); they are answered from its "
                "trial, and count as none: search a larger space, or with another strategy"
            )
    return texts


def _idle_parameters(records: Sequence[Record]) -> list[str]:
    """Parameters of a space that took another value, beside equal others, for an equal mask."""
    drawn: dict[str, dict[object, set[str]]] = {}  # name -> mask and others -> its values
    for record in records:
        if not record.fingerprint or record.role != "trial":
            continue
        names = json.loads(record.strategy_state.get("distributions", "{}"))
        values = {name: repr(record.params[name]) for name in names}
        for name, value in values.items():
            others = tuple(sorted(each for each in values.items() if each[0] != name))
            drawn.setdefault(name, {}).setdefault((record.fingerprint, others), set()).add(value)
    counts = {name: sum(len(each) - 1 for each in drawn[name].values()) for name in drawn}
    idle = [f"{name} in {count}" for name, count in counts.items() if count]
    if not idle:
        return []
    return [
        f"parameters without an effect on the mask (in so many draws): {', '.join(idle)}; let the "
        "space ask for a parameter only where it has one"
    ]


def unlearned_gates(records: Sequence[Record]) -> list[str]:
    """Trained gates that were pruned before attention had learned, or not at all."""
    return [
        f"DAM, trial {record.number}: {words}"
        for record in records
        if isinstance(record.job, OneShot) and record.status == "done"
        for words in warmup_problems(record.values, record.step).values()
    ]


def warmup_problems(values: Mapping[str, float], steps: int) -> dict[str, str]:
    """Problems of a warm-up that has found its own end, by the last report of a DAM run.

    Kinds are `"attention_unlearned"` and `"unsettled"`; none for a run whose warm-up was given.

    Args:
        values: Those of `masksearch.gates.pruning.WarmupWatch.values` among others.
        steps: Optimiser steps of the run.
    """
    if "pruned_steps" not in values:
        return {}
    if not values["pruned_steps"]:
        worth = values.get("attention_worth", 0.0)
        how = "nothing" if not values["attention_learned"] else "too late to be pruned"
        what = f"attention has learned {how} (the loss without it is {max(0.0, worth):.3g} higher)"
        return {
            "attention_unlearned": (
                f"{what}, so no gate was pruned and a mask cut from these gates means nothing; "
                f"{ATTENTION_REMEDY}"
            )
        }
    if not values["settled"]:
        return {
            "unsettled": (
                "gates were pruned before attention had learned: at step "
                f"{steps - int(values['pruned_steps'])} the loss was still falling, so edges that "
                f"it learns later may be gone; {ATTENTION_REMEDY}"
            )
        }
    return {}
