"""DAM as a strategy: one joint training of gates and weights, then masks cut out of it; and the
published DAM: the gates of SparseBERT's table, then its masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masksearch import masks
from masksearch.contracts import Evaluate, Job, OneShot, Proposal, Record, Refused
from masksearch.errors import MaskSearchError, SearchError
from masksearch.files import path_inside
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.result import DamResult
from masksearch.gates.units import Units

OPTIONS = {  # name -> type
    **dict.fromkeys(("gates", "config"), Mapping[str, Any]),
    "densities": Sequence[float],
    "merge_heads": bool,
    "cost": str,
}
SPREAD = (1.0, 0.5, 2.0, 0.7, 1.4, 0.35, 2.8)  # densities tried, as multiples of the target


@dataclass(frozen=True)
class Cut:
    """Which masks are cut out of trained gates.

    Args:
        densities: In (0, 1]; None = around the target, raised to one key in every row, and at
            most .9 (or the target).
        merge_heads: Cut one mask for all heads of a layer.
        within: Whether the densities are budgets, which no mask exceeds.
        counts: What the densities are shares of, where units have costs of their own.

    Raises:
        ValueError: If `densities` are no numbers in (0, 1].
    """

    densities: Sequence[float] | None = None
    merge_heads: bool = False
    within: bool = False
    counts: str = "density"

    def __post_init__(self) -> None:
        for density in self.densities or ():
            if not isinstance(density, int | float) or not 0 < density <= 1:
                raise ValueError(
                    "densities are shares of the pairs that masks keep, numbers in (0, 1], got "
                    f"{density!r}; give such as [0.1, 0.05]"
                )


AROUND = Cut()  # the target


class AfterFirstJob:
    """Counts the draws, and keeps the artifacts of the first ones, which train gates.

    Args:
        run: Folder that artifacts are relative to.
        origin: Of the proposals: the strategy's name.
        artifact: Name of what a first job leaves.
        jobs: How many draws are such jobs.
    """

    def __init__(self, run: Path, origin: str, artifact: str, jobs: int = 1) -> None:
        self.run, self.origin, self.artifact, self.jobs = run, origin, artifact, jobs
        self.next = 0  # the next draw
        self.left: dict[int, Path | None] = {}  # draw of a job that has ended -> its file, if any
        self.lost = ""  # why the latest that has none left none

    def propose(self, job: Job, params: Mapping[str, Any] = {}, *, name: str = "") -> Proposal:
        """The next draw, which is out from now on."""
        self.next += 1
        return Proposal(self.next - 1, job, params, self.origin, name=name)

    def tell(self, record: Record) -> None:
        """Learns that a draw is out and, of a first job that has ended, where its file lies."""
        self.next = max(self.next, record.number + 1)
        if record.number < self.jobs and record.status != "running":
            path = record.artifacts.get(self.artifact)
            self.left[record.number] = None if path is None else path_inside(self.run, path)
            self.lost = "" if path else record.reason or f"its job has left no {self.artifact}"

    def refuse_lost(self) -> None:
        """Raises SearchError, with the reason, where a first job has left no file."""
        if self.lost:
            raise SearchError(
                f"strategy {self.origin!r} has no {self.artifact}, its first job has failed: "
                f"{self.lost}; remove the cause and {self.run}, or search in another run folder"
            )


class DamStrategy(AfterFirstJob):
    """Proposes a one-shot job, waits for its gates, then proposes their discretisations.

    Gates that were never pruned, because attention had learned nothing, have none. Where they
    were pruned before it had learned, a mask has the parameter `gates="unsettled"`.

    Args:
        run: Folder that artifacts are relative to.
        gates: Arguments of `masksearch.Gates` (structure, signed, layers, ...).
        config: Arguments of `masksearch.DamConfig`.
        target: Density that the gates are trained for, in (0, 1); like all densities here over
            the non-padding query-key pairs.
        length: Positions.
        least: Density of one key in every row; None = 1 / length, that of data without padding.
            Where `config` asks for no density, the gates are trained for twice that at least.
        units: What chooses, where the gates are switches. Densities then begin at that of all
            local masks; where `config` asks for none it is a quarter of the way from there to
            that of all full masks.
        cut: The masks that are cut out of the gates.

    Raises:
        ValueError: If a density that was asked for is below one key a row.
    """

    def __init__(
        self,
        run: Path,
        *,
        gates: Mapping[str, Any],
        config: Mapping[str, Any],
        target: float,
        length: int,
        least: float | None = None,
        units: Units | None = None,
        cut: Cut = AROUND,
    ) -> None:
        super().__init__(run, "dam", "gates")
        self.gates, self.config = dict(gates), waiting(config)
        self.length, self.least = length, 1 / length if least is None else least
        self.cut, densities = cut, cut.densities
        self.asked = [*(densities or ()), *([target] if "density" in config else [])]
        self.units, floor = units, 0.0
        if units is not None:
            self.least = floor = units.least
            if "density" not in config:
                target = self.config["density"] = units.quarter
        elif "density" not in config and target < self.least:
            target = self.config["density"] = min(0.9, 2 * self.least)
        above = (floor + (target - floor) * factor for factor in SPREAD)
        around = (max(self.least, min(max(0.9, target), density)) for density in above)
        self.densities = tuple(densities or dict.fromkeys(around))
        for density in self.asked:
            self._refuse_less(density)

    def _refuse_less(self, density: float) -> None:
        """Refuses a density below one key a row, or below that of all local masks."""
        if self.units is not None:
            self.units.refuse_less(density)
        if density < self.least * (1 - 0.5 / self.length):  # by half a cell
            whole = f"1/{self.length} = " if self.least == 1 / self.length else ""
            raise ValueError(
                f"a mask of density {density:g} has rows without a key: at length "
                f"{self.length} densities are at least {whole}{self.least:.4g}"
            )

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """First the training, then one mask for each density.

        Raises:
            SearchError: If the training has failed; gives its reason.
        """
        if self.next == 0:
            return self.propose(OneShot(self.gates, self.config))
        self.refuse_lost()
        if self.next > len(self.densities):
            return "done"
        if not (path := self.left.get(0)):
            return "wait"
        density = self.densities[self.next - 1]
        params: dict[str, Any] = {self.cut.counts: density}
        job: Job
        try:
            result = DamResult.load(path)
            if "attention_unlearned" in result.warmup_problems:
                return "done"
            if "unsettled" in result.warmup_problems:
                params["gates"] = "unsettled"
            with warnings.catch_warnings():  # a caution of the search says it
                warnings.filterwarnings("ignore", "DAM: ")
                mask = result.mask(
                    sparsity=1 - density, merge_heads=self.cut.merge_heads, within=self.cut.within
                )
            if result.units is not None:
                params |= result.units.params(result.allocation(density))
            job = Evaluate(mask)
        except (MaskSearchError, ValueError) as error:
            job = Refused(f"{type(error).__name__}: {error}")
        return self.propose(job, params)


def waiting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `DamConfig` that say in the job that a warm-up not given is "auto"."""
    chosen = dict(config)
    if "preset" not in chosen and "dense_warmup" not in chosen:
        chosen["dense_warmup"] = "auto"
    return chosen


SPARSEBERT = "sparsebert"  # the name of the published DAM as a strategy


@dataclass(frozen=True)
class PublishedMask:
    """A mask of the published table that DAM has found.

    Args:
        name: As printed, with lambda.
        structure: Of its gates; see `masksearch.Gates`.
        penalty: lambda of its search.
        sparsity: 1 - kept cells / n^2, in percent.
    """

    name: str
    structure: str
    penalty: float
    sparsity: float


PUBLISHED = (  # results table in the README of github.com/han-shi/SparseBERT, commit 5ce10ac
    PublishedMask("DAM_u 1e-4", "symmetric", 1e-4, 78.9),
    PublishedMask("DAM_u 1e-3", "symmetric", 1e-3, 79.2),
    PublishedMask("DAM_u 1e-2", "symmetric", 1e-2, 79.8),
    PublishedMask("DAM_u 1e-1", "symmetric", 1e-1, 85.8),
    PublishedMask("DAM_s 1e-4", "toeplitz", 1e-4, 91.2),
    PublishedMask("DAM_s 1e-3", "toeplitz", 1e-3, 91.6),
    PublishedMask("DAM_s 1e-2", "toeplitz", 1e-2, 91.7),
    PublishedMask("DAM_s 1e-1", "toeplitz", 1e-1, 93.5),
)


class PublishedDamStrategy(AfterFirstJob):
    """Proposes the published training of DAM_u and DAM_s at each lambda, then their masks.

    The draws 0 to 7 train gates, one row of the published table each; the draws 8 to 15 are the
    masks, named after the rows. A mask has the row's printed sparsity, over all n x n cells as
    there: its likeliest cells, whatever density its own gates have reached. The record's `params`
    have both as shares, `reached` and `sparsity`.

    Args:
        run: Folder that artifacts are relative to.
        config: Fields of `masksearch.DamConfig` in place of the published ones (`steps`, ...).

    Reference: SparseBERT, arXiv 2102.12871; see `masksearch.gates.sparsebert`.
    """

    def __init__(self, run: Path, *, config: Mapping[str, Any]) -> None:
        super().__init__(run, SPARSEBERT, "gates", jobs=len(PUBLISHED))
        self.config = dict(config)

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next training, then the next mask as soon as its gates are there."""
        if self.next >= 2 * self.jobs:
            return "done"
        index = self.next % self.jobs
        row = PUBLISHED[index]
        if self.next < self.jobs:
            gates = {"preset": "sparsebert", "structure": row.structure}
            config = {"preset": "sparsebert", "penalty": row.penalty, **self.config}
            return self.propose(OneShot(gates, config), {"gates": row.name})
        if index not in self.left:
            return "wait"
        job, reached = cut(row, self.left[index])
        return self.propose(job, {"sparsity": row.sparsity / 100, **reached}, name=row.name)


def cut(row: PublishedMask, gates: Path | None) -> tuple[Job, dict[str, float]]:
    """A row's mask, and the sparsity that its gates have reached."""
    if gates is None:
        return Refused(f"{row.name}: the training of its gates failed"), {}
    try:
        chances = DamResult.load(gates).probabilities
        mask = masks.table(at_sparsity(chances, row.sparsity / 100))
    except (MaskSearchError, ValueError, OSError) as error:
        return Refused(f"{type(error).__name__}: {error}"), {}
    return Evaluate(mask), {"reached": 1 - float(chances.double().mean())}


def is_published_dam(record: Record) -> bool:
    """Whether a record's mask was cut from gates of the published DAM."""
    return record.origin == SPARSEBERT and record.mask is not None


def describe_cut(record: Record) -> str:
    """A line on a mask that was cut from DAM's gates at a printed sparsity.

    Such as "DAM_s 1e-1: its gates have reached a sparsity of 52.0%, the mask is cut at 93.5%".
    """
    shares = (record.params[name] for name in ("reached", "sparsity"))
    reached, cut = (f"{100 * float(share):.1f}%" for share in shares)
    return (
        f"{record.name}: its gates have reached a sparsity of {reached}, the mask is cut at {cut}"
    )
