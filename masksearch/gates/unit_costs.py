"""Costs of units by level: non-padding query-key pairs, or a measure of an evaluator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from masksearch.contracts import Evaluator, Shape
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.units import Unit, Units, read_levels, replaced
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.masks.text import short_text

DENSITY = "density"
WORK = "work"  # the measure of that name, as `masks.work`
WHOLE_TOKENS = "take strategy 'prune', or a sampler on masksearch.spaces:token_schedules"


def build_units(options: Mapping[str, Any], shape: Shape, kv_heads: int | None = None) -> Units:
    """The units that plain options stand for: `unit` and `levels`.

    Args:
        options: `levels` are masks, the cheapest first, or texts as for `masks.parse`; the only
            one is the local mask beside full attention.
        shape: Of the model.
        kv_heads: KV heads of a layer of a decoder; None = not known.

    Raises:
        SearchError: If there is no mask.
    """
    levels = options.get("levels") or ()
    levels = read_levels([levels] if isinstance(levels, str | Mask) else levels)
    if not levels:
        raise SearchError(
            "units need a local mask beside the full one: give levels='star()', or from local to "
            "full levels=['window(8)', 'window(8) | global_tokens(1)', 'full()']"
        )
    if len(levels) == 1:
        levels = (*levels, Full())
    unit: Unit = options.get("unit") or "head"
    return Units(shape, levels, unit, kv_heads if unit == "kv_head" else None)


def find_cost(evaluator: Evaluator, name: str | None = None) -> str:
    """The name of what masks cost: `"density"`, or a measure of the evaluator.

    Args:
        evaluator: It may know measures of masks, such as `"kv_bytes"`.
        name: What was asked for; None = the evaluator's second objective, where it is such a
            measure, else density.

    Raises:
        UnknownNameError: If the evaluator knows no such measure.
    """
    measures = evaluator.measure_names
    if name not in (None, DENSITY, *measures):
        raise unknown_name("cost of units", str(name), (DENSITY, *measures))
    if name is not None:
        return name
    second = [objective.name for objective in evaluator.objectives[1:2]]
    return second[0] if second and second[0] in measures else DENSITY


def with_costs(
    units: Units, evaluator: Evaluator, name: str | None, *, required: bool = False
) -> Units:
    """The units with what they cost by a measure; as they are where that is their pairs, or a
    measure that nobody asked for does not add up.

    Args:
        units: The units.
        evaluator: See `find_cost`.
        name: As of `find_cost`.
        required: Whether budgets ask for it.

    Raises:
        SearchError: If it does not add up over these units.
    """
    measure = find_cost(evaluator, name)
    if measure == DENSITY:
        return units
    try:
        return replace(units, costs=unit_costs(units, evaluator, measure))
    except SearchError:
        if name is None and not required:
            return units
        raise


def measured_cost(units: Units, evaluator: Evaluator, name: str, levels: Sequence[int]) -> float:
    """The cost of the mask in which each unit has its level, by a measure; else its density.

    Raises:
        SearchError: If the evaluator does not know it of this mask.
    """
    if name == DENSITY:
        return units.density(levels)
    mask = units.mask(levels)
    measures = evaluator.measures_of(mask)
    if name not in measures:
        raise SearchError(f"{type(evaluator).__name__} knows no {name} of {short_text(mask)}")
    return float(measures[name])


def unit_costs(units: Units, evaluator: Evaluator, name: str) -> list[list[float]]:
    """The cost of each level of each unit, `[levels][units]`; the sum over units is the mask's.

    Args:
        units: The units.
        evaluator: See `find_cost`.
        name: A measure of the evaluator: what it is for a mask in which one unit alone is raised
            says what that unit costs.

    Raises:
        SearchError: If the measure does not add up over these units.
    """
    if name == WORK:
        raise SearchError(f"units choose pairs, and work is of tokens: {WHOLE_TOKENS}")
    count = len(units.names)
    low = (0,) * count
    base = measured_cost(units, evaluator, name, low)
    rises = [[0.0] * count]
    for level in range(1, units.top + 1):
        alone = [replaced(low, unit, level) for unit in range(count)]
        rises.append([measured_cost(units, evaluator, name, each) - base for each in alone])
    remedy = "unit='layer', or unit='kv_head' with cost='kv_bytes_per_head'"
    if units.unit == "layer":
        remedy = "two masks a layer and strategy='allocate', which counts them by their number"
    for number in range(1, count + 1) if units.unit == "layer" else [count]:
        single = sum(rises[-1][:number])
        levels = (units.top,) * number + low[number:]
        together = measured_cost(units, evaluator, name, levels) - base
        if not math.isclose(single, together, rel_tol=1e-6):
            raise SearchError(
                f"{name} does not add up over units of the kind {units.unit!r}: {number} of them "
                f"raised one by one cost {single:.4g}, together {together:.4g}, as some share "
                f"what they hold; take {remedy}"
            )
    return [[base / count + rise for rise in level] for level in rises]
