"""Which layers or heads need a full mask, or a wider one: scored one by one, or in rounds.

    both ends -> scores of the units -> masks of every size, by these scores
                                     -> or within each budget the best sum of scores
              -> "greedy":              rounds that raise the best unit
              -> "exchange":            from all units alike, rounds that move what they hold

Every mask that is judged on the way is a trial of the study. The plan is a generator of batches,
and goes on once every mask of its batch has been judged; so what it asks for is a function of the
results alone, in whatever order they arrive.

Reference:
    Restoring one or leaving one out: "KL-guided layer selection", arXiv 2512.20569; DuoAttention,
    arXiv 2410.10819, has the choice of full or local heads. Budgets over added scores: MoA, arXiv
    2406.14909, and Puzzle, arXiv 2411.19146. Several masks a unit: a knapsack with
    multiple choice, by its convex hulls: Sinha and Zoltners, Operations Research 27(3), 1979.
    Selectors that lost against these are in experiments/rivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from masksearch.analysis.pareto import warmup_problems
from masksearch.contracts import Evaluate, Evaluator, Objective, OneShot, Proposal, Record
from masksearch.errors import SearchError, check_name, unknown_name
from masksearch.files import path_inside
from masksearch.gates.config import one_shot_parts, refuse_unreachable
from masksearch.gates.unit_costs import build_units, find_cost, measured_cost, with_costs
from masksearch.gates.units import (
    Allocation,
    Scores,
    Units,
    dearer,
    ranked_path,
    replaced,
    write_levels,
)
from masksearch.masks.measure import ROUNDING
from masksearch.strategies.build import StrategyRequest, StrategySpec, one_shot_config
from masksearch.strategies.dam import waiting
from masksearch.study.records import read_budgets

NAME = "allocate"
Table = Sequence[Sequence[float]]  # of levels and units
OPTIONS = {  # name -> type
    **dict.fromkeys(("unit", "levels", "method", "cost", "gates", "config"), Any),
    **{"tries": int, "budgets": Sequence[float], "one_window": bool},
}
METHODS = ("restore", "ablate", "greedy", "exchange")
ROUNDS = 3  # of "exchange" within a budget, at most
LOWEST = -1e30  # gain of a mask without a score, where the objective's worst is infinite


class AllocateStrategy:
    """Proposes allocations: masks in which every unit has one of its masks.

    Where scores are those of gates, the first job trains these. The first masks are the two ends,
    all units local and all full, at their dearest level. Then

    - by scores, without budgets: the units are raised in the order of their scores (of several
      masks, in the order of gain per pair kept, along each unit's convex hull). The masks on this
      path are judged from coarse to fine, so that any number of trials is spread over all sizes.
      Scores of units need not add up: compare with `"greedy"`.
    - by scores, within each budget: of all allocations the one with the largest sum of scores. Of
      gates, whose scores have no zero, the densest one on that path.
    - `"greedy"`: from all local on, in each round every unit that can is raised by one level, or
      where levels do not rise to each dearer one; what gains most per pair stays raised. Rounds of
      all units cost about units² / 2 trials (times the dearer levels); with `tries` a round judges
      only that many units, the best by what is known of them: restored alone, or later their last
      round.
    - `"exchange"`, within each budget, the smallest first: too few trials leave the largest out.
      It begins with the best allocation in which all units are alike. A round judges every unit
      at every other level, and then the best sums of these changes within the budget that raise
      at most 1, 2, 4, .. units. The next round is around the best of all that was judged; where
      nothing is better, around all units at the top, and then the rounds end (three at most). So
      it never ends worse than with all units alike.

    Args:
        units: The layers or heads, and their masks.
        objective: What a mask is judged by.
        method: How units are scored: `"restore"` (one unit raised where all others are local),
            `"ablate"` (one unit lowered where all others are full), or numbers: unit -> the
            importance of each of its levels. Or `"greedy"`, or `"exchange"`, which needs budgets.
        tries: Units that a round of `"greedy"` judges (>= 1); None = all.
        budgets: What masks cost at most, each in (0, 1]: their share of what is kept where all
            units are full. `"greedy"` ends at the largest.
        training: The job that trains gates, whose probabilities are the scores in the place of
            `method`; None = no gates.
        run: Folder that artifacts are relative to; needed with `training`.
        totals: `[levels below the top][number of units at the top]`: the share that a mask costs
            in which so many units are at the top and all others have that level. Needed for
            engines whose bytes are no sum over layers, since they hold full layers in groups;
            empty = costs are that sum. There more full layers may cost less: `"greedy"` skips
            the numbers that exceed the budget. With more than two levels the method has to be
            `"exchange"`.

    Raises:
        UnknownNameError: For another method, or a unit that does not exist.
        ValueError: If `tries` is below 1 or has no rounds, a budget is below all masks, scores
            are missing or not finite, or the method takes no such levels or budgets.
    """

    own_budgets = True

    def __init__(
        self,
        units: Units,
        objective: Objective,
        *,
        method: str | Scores = "restore",
        tries: int | None = None,
        budgets: Sequence[float] = (),
        training: OneShot | None = None,
        run: Path = Path(),
        totals: Table = (),
    ) -> None:
        if not isinstance(method, str):
            _check_scores(method, units)
        elif method not in METHODS:
            raise unknown_name("method:", method, (*METHODS, "gates", "a file of gates"))
        if tries is not None and (method != "greedy" or tries < 1):
            raise ValueError(
                "tries is how many units a round of method='greedy' judges, 1 or more; got "
                f"{tries} for {method!r:.80}"
            )
        budgets = read_budgets(budgets)
        if method == "exchange" and not budgets:
            raise ValueError("method='exchange' moves what a budget pays for: give budgets")
        if len(totals) > 1 and method != "exchange":
            raise ValueError(
                "an engine has one window beside full layers, and of several only "
                "method='exchange' chooses it: take that, or give one local mask"
            )
        self.units, self.objective = units, objective
        self.method, self.tries = method, tries
        self.out: dict[Allocation, bool] = {}  # what was proposed -> whether it has ended
        self.gains: dict[Allocation, float] = {}  # of what was scored; more is better
        self.importance: dict[str, list[float]] | None = None  # of each level, once known
        self.training, self.run = training, run
        self.trained: Record | None = None  # of that job, once it has ended
        self.next = 0  # the next draw
        self.steps = self.plan()
        self.batch: Sequence[Allocation] | None = ()  # None = the plan has ended
        self.moves = 1 if units.rising else units.top  # levels that a round tries of a unit
        self.budgets, self.totals = tuple(sorted(budgets)), totals
        self.costs = Costs(units.shares.tolist(), totals)
        if budgets:  # too small ones are refused before anything is judged
            self.costs.refuse_less(self.budgets[0])

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next allocation; "wait" where the next depends on masks that are still out.

        Raises:
            SearchError: If the job that trains the gates has failed; gives its reason.
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
        self.out[allocation] = self.out.get(allocation, False) or record.status != "running"
        if record.scored and allocation not in self.gains:
            value = record.value(self.objective.name)
            if math.isfinite(value):
                self.gains[allocation] = value if self.objective.goal == "max" else -value

    @property
    def _judges_alone(self) -> bool:
        """Whether each unit is judged alone, for its score."""
        if self.training is not None or not isinstance(self.method, str):
            return False
        return self.method in ("restore", "ablate") or self.tries is not None

    @property
    def least_trials(self) -> int:
        """Trials that it takes before one is chosen by what others have shown, within each of the
        budgets of `"exchange"` (of larger ones some masks are known by then)."""
        alone = len(self.units.names) * self.units.top if self._judges_alone else 0
        if self.method == "greedy":
            return 2 + (alone or len(self.units.names))
        if self.method == "exchange":
            return 2 + self.units.top + len(self.budgets) * self.changes
        return 2 + alone + (self.training is not None)

    @property
    def most_trials(self) -> int:
        """Trials of the whole plan, at most."""
        count, top = len(self.units.names), self.units.top
        alone = count * top if self._judges_alone else 0
        if self.method == "exchange":
            sums = count.bit_length() * max(len(self.totals), 1)
            return 2 + len(self.budgets) * (top + 1 + ROUNDS * (self.changes + sums))
        if self.method != "greedy":
            chosen = len(self.budgets) or count * top - 1
            return 2 + alone + chosen + (self.training is not None)
        steps, table = 0, self.costs.table
        spent = sum(table[0])
        if self.totals:
            steps = sum(self.fits(min(self.totals[0][step + 1 :])) for step in range(count))
        else:  # at most as many as the cheapest ones
            every = [np.diff(np.unique([level[u] for level in table])) for u in range(count)]
            for price in sorted(np.concatenate(every)):
                spent += price
                steps += self.fits(spent)
        free = [count - step if top == 1 else count for step in range(steps)]
        return 2 + alone + sum(min(self.tries or count, each) * self.moves for each in free)

    # -- the plan ------------------------------------------------------------------------------
    def plan(self) -> Iterator[Sequence[Allocation]]:
        """Batches of allocations; each is asked for when the last was judged."""
        count, top = len(self.units.names), self.units.top
        costs = zip(*self.costs.table, strict=True)
        local, full = (0,) * count, tuple(row.index(max(row)) for row in costs)
        importance: list[list[float]] | None = None
        if self.trained is not None:
            self.method = self._read_gates(self.trained)
        yield (local, full)
        if not isinstance(self.method, str):
            importance = [list(self.method[name]) for name in self.units.names]
        elif self._judges_alone:
            start = full if self.method == "ablate" else local
            alone = [[replaced(start, u, at) for at in range(top + 1)] for u in range(count)]
            yield [each for levels in alone for each in levels if each != start]
            table = [[self.gain(each) for each in levels] for levels in alone]
            importance = [[gain - gains[0] for gain in gains] for gains in table]
        if importance is not None:
            self.importance = dict(zip(self.units.names, importance, strict=True))
        if self.method == "greedy":
            yield from self.rounds(local, importance)
        elif self.method == "exchange":
            yield from self._exchanges()
        elif importance is not None and self.budgets and self.training is None:
            yield [self.costs.solve(importance, budget)[0] for budget in self.budgets]
        elif importance is not None:
            path = ranked_path(importance, self.costs.table)
            paid = [
                [each for each in path if within(self.costs.of(each), budget)][-1]
                for budget in self.budgets
            ]
            yield paid or [path[at] for at in _coarse_to_fine(len(path))]

    def _read_gates(self, record: Record) -> dict[str, list[float]]:
        """The scores that the gates of the first job stand for."""
        if "gates" not in record.artifacts:
            raise SearchError(
                "strategy 'allocate' has no scores of its units, the training of its gates "
                f"failed: {record.reason or 'it left none'}; remove the cause and search in "
                "another run folder, or score by 'restore'"
            )
        unlearned = warmup_problems(record.values, record.step).get("attention_unlearned")
        if unlearned:
            raise SearchError(f"gates are no scores for strategy 'allocate': {unlearned}")
        return self.units.read_scores(path_inside(self.run, record.artifacts["gates"]))

    def rounds(
        self, now: Allocation, importance: list[list[float]] | None
    ) -> Iterator[Sequence[Allocation]]:
        """Raises one unit a round, until none can rise.

        Args:
            now: Where the rounds begin.
            importance: Of each unit and level, for the first choice of `tries`; None = all alike.
        """
        latest = [0.0] * len(now)  # gain per pair of each unit's next step
        if importance is not None:
            for u, levels in enumerate(importance):
                gains = [(levels[to] - levels[0], to) for to in self.above(now, u)]
                latest[u] = max((gain / self.price(u, 0, to) for gain, to in gains), default=0.0)
        while free := {u: higher for u in range(len(now)) if (higher := self.above(now, u))}:
            order = sorted(free, key=lambda u: (-latest[u], u))
            size, scored = self.tries or len(order), dict[tuple[int, int], float]()
            for first in range(0, len(order), size):
                tried = sorted(order[first : first + size])  # neighbours share their lower layers
                moved = {(u, to): replaced(now, u, to) for u in tried for to in free[u]}
                yield [*moved.values()]
                rates = {
                    (u, to): (self.gain(raised) - self.gain(now)) / self.price(u, now[u], to)
                    for (u, to), raised in moved.items()
                }
                for u in tried:
                    latest[u] = max(rates[u, to] for to in free[u])
                scored = {move: rates[move] for move in moved if moved[move] in self.gains}
                if scored:
                    break
            if not scored:
                return  # all were stopped by a constraint, or failed
            now = replaced(now, *min(scored, key=lambda move: (-scored[move], move)))

    def _exchanges(self) -> Iterator[Sequence[Allocation]]:
        """Within each budget, moves what units hold from one to another while that is better."""
        count = len(self.units.names)
        judged = dict[Allocation, None]()  # by this plan, whatever else is known already
        for budget in self.budgets:
            alike = [(level,) * count for level in range(self.units.top, -1, -1)]
            batch = [each for each in alike if within(self.costs.of(each), budget)]
            if not batch:  # an engine that keeps more of units that are alike
                batch = self.sums(alike[-1], {}, budget, count)
            yield batch
            judged |= dict.fromkeys(batch)
            now = around = self._best_of(judged, budget)
            for _ in range(ROUNDS):
                yield (changed := self.changed(around))
                gains = {e: self.gains[e] - self.gain(around) for e in changed if e in self.gains}
                limits = [1 << power for power in range(count.bit_length())]
                sums = [each for most in limits for each in self.sums(around, gains, budget, most)]
                yield (sums := [*dict.fromkeys(sums)])
                judged |= dict.fromkeys([*changed, *sums])
                if (best := self._best_of(judged, budget)) != now:
                    now = around = best
                elif around != alike[0]:
                    around = alike[0]  # there a unit shows that is worth nothing without another
                else:
                    break

    def _best_of(self, judged: Iterable[Allocation], budget: float) -> Allocation:
        """The best within a budget, the first of equals."""
        return max((e for e in judged if within(self.costs.of(e), budget)), key=self.gain)

    @property
    def changes(self) -> int:
        """Allocations that a round of `"exchange"` judges for the importance of its changes."""
        count, top = len(self.units.names), self.units.top
        return count + top - 1 if self.totals else count * top

    def changed(self, now: Allocation) -> list[Allocation]:
        """Every unit at each other level, alone; where an engine has one window, at the top or at
        that window, and all windows as each other one."""
        top = self.units.top
        if not self.totals:
            return [
                replaced(now, u, to)
                for u, at in enumerate(now)
                for to in range(top + 1)
                if to != at
            ]
        window = min((*now, top - 1))
        alone = [replaced(now, u, window if at == top else top) for u, at in enumerate(now)]
        others = [level for level in range(top) if level != window]
        return alone + [tuple(top if at == top else level for at in now) for level in others]

    def sums(
        self, now: Allocation, gains: Mapping[Allocation, float], budget: float, most: int
    ) -> list[Allocation]:
        """The allocations within a budget whose changes gain most in sum, with at most that many
        units raised: one, or one for each window that an engine may have."""
        missing = min([0.0, *gains.values()])
        importance = [
            [
                0.0 if to == at else gains.get(replaced(now, u, to), missing)
                for to in range(self.units.top + 1)
            ]
            for u, at in enumerate(now)
        ]
        return self.costs.solve(importance, budget, now, most)

    def above(self, now: Allocation, unit: int) -> list[int]:
        """The levels that a unit may rise to within the largest budget: the next one or, where
        levels do not rise, every dearer one."""
        levels = dearer([level[unit] for level in self.costs.table], now[unit])
        if self.totals:
            least = min(self.totals[0][sum(now) + 1 :], default=math.inf)
            return levels if self.fits(least) else []
        return [
            to for to in levels[: self.moves] if self.fits(self.costs.of(replaced(now, unit, to)))
        ]

    def fits(self, share: float) -> bool:
        """Whether the largest budget, if there is one, pays that share."""
        return not self.budgets or within(share, self.budgets[-1])

    def price(self, unit: int, low: int, high: int) -> float:
        """The cost of one level of a unit beyond another."""
        return self.costs.table[high][unit] - self.costs.table[low][unit]

    def gain(self, allocation: Allocation) -> float:
        """How good an allocation is; that of one without a score is the objective's worst."""
        worst = self.objective.worst if self.objective.goal == "max" else -self.objective.worst
        return self.gains.get(allocation, worst if math.isfinite(worst) else LOWEST)


# -- from plain options ------------------------------------------------------------------------
def build_allocation(search: StrategyRequest) -> AllocateStrategy:
    """The strategy that plain options stand for; see `AllocateStrategy` and `build_units`.

    `cost` names what budgets count (`find_cost`); with `one_window` all units below the top have
    the same level, as in engines.

    Raises:
        SearchError: If the cost does not add up over the units, or gates are not each unit's own.
        ValueError: If gates cannot reach the density that they are asked for.
        FileNotFoundError, MaskFormatError: If `method` names a file that cannot be read.
    """
    options, evaluator = search.options, search.evaluator
    if search.space is not None:
        raise SearchError("strategy 'allocate' takes no space: units make its masks; give None")
    plain = {name: options.get(name) for name in ("method", "tries", "budgets")}
    arguments: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    units = build_units(options, evaluator.shape, evaluator.kv_head_count)
    cost = options.get("cost")
    if options.get("one_window") and units.top > 1:
        arguments["totals"] = totals_by_count(units, evaluator, find_cost(evaluator, cost))
        if not arguments["totals"]:
            raise SearchError(
                "with one window beside full layers their number is chosen, and here it matters "
                "which layers are full: give one local mask, and unit='layer'"
            )
    else:
        try:
            units = with_costs(units, evaluator, cost, required=bool(options.get("budgets")))
        except SearchError:
            if units.top > 1:
                raise
            arguments["totals"] = totals_by_count(units, evaluator, find_cost(evaluator, cost))
            if not arguments["totals"]:
                raise
    method = arguments.get("method")
    gates, config = options.get("gates") or {}, options.get("config") or {}
    if method == "gates":
        if not evaluator.offers("differentiable"):
            raise SearchError(
                "method='gates' needs an evaluator with differentiable(seed); "
                f"{type(evaluator).__name__} has none: take 'restore', 'ablate' or 'greedy'"
            )
        del arguments["method"]
        config = one_shot_config(options, evaluator)
        arguments |= {"training": _gate_training(gates, config, units), "run": search.run}
    elif gates or config:
        raise SearchError("gates and config belong to method='gates', which trains them")
    elif isinstance(method, Path) or (isinstance(method, str) and method.endswith(".safetensors")):
        arguments["method"] = units.read_scores(method)
    return AllocateStrategy(units, evaluator.objectives[0], **arguments)


KIND = StrategySpec(
    build_allocation,
    OPTIONS,
    "none",
    lambda units, options: {**units, **options},
    gated=lambda options: options.get("method") == "gates",
    budgets="budgets",
    file="method",
    prefix=NAME,
)


def _gate_training(gates: Mapping[str, Any], config: Mapping[str, Any], units: Units) -> OneShot:
    """The job that trains gates of each unit's own, switches unless another structure is named.

    Raises:
        SearchError: If gates are not each unit's own.
        ValueError: If they cannot reach the density that they are asked for.
    """
    if "preset" in gates:
        raise SearchError(
            f"method='gates' takes gates of each {units.unit}'s own, and all layers share "
            f"those of preset={gates['preset']!r}; leave the preset out"
        )
    each = {"layers": units.shape.layers, **gates}  # of all layers together they say nothing
    if each.setdefault("structure", "switch") == "switch":
        each |= {"levels": write_levels(units.levels), "unit": units.unit}
        each |= {} if units.kv_heads is None else {"kv_heads": units.kv_heads}
        config = {"density": replace(units, costs=None).quarter, **config}
    training = OneShot(each, waiting(config))
    built, trained = one_shot_parts(training, units.shape, 0)  # before a model is trained
    refuse_unreachable(built, trained)
    layers, heads = units.shape.layers, units.shape.heads
    if trained.layers != layers or (trained.heads != heads and units.unit != "layer"):
        raise SearchError(
            f"method='gates' takes gates of each {units.unit}'s own, {layers} layers of "
            f"{heads} heads, got layers={trained.layers}, heads={trained.heads}; leave both out"
        )
    return training


def _check_scores(scores: Scores, units: Units) -> None:
    """Refuses scores that are not one finite number for each level of each unit."""
    for name in scores:
        check_name("unit", name, units.names)
    for name in units.names:
        values = list(scores.get(name, ()))
        if len(values) != len(units.levels) or not all(map(math.isfinite, values)):
            raise ValueError(
                f"scores are for each unit one finite number a level ({len(units.levels)} of "
                f"them, from local to full), got {values or 'nothing'} for {name}"
            )


def _coarse_to_fine(count: int) -> list[int]:
    """Indices from 0 to `count` - 1: the ends, then each time the middles of what lies between.

    >>> _coarse_to_fine(6)
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


# -- budgets -----------------------------------------------------------------------------------
def totals_by_count(units: Units, evaluator: Evaluator, name: str) -> list[list[float]]:
    """Of each level below the top, masks' costs by the number of layers at the top, from none to
    all, where the others have that level; empty where it matters which they are."""
    count, totals = len(units.names), []

    def total(level: int, raised: Sequence[int]) -> float:
        levels = tuple(units.top if unit in raised else level for unit in range(count))
        return measured_cost(units, evaluator, name, levels)

    for level in range(units.top if units.unit == "layer" else 0):
        first = [total(level, range(number)) for number in range(count + 1)]
        last = [total(level, range(count - number, count)) for number in range(count + 1)]
        if first != last or {total(level, [unit]) for unit in range(count)} != {first[1]}:
            return []
        totals.append(first)
    return totals


@dataclass(frozen=True)
class Costs:
    """Costs of allocations, as a share of the cost of full units, and the best within a budget.

    Args:
        table: Of each level, of each unit, `[levels][units]`; an allocation costs their sum.
        totals: In place of that sum, the `totals` of `AllocateStrategy`: units at the top, and
            all others at one level.

    >>> Costs([[0.1, 0.1], [0.5, 0.5]]).solve([[0.0, 1.0], [0.0, 3.0]], 0.6)
    [(0, 1)]
    >>> by_count = Costs([[0.1] * 3, [0.3] * 3], [[0.2, 0.6, 0.5, 1.0]])
    >>> by_count.solve([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], 0.55)
    [(0, 1, 1)]
    """

    table: Table
    totals: Table = ()

    @property
    def top(self) -> int:
        """The highest level."""
        return len(self.table) - 1

    def of(self, allocation: Allocation) -> float:
        """The cost of an allocation; infinite where an engine has no such one."""
        if not self.totals:
            return sum(self.table[level][unit] for unit, level in enumerate(allocation))
        windows = {*allocation} - {self.top}
        if len(windows) > 1:
            return math.inf
        return self.totals[min(windows, default=0)][allocation.count(self.top)]

    def refuse_less(self, budget: float) -> None:
        """Raises ValueError if no allocation is within a budget."""
        columns = zip(*self.table, strict=True)
        least = min(map(min, self.totals)) if self.totals else sum(map(min, columns))
        if not within(least, budget):
            raise ValueError(
                f"a budget is at least what the cheapest masks of all units cost, {least:.4g}; "
                f"got {budget:.4g}: raise it, or give a smaller local mask"
            )

    def solve(
        self, importance: Table, budget: float, now: Allocation = (), most: int | None = None
    ) -> list[Allocation]:
        """The allocation that is worth most within a budget, exactly; where an engine has one
        window, that for each window that it may be.

        Args:
            importance: Of each unit, of each level.
            budget: At most so much in all.
            now: The levels that `most` counts from.
            most: Units that rise, at most; None = any number.

        Raises:
            ValueError: If no allocation is within the budget.
        """
        self.refuse_less(budget)
        if not self.totals:
            return [self.best_sum(importance, budget, now, most)]
        window, top, found = min((*now, self.top - 1)), self.top, []
        gains = [levels[top] - levels[window] for levels in importance]
        order = sorted(range(len(gains)), key=lambda unit: -gains[unit])
        beyond = [] if most is None else [unit for unit in order if now[unit] < top][most:]
        for level, totals in enumerate(self.totals):
            numbers = [at for at, total in enumerate(totals) if within(total, budget)]
            fewer = [number for number in numbers if number <= len(order) - len(beyond)]
            # where fewer full units cost more, the limit cannot be kept
            units = [unit for unit in order if unit not in beyond] if fewer else order
            sums = {at: sum(gains[unit] for unit in units[:at]) for at in fewer or numbers}
            if sums:
                raised = units[: max(sums, key=sums.__getitem__)]
                found.append(tuple(top if u in raised else level for u in range(len(gains))))
        return found

    def best_sum(
        self, importance: Table, budget: float, now: Allocation, most: int | None
    ) -> Allocation:
        """`solve` where costs add up: a knapsack with multiple choice.

        Reference: HiGHS, by `scipy.optimize.milp`.
        """
        value, cost = np.array(importance, float), np.array(self.table, float).T  # [units, levels]
        extra = cost - cost.min(1, keepdims=True)
        room = max(0.0, budget * (1 + ROUNDING) - float(cost.min(1).sum()))
        scale = extra.min(initial=np.inf, where=extra > 0)  # keeps the solver's tolerance small
        count, levels = value.shape
        gain = (value - value.min(1, keepdims=True)).reshape(-1)
        gain = gain / (gain.max() or 1.0)
        one_each = np.kron(np.eye(count), np.ones(levels))
        limits = [
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((extra / scale).reshape(1, -1), -np.inf, room / scale),
        ]
        if most is not None:
            dearer_than_now = cost > cost[range(count), [*now]][:, None]
            limits.append(LinearConstraint(dearer_than_now.reshape(1, -1).astype(float), 0, most))
        solution = milp(
            -gain,
            integrality=np.ones(count * levels),
            bounds=Bounds(0, 1),
            constraints=limits,
            options={"mip_rel_gap": 0.0, "presolve": most is None},
        )
        if solution.x is None:
            raise ValueError(f"the budget {budget:.4g} could not be solved: {solution.message}")
        return tuple(int(each) for each in solution.x.reshape(count, levels).argmax(1))


def within(cost: float, budget: float) -> bool:
    """Whether a budget pays a cost, but for rounding."""
    return cost <= budget * (1 + ROUNDING)
