"""The published DAM as a strategy: the gates of SparseBERT's table, then masks cut from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masksearch.contracts import Evaluate, Job, OneShot, Proposal, Record, Refused
from masksearch.errors import MaskSearchError

NAME = "sparsebert"
OPTIONS = ("config",)


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


class PublishedDamStrategy:
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
        self.run, self.config = run, dict(config)
        self.known: set[int] = set()
        self.gates: dict[int, Path | None] = {}  # row -> its file; None where the training failed

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next training, then the next mask as soon as its gates are there."""
        draw, count = max(self.known, default=-1) + 1, len(PUBLISHED)
        if draw >= 2 * count:
            return "done"
        place = draw % count
        row = PUBLISHED[place]
        job: Job
        if draw < count:
            gates = {"preset": "sparsebert", "structure": row.structure}
            config = {"preset": "sparsebert", "penalty": row.penalty, **self.config}
            self.known.add(draw)
            return Proposal(draw, OneShot(gates, config), {"gates": row.name}, NAME)
        if place not in self.gates:
            return "wait"
        params: dict[str, Any] = {"sparsity": row.sparsity / 100}
        job, reached = self.cut(place)
        self.known.add(draw)
        return Proposal(draw, job, params | reached, NAME, name=row.name)

    def cut(self, place: int) -> tuple[Job, dict[str, float]]:
        """A row's mask, and the sparsity that its gates have reached."""
        from masksearch import masks
        from masksearch.gates.discretise import at_sparsity
        from masksearch.gates.result import DamResult

        row, path = PUBLISHED[place], self.gates[place]
        if path is None:
            return Refused(f"{row.name}: the training of its gates failed"), {}
        try:
            chances = DamResult.load(path).probabilities
            mask = masks.table(at_sparsity(chances, row.sparsity / 100))
        except (MaskSearchError, ValueError, OSError) as error:
            return Refused(f"{type(error).__name__}: {error}"), {}
        return Evaluate(mask), {"reached": 1 - float(chances.double().mean())}

    def tell(self, record: Record) -> None:
        """Learns where a row's gates lie, or that their training failed."""
        self.known.add(record.number)
        if isinstance(record.job, OneShot) and record.status != "running":
            found = record.artifacts.get("gates")
            self.gates[record.number] = None if found is None else self.run / found


def is_published_dam(record: Record) -> bool:
    """Whether a record's mask was cut from gates of the published DAM."""
    return record.origin == NAME and record.mask is not None


def describe_cut(record: Record) -> str:
    """A line on a mask that was cut from DAM's gates at a printed sparsity.

    Such as "DAM_s 1e-1: its gates have reached a sparsity of 52.0%, the mask is cut at 93.5%".
    """
    shares = (record.params[name] for name in ("reached", "sparsity"))
    reached, cut = (f"{100 * float(share):.1f}%" for share in shares)
    return (
        f"{record.name}: its gates have reached a sparsity of {reached}, the mask is cut at {cut}"
    )
