"""Random and near values of an Optuna parameter, drawn from a torch generator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

FAR = 0.2  # share of mutations of an integer that go anywhere
WIDTH = 0.1  # standard deviation of a float's mutation, as a share of its range
REACH = 0.3  # the most that a float's mutation moves it, as a share of its range
NEAR = 0.05  # mean distance of a near integer beyond the next one, as a share of its range


def random_value(kind: BaseDistribution, draws: torch.Generator) -> Any:
    """A uniform value of a parameter (uniform in its logarithm where it is logarithmic)."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[below(len(kind.choices), draws)]
    assert isinstance(kind, IntDistribution | FloatDistribution)
    if gridded(kind):
        return at_index(kind, below(steps_of(kind), draws))
    return at_share(kind, uniform(draws))


def near_value(kind: BaseDistribution, value: Any, draws: torch.Generator) -> Any:
    """Another value of a parameter: near for numbers, any other for categories.

    Integers move to a near neighbour, or with probability `FAR` anywhere; floats by a normal
    step of at most `REACH` of their range. A parameter with one value keeps it.
    """
    if kind.single():
        return value
    if isinstance(kind, CategoricalDistribution):
        others = [choice for choice in kind.choices if choice != value]
        return others[below(len(others), draws)]
    if isinstance(kind, FloatDistribution) and kind.step is None:
        move = max(-REACH, min(REACH, WIDTH * normal(draws)))
        share = share_of(kind, value) + move
        share = -share if share < 0 else 2 - share if share > 1 else share
        return at_share(kind, share)
    assert isinstance(kind, IntDistribution | FloatDistribution)
    count, index = steps_of(kind), index_of(kind, value)
    if uniform(draws) < FAR:
        other = below(count - 1, draws)
        return at_index(kind, other + (other >= index))
    scale = NEAR * (count if not getattr(kind, "log", False) else index + 1)
    distance = 1 + int(-scale * math.log(1 - uniform(draws)))
    sign = 1 if uniform(draws) < 0.5 else -1
    for move in (sign * distance, -sign * distance, sign, -sign):
        if 0 <= index + move < count:
            return at_index(kind, index + move)
    raise AssertionError("an integer with several values has a neighbour")


def fitted_value(kind: BaseDistribution, value: Any) -> Any:
    """The nearest value that a parameter can have; None where there is none.

    Ranges may depend on parameters that were drawn before.
    """
    if isinstance(kind, CategoricalDistribution):
        return value if value in kind.choices else None
    assert isinstance(kind, IntDistribution | FloatDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    clipped = min(max(value, kind.low), kind.high)
    if isinstance(kind, FloatDistribution) and kind.step is None:
        return float(clipped)
    return at_index(kind, min(index_of(kind, clipped), steps_of(kind) - 1))


class Replay(BaseSampler):
    """Answers with a parent's values, one of them changed; random where the parent has none.

    Args:
        values: The parent's parameters.
        mutated: Name of the parameter to change; empty = none.
        draws: Where randomness comes from.
    """

    def __init__(self, values: Mapping[str, Any], mutated: str, draws: torch.Generator) -> None:
        self.values, self.mutated, self.draws = dict(values), mutated, draws

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is drawn jointly."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is drawn jointly."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The parent's value, changed, fitted to the range, or a random one."""
        if param_name not in self.values:
            return random_value(param_distribution, self.draws)
        fitted = fitted_value(param_distribution, self.values[param_name])
        if fitted is None:
            return random_value(param_distribution, self.draws)
        if param_name == self.mutated:
            return near_value(param_distribution, fitted, self.draws)
        return fitted


def gridded(kind: IntDistribution | FloatDistribution) -> bool:
    """Whether the values are evenly spaced and equally likely."""
    return not kind.log if isinstance(kind, IntDistribution) else kind.step is not None


def steps_of(kind: IntDistribution | FloatDistribution) -> int:
    """How many values an integer, or a float with a step, can have."""
    return round((kind.high - kind.low) / (kind.step or 1)) + 1


def index_of(kind: IntDistribution | FloatDistribution, value: float) -> int:
    """Which of them a value is."""
    return round((value - kind.low) / (kind.step or 1))


def at_index(kind: IntDistribution | FloatDistribution, index: int) -> Any:
    """The value of that index."""
    value = kind.low + index * (kind.step or 1)
    return int(value) if isinstance(kind, IntDistribution) else min(float(value), kind.high)


def share_of(kind: FloatDistribution, value: float) -> float:
    """Where a value lies in its range, in [0, 1]."""
    if kind.log:
        return math.log(value / kind.low) / math.log(kind.high / kind.low)
    return (value - kind.low) / (kind.high - kind.low)


def at_share(kind: IntDistribution | FloatDistribution, share: float) -> Any:
    """The value at a place in [0, 1] of a range without a grid."""
    if isinstance(kind, IntDistribution):  # logarithmic: every integer owns its rounding interval
        low, high = math.log(kind.low - 0.5), math.log(kind.high + 0.5)
        whole = round(math.exp(low + share * (high - low)))
        return min(max(whole, kind.low), kind.high)
    if kind.log:
        value = kind.low * (kind.high / kind.low) ** share
    else:
        value = kind.low + share * (kind.high - kind.low)
    return min(max(value, kind.low), kind.high)


def uniform(draws: torch.Generator) -> float:
    """In [0, 1)."""
    return float(torch.rand((), generator=draws, dtype=torch.float64))


def normal(draws: torch.Generator) -> float:
    """Standard normal."""
    return float(torch.randn((), generator=draws, dtype=torch.float64))


def below(count: int, draws: torch.Generator) -> int:
    """In 0 .. count - 1."""
    return int(torch.randint(count, (), generator=draws))
