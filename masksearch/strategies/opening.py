"""The opening of a search: parameters that a user gave, baselines, and lists of masks."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial

from masksearch.analysis.runs import SOURCES, MaskGroup, group_of_mask
from masksearch.contracts import Evaluate, Evaluator, Proposal, Record, Role, Shape, Strategy
from masksearch.errors import MaskSearchError, SearchError
from masksearch.gates.unit_costs import DENSITY, WORK, find_cost
from masksearch.masks.baselines import equal_cost_baselines
from masksearch.masks.core import Mask
from masksearch.masks.live import work
from masksearch.masks.measure import fingerprint
from masksearch.strategies.samplers import (
    CheckedTrial,
    Space,
    describe_kind,
    drawn_kinds,
    no_mask,
    storable_value,
)
from masksearch.study.records import read_budgets
from masksearch.user_code import BUDGET, call_user, describe_error

ORIGIN = "enqueued"


class WarmStart:
    """Proposes given draws first, then what another strategy proposes.

    Strategies that say so (`learns_from_starts`) learn from them, as from draws of their own.
    Others are not told of them, and number their draws as if there were none.

    Args:
        strategy: Comes after them.
        proposals: Numbered from 0, as `draw_enqueued` gives them.
        starts: Draws that come before them and that somebody else asks for, numbered likewise
            (`_draw_starts`); the others' numbers follow theirs.
    """

    def __init__(
        self,
        strategy: Strategy,
        proposals: Sequence[Proposal],
        starts: Sequence[Proposal] = (),
    ) -> None:
        first = 1 + max((each.number for each in starts), default=-1)
        self.strategy = strategy
        self.proposals = [replace(each, number=each.number + first) for each in proposals]
        self.next, self.first = first, first
        self.learns = learns(strategy)
        self.shift = 0 if self.learns else len(self.proposals)
        if self.learns:  # their draws are out
            for each in [*starts, *self.proposals]:
                strategy.tell(
                    Record(
                        each.number,
                        "running",
                        each.job,
                        params=each.params,
                        strategy_state=each.strategy_state,
                    )
                )

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next given draw or, after them, one of the strategy's."""
        if self.next < self.first + len(self.proposals):
            self.next += 1
            return self.proposals[self.next - 1 - self.first]
        answer = self.strategy.ask()
        if isinstance(answer, str):
            return answer
        return replace(answer, number=answer.number + self.shift)

    def tell(self, record: Record) -> None:
        """Passes on what the strategy learns from."""
        if record.number < self.first + len(self.proposals):
            self.next = max(self.next, record.number + 1)
            if not self.learns:
                return
        self.strategy.tell(replace(record, number=record.number - self.shift))


@dataclass(frozen=True)
class Opening:
    """All that a search judges before, and beside, the draws of its strategy.

    Args:
        given: Draws of the parameters that a user gave, numbered from 0.
        baselines: Name -> mask, judged beside the trials.
        starts: Those baselines that are draws of the space, too, numbered from 0.
        group: Of all baselines; None = as each is known.
        noted: The names of the starts with which the search began, as the study has them.
    """

    given: Sequence[Proposal] = ()
    baselines: Mapping[str, Mask] = field(default_factory=dict)
    starts: Sequence[Proposal] = ()
    group: MaskGroup | None = None
    noted: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """The facts that must not change between two searches on one run folder."""
        params = [each.params for each in self.given]
        given = json.dumps(params, default=repr) if params else ""
        return {"enqueue": given, "starts": self.noted}

    def before(self, strategy: Strategy) -> Strategy:
        """The strategy, behind the draws of the opening."""
        some = self.given or self.starts
        return WarmStart(strategy, self.given, self.starts) if some else strategy

    def queue(self, seed: int) -> list[Proposal]:
        """The baselines, evaluated with that seed."""
        drawn = {each.name: each for each in self.starts}
        listed = FixedQueue(self.baselines, [seed], "baselines", "baseline").proposals
        return [
            replace(
                drawn.get(each.name, replace(each, number=-1)),
                seed=seed,
                source=SOURCES[self.group or group_of_mask(self.baselines[each.name])],
            )
            for each in listed
        ]


def plan_opening(
    given: Sequence[Proposal],
    baselines: Mapping[str, Mask] | None,
    strategy: Strategy,
    space: Space | None,
    evaluator: Evaluator,
    budgets: Sequence[float],
    begun: Mapping[str, str] | None,
) -> Opening:
    """The opening of a search; one that goes on has the starts that it began with.

    Args:
        given: As `draw_enqueued` gives them.
        baselines: A user's; None = with budgets the hand-designed masks within them, unless the
            search began without.
        strategy: Comes after them.
        space: Of the search.
        evaluator: Judges the masks.
        budgets: Of the search.
        begun: The facts of the study that goes on; None = it is new.
    """
    if baselines is not None or not budgets or (begun is not None and not begun.get("starts")):
        return Opening(given, baselines or {})
    drawn_by_hand = hand_designed(evaluator, budgets)
    offered = _draw_starts(space, evaluator, budgets, drawn_by_hand) if learns(strategy) else {}
    noted = begun["starts"] if begun else json.dumps([*offered])
    starts = [
        replace(offered[name], number=number)
        for number, name in enumerate(json.loads(noted))
        if name in offered
    ]
    return Opening(given, drawn_by_hand, starts, "hand-designed", noted)


def learns(strategy: Strategy) -> bool:
    """Whether a strategy learns from draws of its space that are not its own."""
    return getattr(strategy, "learns_from_starts", False)


def hand_designed(evaluator: Evaluator, budgets: Iterable[float]) -> dict[str, Mask]:
    """The hand-designed masks within budgets, counted as the budgets are
    (`find_cost`): `"NAME within 0.3"`, each mask under the smallest one that pays for it."""
    cost, drawn = find_cost(evaluator), dict[str, Mask]()
    prices = {DENSITY: None, WORK: work}
    price = prices.get(cost, lambda mask: evaluator.measures_of(mask)[cost])
    for limit in sorted(budgets):
        for name, mask in equal_cost_baselines(limit, evaluator.shape, price).items():
            if mask not in drawn.values():
                drawn[f"{name} within {limit:g}"] = mask
    return drawn


def _draw_starts(
    space: Space | None,
    evaluator: Evaluator,
    budgets: Sequence[float],
    baselines: Mapping[str, Mask],
) -> dict[str, Proposal]:
    """Those baselines that a space says it holds, by name, as draws of it.

    Args:
        space: It may have a function `starts(shape, budget)`, which returns the parameters of
            masks that cost so much in pairs of tokens.
        evaluator: Where its budgets count something else, no mask is drawn.
        budgets: Of the search.
        baselines: Its baselines; a start that equals none is left out.

    Raises:
        SearchError: As `draw_enqueued`.
        UserCodeError: If `starts` raises an error; gives the file and the line.
    """
    offered, shape = getattr(space, "starts", None), evaluator.shape
    if offered is None or find_cost(evaluator) != DENSITY:
        return {}
    names = {fingerprint(mask, shape): name for name, mask in baselines.items()}
    starts = dict[str, Proposal]()
    for budget in budgets:
        given = call_user("starts of the space", offered, {"shape": shape, "budget": budget})
        for each in draw_enqueued(space, given, shape, [budget], "starts"):
            assert isinstance(each.job, Evaluate)
            if (name := names.get(fingerprint(each.job.mask, shape))) is not None:
                job, origin = Evaluate(baselines[name]), "baselines"
                start = replace(each, job=job, name=name, origin=origin, role="baseline")
                starts.setdefault(name, start)
    return starts


def draw_enqueued(
    space: Space | None,
    enqueue: Sequence[Mapping[str, Any]],
    shape: Shape,
    budgets: Sequence[float] = (),
    given_as: str = "enqueue",
) -> list[Proposal]:
    """Proposals of the masks that a space makes of given parameters.

    Args:
        space: Draws a mask from an Optuna trial.
        enqueue: Of each mask, every parameter that the space asks for.
        shape: What the masks must fit.
        budgets: What they may cost, in turn, unless the parameters have a `budget`.
        given_as: What errors call them.

    Returns:
        Numbered from 0.

    Raises:
        SearchError: If there is no space, or parameters are missing, left over or cannot be
            drawn, or the space makes no mask of them that fits; names parameter and value.
    """
    if enqueue and space is None:
        raise SearchError("enqueue= gives parameters of a space, and this search has none")
    proposals = []
    for number, params in enumerate(enqueue):
        assert space is not None
        what = f"{given_as}[{number}]"
        if not isinstance(params, Mapping):
            raise SearchError(f"{what} maps parameters to values, got {params!r}")
        params = {name: storable_value(name, value) for name, value in params.items()}
        check = functools.partial(_check_given, what, params)
        trial, drawn = FixedTrial(params), dict[str, Any]()
        if budgets:
            [drawn[BUDGET]] = read_budgets(params.get(BUDGET, budgets[number % len(budgets)]))
        try:
            mask = space(CheckedTrial(trial, check, drawn.get(BUDGET), shape))  # type: ignore[arg-type]
        except SearchError:
            raise
        except Exception as error:  # the user's code
            problem = f"the space raised {describe_error(error)}"
            raise SearchError(f"{what} = {params}: {problem}") from error
        for name, value in params.items():
            if name not in trial.params and name not in drawn:
                asked = ", ".join(trial.params) or "nothing"
                raise SearchError(
                    f"{what}: the space does not ask for {name!r} (= {value!r}) with these "
                    f"values; it asks for {asked}"
                )
        for name, kind in trial.distributions.items():
            drawn[name] = kind.to_external_repr(kind.to_internal_repr(params[name]))
        if not isinstance(mask, Mask):
            raise SearchError(f"{what} = {params}: {no_mask(mask)}")
        try:
            fingerprint(mask, shape)
        except MaskSearchError as error:
            raise SearchError(f"{what} = {params}: {error}") from error
        strategy_state = drawn_kinds(trial)
        proposals.append(
            Proposal(number, Evaluate(mask), drawn, ORIGIN, strategy_state=strategy_state)
        )
    return proposals


def _check_given(what: str, params: Mapping[str, Any], name: str, kind: BaseDistribution) -> None:
    """Refuses what a space cannot draw.

    Args:
        what: Names the parameters in errors.
        params: Parameter -> value.
        name: Of the parameter that the space asks for.
        kind: Its kind and range.

    Raises:
        SearchError: If it is not given or cannot be drawn; says what can be.
    """
    expected = f"the space asks for {describe_kind(kind)}"
    if name not in params:
        raise SearchError(f"{what} lacks {name!r}; {expected}")
    if not _can_be_drawn(kind, params[name]):
        raise SearchError(f"{what}: {name} = {params[name]!r} cannot be drawn; {expected}")


def _can_be_drawn(kind: BaseDistribution, value: Any) -> bool:
    """Whether a parameter can have a value."""
    if isinstance(kind, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in kind.choices)
    assert isinstance(kind, IntDistribution | FloatDistribution)
    number = int if isinstance(kind, IntDistribution) else int | float
    if isinstance(value, bool) or not isinstance(value, number):
        return False
    if not kind.low <= value <= kind.high:
        return False
    steps = (value - kind.low) / (kind.step or 1)
    return kind.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)


class FixedQueue:
    """Proposes every mask on every seed, seed by seed.

    Args:
        masks: Name -> mask.
        seeds: Evaluation seeds.
        origin: Origin of the proposals.
        role: Their role.
    """

    def __init__(
        self,
        masks: Mapping[str, Mask],
        seeds: Iterable[int],
        origin: str = "listed",
        role: Role = "trial",
    ) -> None:
        self.proposals = [
            Proposal(number, Evaluate(mask), {}, origin, seed, name=name, role=role)
            for number, (seed, (name, mask)) in enumerate(
                (seed, item) for seed in seeds for item in masks.items()
            )
        ]
        self.next = 0

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next of the list."""
        if self.next >= len(self.proposals):
            return "done"
        self.next += 1
        return self.proposals[self.next - 1]

    def tell(self, record: Record) -> None:
        """Learns that a draw is out or finished; results change nothing."""
        self.next = max(self.next, record.number + 1)
