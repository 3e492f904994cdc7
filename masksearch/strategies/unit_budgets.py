"""What units cost, and the best allocation within a budget where costs and scores add up.

solve(worth=[[0.0, 1.0], [0.0, 3.0]], costs=[[0.1, 0.1], [0.5, 0.5]], budget=0.6)    # (0, 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from masksearch.contracts import Evaluator
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.units import Allocation, Units
from masksearch.masks.core import Mask

DENSITY = "density"
SLACK = 1e-9  # share of a budget that rounding may add


def find_cost(units: Units, evaluator: Evaluator, name: str | None = None) -> str:
    """The name of what units cost: `"density"`, or a measure of the evaluator.

    Args:
        units: The units.
        evaluator: It may know measures of masks, such as `"kv_bytes"`.
        name: What was asked for; None = the evaluator's second objective, where it is such a
            measure and adds up over these units, else density.

    Raises:
        UnknownNameError: If the evaluator knows no such measure.
    """
    known = evaluator.measure_names
    if name not in (None, DENSITY, *known):
        raise unknown_name("cost of units", str(name), (DENSITY, *known))
    if name is not None:
        return name
    second = [objective.name for objective in evaluator.objectives[1:2]]
    return second[0] if second and second[0] in known else DENSITY


def unit_costs(units: Units, evaluator: Evaluator, name: str) -> list[list[float]]:
    """What each level of each unit costs, `[levels][units]`; the sum over units is the mask's.

    Args:
        units: The units.
        evaluator: See `find_cost`.
        name: `"density"`: the effective density of the mask. Or a measure: what it is for a mask
            in which one unit alone is raised says what that unit costs.

    Raises:
        SearchError: If the measure does not add up over these units.
    """
    count = len(units.names)
    if name == DENSITY:
        whole = units.costs_of_all
        spared = 0.0 if units.spared is None else float(whole[units.spared, count:].sum())
        per_unit = (units.costs + spared / count) / whole.shape[1]
        table: list[list[float]] = per_unit.tolist()
        return table

    def measured(mask: Mask) -> float:
        found = evaluator.measures_of(mask)
        if name not in found:
            raise SearchError(f"{type(evaluator).__name__} knows no {name} of {mask!s:.80}")
        return float(found[name])

    base = measured(units.mask((0,) * count))
    rises = [[0.0] * count]
    for level in range(1, units.top + 1):
        alone = [tuple(level * (at == unit) for at in range(count)) for unit in range(count)]
        rises.append([measured(units.mask(each)) - base for each in alone])
    whole_rise = measured(units.mask((units.top,) * count)) - base
    if not math.isclose(sum(rises[-1]), whole_rise, rel_tol=1e-6):
        raise SearchError(
            f"{name} does not add up over units of the kind {units.unit!r}: raised one by one "
            f"they cost {sum(rises[-1]):.4g}, all together {whole_rise:.4g}, as some share what "
            "they hold; take unit='layer', or unit='kv_head' with cost='kv_bytes_per_head'"
        )
    return [[base / count + rise for rise in level] for level in rises]


def solve(
    worth: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> Allocation:
    """The allocation that is worth most within a budget: a knapsack with multiple choice, exact.

    Args:
        worth: Of each unit, of each level.
        costs: Of each level, of each unit.
        budget: At most so much in all.

    Returns:
        The level of each unit.

    Raises:
        ValueError: If no allocation is within the budget.

    Reference: HiGHS, by `scipy.optimize.milp`.

    >>> solve([[0.0, 1.0], [0.0, 3.0]], [[0.1, 0.1], [0.5, 0.5]], 0.6)
    (0, 1)
    """
    value, cost = np.array(worth, dtype=float), np.array(costs, dtype=float).T  # [units, levels]
    least = float(cost.min(1).sum())
    if least > budget * (1 + SLACK):
        raise ValueError(
            f"a budget is at least what the cheapest masks of all units cost, {least:.4g}; got "
            f"{budget:.4g}: raise it, or give a smaller local mask"
        )
    extra = cost - cost.min(1, keepdims=True)
    room = max(0.0, budget * (1 + SLACK) - least)
    scale = float(
        extra[extra > 0].min(initial=math.inf)
    )  # so that the solver's tolerance is small
    if not math.isfinite(scale):
        scale = 1.0
    count, levels = value.shape
    gain = (value - value.min(1, keepdims=True)).reshape(-1)
    gain = gain / (gain.max() or 1.0)
    one_each = np.kron(np.eye(count), np.ones(levels))
    found = milp(
        -gain,
        integrality=np.ones(count * levels),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((extra / scale).reshape(1, -1), -np.inf, room / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"the budget {budget:.4g} could not be solved: {found.message}")
    return tuple(int(each) for each in found.x.reshape(count, levels).argmax(1))
