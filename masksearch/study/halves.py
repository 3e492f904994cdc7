"""Which rows judge: a search's own, or those that no search has seen."""

from __future__ import annotations

from typing import get_args

from masksearch.contracts import Evaluator, Half
from masksearch.errors import unknown_name


def judge_on(evaluator: Evaluator, half: Half | None) -> Evaluator:
    """The evaluator on the rows by which a comparison judges.

    Args:
        evaluator: Any one; where it has no halves, it stays as it is.
        half: None = `"final"` for an evaluator on its search half, else the one that it has.

    Raises:
        EvaluatorError: If a half is asked of an evaluator that has none.
        UnknownNameError: If there is no such half.
    """
    if half is not None and half not in get_args(Half):
        raise unknown_name("half", half, get_args(Half))
    chosen = half or ("final" if evaluator.half == "search" else evaluator.half)
    return evaluator if chosen == evaluator.half or chosen is None else evaluator.on(chosen)


def protocols_of_rows(evaluator: Evaluator) -> set[str]:
    """Protocol ids whose scores come from rows of this evaluator: its own, and those of halves
    that hold some of them."""
    protocols = {evaluator.protocol}
    if evaluator.half is not None:
        search, whole = evaluator.on("search").protocol, evaluator.on("all").protocol
        if evaluator.half in ("search", "all"):
            protocols |= {search, whole}
        elif evaluator.half == "final" and whole != search:
            protocols.add(whole)
    return protocols


def protocols_of_halves(evaluator: Evaluator) -> set[str]:
    """Protocol ids whose scores differ from this evaluator's in their rows at most."""
    protocols = {evaluator.protocol}
    if evaluator.half is not None:
        protocols |= {evaluator.on(half).protocol for half in ("search", "all")}
    return protocols
