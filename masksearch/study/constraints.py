"""Limits on what a search may return, such as `sparsity >= 0.9`."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from masksearch.contracts import Record
from masksearch.errors import unknown_name
from masksearch.masks.measure import MEASURES

PATTERN = re.compile(r"\s*([\w/]+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")

SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Constraint:
    """One limit on a measure of the mask or on a reported value.

    Args:
        name: `effective_sparsity`, `sparsity` (of the table), `block_density`, `hops`, ... are
            known before any training, and a mask that violates a limit on them is stopped
            without training; a limit on a reported value (a measured latency, say) is checked
            when the trial has ended.
        sign: How the value must compare.
        limit: With what.
        measured: Whether the evaluator knows it before training (`Evaluator.measures_of`).
    """

    name: str
    sign: Literal["<=", ">=", "<", ">"]
    limit: float
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.limit:g}"

    @property
    def early(self) -> bool:
        """Whether it is known before training."""
        return self.measured or self.name in MEASURES

    def holds(self, value: float) -> bool:
        """Whether a value keeps the limit.

        >>> Constraint("sparsity", ">=", 0.9).holds(0.95)
        True
        """
        return bool(SIGNS[self.sign](value, self.limit))

    def excess(self, value: float) -> float:
        """By how much a value violates the limit; Optuna's sign: feasible at 0 and below."""
        return value - self.limit if self.sign in ("<=", "<") else self.limit - value

    def violated_by(self, record: Record) -> str:
        """The reason why a record violates it; empty where it does not."""
        value = record.value(self.name)
        return "" if self.holds(value) else f"violates {self}: {self.name} = {value:.6g}"


def parse_constraint(
    text: str, reported: Iterable[str] = (), measured: Collection[str] = ()
) -> Constraint:
    """`"sparsity >= 0.9"` as a constraint.

    Args:
        text: `NAME <= NUMBER`, or with `>=`, `<`, `>`.
        reported: Names of reported values that may be limited beside the measures.
        measured: Names of what the evaluator knows of a mask before training.

    Raises:
        ValueError: If the text does not read like that.
        UnknownNameError: If NAME is neither a measure nor reported.
    """
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"a constraint reads like 'sparsity >= 0.9', got {text!r}")
    name, sign = match[1], match[2]
    known = list(dict.fromkeys((*MEASURES, *measured, *reported)))
    if name not in known:
        raise unknown_name("measure", name, known)
    try:
        limit = float(match[3])
    except ValueError:
        raise ValueError(
            f"a constraint ends with a number, got {match[3]!r} in {text!r}"
        ) from None
    return Constraint(name, sign, limit, name in measured)  # type: ignore[arg-type]
