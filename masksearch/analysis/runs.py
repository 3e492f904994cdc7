"""The runs of the masks of a comparison, and what they are: searched, hand-designed, controls."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, cast

from masksearch.analysis.candidates import Discovery
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.analysis.stats import Interval, PairedDifference, estimate
from masksearch.contracts import Objective, Record
from masksearch.errors import unknown_name
from masksearch.masks import FAMILIES, full
from masksearch.masks.core import Mask

Kind = Literal["searched", "hand-designed", "candidate", "control"]
Outcome = Literal["better", "worse", "not distinguishable", "too few seeds"]
KINDS: tuple[Kind, ...] = ("searched", "hand-designed", "candidate", "control")
MATCHED = 0.01  # sparsities within one point count as equal
CLOSE = 1e-3  # rows whose mean is farther from the score, relative to it, are of another run


# -- kinds -------------------------------------------------------------------------------------
def kind_of_mask(mask: Mask | None) -> Kind:
    """What a mask is where nobody has said it, by its value and never by its name.

    Returns:
        `"hand-designed"` for one of `masks.FAMILIES`, `"control"` for full attention, else
        `"candidate"`: a mask of which it is not known where it comes from.
    """
    if mask in FAMILIES.values():
        return "hand-designed"
    return "control" if mask == full() else "candidate"


def draws_keys(mask: Mask) -> bool:
    """Whether a mask, or a part of it, keeps keys that are drawn at random."""
    return mask.kind == "random_keys" or any(map(draws_keys, mask.parts))


def check_kinds(kinds: Mapping[str, str], names: Collection[str]) -> dict[str, Kind]:
    """The kinds that a caller gives, if they are kinds and the masks are there.

    Raises:
        UnknownNameError: If a name is not among `names`, or a kind is none.
    """
    for name, kind in kinds.items():
        if name not in names:
            raise unknown_name("mask of the comparison in kinds=", name, names)
        if kind not in KINDS:
            raise unknown_name(f"kind of mask {name!r}:", kind, KINDS)
    return cast("dict[str, Kind]", dict(kinds))


def read_kinds(facts: Mapping[str, str], names: Iterable[str]) -> dict[str, Kind]:
    """Kinds of the masks of a stored comparison.

    Args:
        facts: Of the study; `kinds` holds them as JSON.
        names: Of its masks. Comparisons that were made before kinds were stored went by their
            names: dense, oracle and random ones were controls, all unknown ones searched.
    """
    if "kinds" in facts:
        return dict(json.loads(facts["kinds"]))
    kinds: dict[str, Kind] = {}
    for name in names:
        control = name in ("dense", "oracle") or name.startswith("random")
        hand: Kind = "hand-designed" if name in FAMILIES else "searched"
        kinds[name] = "control" if control else hand
    return kinds


# -- runs of masks -----------------------------------------------------------------------------
@dataclass(frozen=True)
class MaskRuns:
    """All runs of one mask.

    `scores` maps each seed to its score, a diverged one to the worst; `values` likewise for
    every reported value, without the diverged seeds. `at_majority` names the tasks that do not
    beat a constant answer: the mean over seeds of the lower bounds over rows is not above the
    mean of the constant's score (see `pareto.beats_constant`).
    """

    name: str
    kind: Kind
    expression: str
    fingerprint: str
    at_random: bool  # its mask keeps keys drawn at random
    sparsity: float  # over the pairs that real tokens form, in [0, 1]; NaN where no run has it
    table_sparsity: float  # over the n x n cells
    block_density: float
    scores: Mapping[int, float]
    diverged: tuple[int, ...]  # seeds
    row_files: Mapping[int, Path]  # seed -> scores row by row, as far as the run has kept them
    values: Mapping[str, Mapping[int, float]]
    at_majority: frozenset[str]
    learned_nothing: bool  # it reports what constant answers earn, and beats none of them
    failed: int  # seeds that failed, and have not diverged
    unfinished: int  # seeds that are still running or were stopped

    @cached_property
    def rows(self) -> dict[int, RowScores]:
        """Seed -> its scores row by row, where they can be read."""
        found = {s: read_rows(path, self.scores[s]) for s, path in self.row_files.items()}
        return {seed: rows for seed, rows in found.items() if rows is not None}

    @cached_property
    def score(self) -> Interval:
        """Mean score, with its interval over seeds and, where they are known, over rows."""
        return estimate(list(self.scores.values()), rows=self.rows.values())

    @property
    def tested(self) -> bool:
        """Whether the comparison is about this mask: a searched one, or a candidate."""
        return self.kind in ("searched", "candidate")


@dataclass(frozen=True)
class Finding:
    """One declared comparison: a searched mask, or a candidate, against another one."""

    mask: str
    against: str
    role: str  # why it is compared with that one
    outcome: Outcome
    difference: PairedDifference  # mask - other; its interval agrees with Holm's test
    adjusted: float  # Holm's adjusted p-value
    gap: float  # sparsity of the mask - sparsity of the other
    same: bool  # equal bits

    @property
    def fair(self) -> bool:
        """Whether a win over that mask is one: it keeps no more cells than that mask."""
        return self.outcome != "better" or self.gap >= -MATCHED or self.role == "reference"


class Compared(Protocol):
    """A comparison, as its fronts and its verdict read it; see `compare.Comparison`."""

    @property
    def records(self) -> tuple[Record, ...]:
        """Every run."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The first one is the score."""

    @property
    def entries(self) -> Mapping[str, MaskRuns]:
        """Mask name -> its runs."""

    @property
    def promised(self) -> Mapping[str, float | None]:
        """Mask of a search's front -> its score in the search."""

    @property
    def found_with(self) -> Mapping[str, Discovery]:
        """Searched mask -> how it was found."""

    @property
    def meanings(self) -> Mapping[str, str]:
        """Reported value -> what it measures."""

    @property
    def half(self) -> str:
        """Which rows judged."""

    @property
    def seedless(self) -> bool:
        """Whether every seed gives a mask the same scores."""

    @property
    def worst(self) -> float:
        """The score of a diverged run."""

    @property
    def mixture(self) -> str:
        """Why the scores cannot be compared; empty where they can."""

    def surpassing(self, entry: MaskRuns) -> MaskRuns | None:
        """The best hand-designed mask that is as sparse as a mask, and better."""


def has_diverged(record: Record, score: str) -> bool:
    """Whether a run ended in a loss or a score that is not finite."""
    if record.scored:
        return not math.isfinite(record.value(score))
    kind = re.split("[: ]", record.reason)[0].rpartition(".")[2]
    return record.status == "failed" and kind in ("NonFiniteLossError", "FloatingPointError")


def rows_file(run: Path, record: Record) -> Path | None:
    """The file with a record's scores row by row, in its run folder; None where it has none."""
    if "reused_from" in record.artifacts:
        return run / "trials" / record.artifacts["reused_from"] / ROWS
    return run / record.artifacts["rows"] if "rows" in record.artifacts else None


def read_rows(path: Path, score: float) -> RowScores | None:
    """A run's scores row by row; None where the file is missing, damaged or of another run."""
    from safetensors import SafetensorError

    try:
        rows = RowScores.load(path)
        return rows if math.isclose(rows.score, score, rel_tol=CLOSE, abs_tol=CLOSE) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds; NaN for none."""
    return math.fsum(values.values()) / len(values) if values else math.nan
