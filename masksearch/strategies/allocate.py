"""Which layers or heads need a full mask: scored one by one, then kept, added or removed.

    both ends -> scores of the units -> "ranked":   masks of every size, by these scores
                                     -> "exact":    the best masks within budgets, by these scores
                                     -> "greedy":   rounds that raise the best unit
                                     -> "backward": rounds that lower the most useless unit

Every mask that is judged on the way is a trial of the study. The plan is a generator of batches,
and goes on once every mask of its batch has been judged; so what it asks for is a function of the
results alone, in whatever order they arrive.

Reference:
    Restoring one or leaving one out: "KL-guided layer selection", arXiv 2512.20569; DuoAttention,
    arXiv 2410.10819, has the choice of full or local heads. Budgets over added scores: MoA, arXiv
    2406.14909, and Puzzle, arXiv 2411.19146. Several masks a unit: a knapsack with
    multiple choice, by its convex hulls: Sinha and Zoltners, Operations Research 27(3), 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from masksearch.analysis.cautions import warmup_problems
from masksearch.contracts import Evaluate, Evaluator, Objective, OneShot, Proposal, Record, Shape
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.dam import one_shot_parts, refuse_unreachable
from masksearch.gates.units import (
    Allocation,
    Scores,
    Unit,
    Units,
    ranked_path,
    replaced,
    write_options,
)
from masksearch.masks.core import Mask
from masksearch.masks.text import parse
from masksearch.strategies.dam import waiting
from masksearch.strategies.switched_units import METHODS as OF_UNITS
from masksearch.strategies.unit_budgets import DENSITY, find_cost, solve, unit_costs
from masksearch.strategies.unit_scores import METHODS

NAME = "allocate"
OPTIONS = (
    *("unit", "full", "local", "between", "score", "grow", "tries", "budgets", "cost"),
    *("gates", "config"),  # of a score that is trained
)
GROW = ("ranked", "exact", "greedy", "backward")
SCORE = ("restore", "ablate")
ARTIFACTS = ("gates", "scores")  # with scores of units
LOWEST = -1e30  # gain of a mask without a score, where the objective's worst is infinite


class AllocateStrategy:
    """Proposes allocations: masks in which every unit has one of its masks.

    Where scores are those of gates or of a trained model, the first job makes them. The first
    masks are the two ends, all units local and all full. Then

    - `"ranked"`: every unit is scored once, and the units are raised in the order of their scores
      (of several masks, in the order of gain per pair kept, along each unit's convex hull). The
      masks on this path are judged from coarse to fine, so that any number of trials is spread
      over all sizes. Scores of units need not add up: compare with the others.
    - `"exact"`: the same scores, and of all allocations the one with the largest sum of scores
      within each budget.
    - `"greedy"`: from all local on, in each round every unit that can is raised by one level; the
      one that gains most per pair stays raised.
    - `"backward"`: from all full on, in each round every unit that can is lowered; the one that
      loses least per pair stays lowered.

    Rounds of all units cost about units² / 2 trials; with `tries` a round judges only that many,
    the best by what is known of them: their scores, or later their last round.

    Args:
        units: The layers or heads, and their masks.
        objective: What a mask is judged by.
        score: `"restore"` (one unit raised where all others are local), `"ablate"` (one unit
            lowered where all others are full), or numbers: unit -> the worth of each of its
            levels. None = `"ablate"` for `"backward"`, else `"restore"`. Where `tries` is None,
            `"greedy"` and `"backward"` need no scores and take none.
        grow: `"ranked"`, `"exact"`, `"greedy"` or `"backward"`.
        tries: Units that a round judges (>= 1); None = all. For `"greedy"` and `"backward"`.
        budgets: What the masks of `"exact"` cost at most, each in (0, 1]: their share of what is
            kept where all units are full.
        costs: Of each level, of each unit, such that the sum over the units is the mask's; None =
            their pairs of real tokens.
        training: The job that trains gates, whose probabilities are the scores in the place of
            `score`, or that measures scores on a trained model; None = neither.
        run: Folder that artifacts are relative to; needed with `training`.

    Raises:
        UnknownNameError: For another way to grow or to score, or a unit that does not exist.
        ValueError: If `tries` is below 1 or has no rounds, or scores are missing or not finite.
    """

    def __init__(
        self,
        units: Units,
        objective: Objective,
        *,
        score: str | Scores | None = None,
        grow: Literal["ranked", "exact", "greedy", "backward"] = "ranked",
        tries: int | None = None,
        budgets: Sequence[float] = (),
        costs: Sequence[Sequence[float]] | None = None,
        training: OneShot | None = None,
        run: Path = Path(),
    ) -> None:
        if grow not in GROW:
            raise unknown_name("way to grow:", grow, GROW)
        if tries is not None and (grow in ("ranked", "exact") or tries < 1):
            raise ValueError(
                f"tries is how many units a round of 'greedy' or 'backward' judges, 1 or more; "
                f"got {tries} for {grow!r}"
            )
        if (grow == "exact") != bool(budgets) or not all(0 < each <= 1 for each in budgets):
            raise ValueError(
                "budgets are shares in (0, 1], one or more for grow='exact' and none for others; "
                f"got {list(budgets)} for {grow!r}"
            )
        score = score or ("ablate" if grow == "backward" else "restore")
        if isinstance(score, str) and score not in SCORE:
            known = dict.fromkeys((*SCORE, "gates", *METHODS, *OF_UNITS, "a file of scores"))
            raise unknown_name("score of units:", score, known)
        if not isinstance(score, str):
            check_scores(score, units)
        self.units, self.objective = units, objective
        self.score, self.grow, self.tries = score, grow, tries
        self.out: dict[Allocation, bool] = {}  # what was proposed -> whether it has ended
        self.gains: dict[Allocation, float] = {}  # of what was scored; more is better
        self.worth: dict[str, list[float]] | None = None  # of each unit's levels, once it is known
        self.training, self.run = training, run
        self.trained: Record | None = None  # of that job, once it has ended
        self.next = 0  # the next draw
        self.steps = self.plan()
        self.batch: Sequence[Allocation] | None = ()  # None = the plan has ended
        self.costs: Sequence[Sequence[float]] = units.costs.tolist() if costs is None else costs
        self.budgets = tuple(sorted({*budgets}))
        if budgets:  # too small ones are refused before anything is judged
            solve([[0.0] * (units.top + 1) for _ in units.names], self.costs, self.budgets[0])

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next allocation; "wait" where the next depends on masks that are still out.

        Raises:
            SearchError: If the job that makes the scores has failed; gives its reason.
        """
        if self.training is not None and self.next == 0:
            self.next = 1
            return Proposal(0, self.training, {}, NAME)
        if self.training is not None and self.trained is None:
            return "wait"
        while self.batch is not None:
            for allocation in self.batch:
                if allocation not in self.out:
                    self.out[allocation] = False
                    self.next += 1
                    job = Evaluate(self.units.mask(allocation))
                    return Proposal(self.next - 1, job, self.units.params(allocation), NAME)
            if not all(self.out[allocation] for allocation in self.batch):
                return "wait"
            self.batch = next(self.steps, None)
        return "done"

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that an allocation is out."""
        self.next = max(self.next, record.number + 1)
        if self.training is not None and record.number == 0:
            self.trained = record if record.status != "running" else self.trained
            return
        allocation = self.units.allocation(record.params)
        ended = record.status != "running"
        self.out[allocation] = self.out.get(allocation, False) or ended
        if record.scored and allocation not in self.gains:
            value = record.value(self.objective.name)
            if math.isfinite(value):
                self.gains[allocation] = value if self.objective.goal == "max" else -value

    @property
    def least_trials(self) -> int:
        """Trials that it takes before one is chosen by what others have shown."""
        given = self.training is not None or not isinstance(self.score, str)
        scored = self.grow in ("ranked", "exact") or self.tries is not None
        if given and scored:
            return 2 + (self.training is not None)
        return 2 + len(self.units.names) * (self.units.top if scored else 1)

    # -- the plan ------------------------------------------------------------------------------
    def plan(self) -> Iterator[Sequence[Allocation]]:
        """Batches of allocations; each is asked for when the last was judged."""
        count, top = len(self.units.names), self.units.top
        local, full = (0,) * count, (top,) * count
        worth: list[list[float]] | None = None
        if self.trained is not None:
            self.score = self.read_artifact(self.trained)
        yield (local, full)
        if not isinstance(self.score, str):
            worth = [list(self.score[name]) for name in self.units.names]
        elif self.grow in ("ranked", "exact") or self.tries is not None:
            start = local if self.score == "restore" else full
            alone = [[replaced(start, u, at) for at in range(top + 1)] for u in range(count)]
            yield [each for levels in alone for each in levels if each != start]
            known = [[self.gain(each) for each in levels] for levels in alone]
            worth = [[gain - gains[0] for gain in gains] for gains in known]
        if worth is not None:
            self.worth = dict(zip(self.units.names, worth, strict=True))
        if self.grow == "ranked":
            assert worth is not None
            path = ranked_path(worth, self.costs)
            yield [path[at] for at in spread(len(path))]
        elif self.grow == "exact":
            assert worth is not None
            yield [solve(worth, self.costs, budget) for budget in self.budgets]
        elif self.grow == "greedy":
            yield from self.rounds(local, 1, worth)
        else:
            yield from self.rounds(full, -1, worth)

    def read_artifact(self, record: Record) -> dict[str, list[float]]:
        """The scores that the first job has left."""
        found = [record.artifacts[name] for name in ARTIFACTS if name in record.artifacts]
        if not found:
            raise SearchError(
                f"strategy 'allocate' has no scores of its units, the job that makes them failed: "
                f"{record.reason or 'it left none'}; remove the cause and search in another run "
                "folder, or score by 'restore'"
            )
        unlearned = warmup_problems(record.values, record.step).get("attention_unlearned")
        if unlearned:
            raise SearchError(f"gates are no scores for strategy 'allocate': {unlearned}")
        return self.units.read_scores(self.run / found[0])

    def rounds(
        self, now: Allocation, step: int, worth: list[list[float]] | None
    ) -> Iterator[Sequence[Allocation]]:
        """Moves one unit a round by one level, until none can move.

        Args:
            now: Where the rounds begin.
            step: 1 = up, -1 = down.
            worth: Of each unit and level, for the first choice of `tries`; None = all alike.
        """
        units, top = range(len(now)), self.units.top
        latest = [0.0] * len(now)  # gain per pair of each unit's next step
        if worth is not None:
            for u in units:
                change = worth[u][now[u] + step] - worth[u][now[u]]
                latest[u] = change / self.price(u, now[u], step)
        while free := [u for u in units if 0 <= now[u] + step <= top]:
            order = sorted(free, key=lambda u: (-latest[u], u))
            size, scored = self.tries or len(order), list[int]()
            for first in range(0, len(order), size):
                tried = order[first : first + size]
                moved = {u: replaced(now, u, now[u] + step) for u in tried}
                yield [moved[u] for u in sorted(tried)]  # neighbours share their lower layers
                for u in tried:
                    change = self.gain(moved[u]) - self.gain(now)
                    latest[u] = change / self.price(u, now[u], step)
                scored = [u for u in tried if moved[u] in self.gains]
                if scored:
                    break
            if not scored:
                return  # all were stopped by a constraint, or failed
            best = min(scored, key=lambda u: (-latest[u], u))
            now = replaced(now, best, now[best] + step)

    def price(self, unit: int, level: int, step: int) -> float:
        """Share of its pairs that a unit gains or loses with a step."""
        return abs(self.costs[level + step][unit] - self.costs[level][unit])

    def gain(self, allocation: Allocation) -> float:
        """How good an allocation is; that of one without a score is the objective's worst."""
        worst = self.objective.worst if self.objective.goal == "max" else -self.objective.worst
        return self.gains.get(allocation, worst if math.isfinite(worst) else LOWEST)


def build_allocate(
    options: Mapping[str, Any], units: Units, evaluator: Evaluator, run: Path
) -> AllocateStrategy:
    """The strategy that plain options stand for; see `AllocateStrategy` and `build_units`.

    `cost` names what budgets count (`find_cost`).

    Raises:
        SearchError: If the cost does not add up over the units, or gates are not each unit's own.
        ValueError: If gates cannot reach the density that they are asked for.
        FileNotFoundError, MaskFormatError: If `score` names a file that cannot be read.
    """
    given = {name: options.get(name) for name in ("score", "grow", "tries", "budgets")}
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    own["costs"] = costs_of(options, units, evaluator)
    score = own.get("score")
    if isinstance(score, Path) or (isinstance(score, str) and score.endswith(".safetensors")):
        own["score"] = units.read_scores(score)
    gates, config = options.get("gates") or {}, options.get("config") or {}
    if score == "gates":
        if "preset" in gates:
            raise SearchError(
                f"score='gates' takes gates of each {units.unit}'s own, and all layers share "
                f"those of preset={gates['preset']!r}; leave the preset out"
            )
        del own["score"]
        each = {"layers": units.shape.layers, **gates}  # of all layers together they say nothing
        if each.setdefault("structure", "switch") == "switch":
            each |= {"options": write_options(units.levels), "per": units.unit}
            each |= {} if units.kv_heads is None else {"kv_heads": units.kv_heads}
            config = {"density": units.quarter, **config}
        training = OneShot(each, waiting(config))
        built, trained = one_shot_parts(training, units.shape, 0)  # before a model is trained
        refuse_unreachable(built, trained)
        layers, heads = units.shape.layers, units.shape.heads
        if trained.layers != layers or (trained.heads != heads and units.unit != "layer"):
            raise SearchError(
                f"score='gates' takes gates of each {units.unit}'s own, {layers} layers of "
                f"{heads} heads, got layers={trained.layers}, heads={trained.heads}; leave both "
                "out (--gate-layers)"
            )
        own |= {"training": training, "run": run}
    elif score == "switch" or (score == "mass" and units.shape.causal):
        del own["score"]  # measured for whole units: sequences of decoders are long
        levels = {"levels": [mask.to_dict() for mask in units.levels]}
        own |= {"training": OneShot(levels, measure=score), "run": run}
    elif score in METHODS:
        del own["score"]
        own |= {"training": OneShot(measure=score), "run": run}
    elif gates or config:
        raise SearchError("gates and config belong to score='gates', which trains them")
    return AllocateStrategy(units, evaluator.objectives[0], **own)


def costs_of(
    options: Mapping[str, Any], units: Units, evaluator: Evaluator
) -> list[list[float]] | None:
    """What each level of each unit costs; None = its pairs, where no budget asks for more."""
    name = find_cost(units, evaluator, options.get("cost"))
    if name == DENSITY and not options.get("budgets"):
        return None
    try:
        return unit_costs(units, evaluator, name)
    except SearchError:
        if options.get("cost") is None and not options.get("budgets"):
            return None
        raise


def build_units(options: Mapping[str, Any], shape: Shape, kv_heads: int | None = None) -> Units:
    """The units that plain options stand for: `unit`, `local`, `between`, `full`.

    Args:
        options: Masks, or texts as for `masks.parse`; full attention where `full` is missing.
        shape: Of the model.
        kv_heads: KV heads of a layer of a decoder; None = not known.

    Raises:
        SearchError: If there is no local mask.
    """
    if options.get("local") is None:
        raise SearchError(
            "units need a local mask beside the full one: give local='star()' (--local), or "
            "local='window(8) | global_tokens(1)'"
        )
    unit: Unit = options.get("unit") or "head"
    between = options.get("between") or ()
    if isinstance(between, str | Mask):
        between = (between,)
    given = (options["local"], *between, options.get("full") or "full()")
    levels = tuple(parse(m) if isinstance(m, str) else m for m in given)
    return Units(shape, levels, unit, kv_heads if unit == "kv_head" else None)


def check_scores(scores: Scores, units: Units) -> None:
    """Refuses scores that are not one finite number for each level of each unit."""
    for name in scores:
        if name not in units.names:
            raise unknown_name("unit", name, units.names)
    for name in units.names:
        found = list(scores.get(name, ()))
        if len(found) != len(units.levels) or not all(map(math.isfinite, found)):
            raise ValueError(
                f"score holds for each unit one finite number a level ({len(units.levels)} of "
                f"them, from local to full), got {found or 'nothing'} for {name}"
            )


def spread(count: int) -> list[int]:
    """Indices from 0 to `count` - 1: the ends, then each time the middles of what lies between.

    >>> spread(6)
    [0, 5, 2, 1, 3, 4]
    """
    order = [0, count - 1] if count else []
    gaps = [(0, count - 1)]
    for low, high in gaps:
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return list(dict.fromkeys(order))
