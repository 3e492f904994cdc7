"""DAM as a strategy: one joint training of gates and weights, then masks cut out of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from masksearch.contracts import Evaluate, Job, OneShot, Proposal, Record, Refused
from masksearch.errors import MaskSearchError
from masksearch.gates.units import Units

SPREAD = (1.0, 0.5, 2.0, 0.7, 1.4, 0.35, 2.8)  # densities tried, as multiples of the target


class DamStrategy:
    """Proposes a one-shot job, waits for its gates, then proposes their discretisations.

    Gates that were never pruned, because attention had learned nothing, have none. Where they
    were pruned before it had learned, a mask has the parameter `gates="unsettled"`.

    Args:
        run: Folder that artifacts are relative to.
        gates: Arguments of `masksearch.Gates` (structure, signed, layers, ...).
        config: Arguments of `masksearch.DamConfig`.
        target: Density that the gates are trained for, in (0, 1); like all densities here over
            the pairs that real tokens form.
        length: Positions.
        densities: Densities of the masks to cut, in (0, 1]; None = around the target, raised to
            one key in every row, and at most .9 (or the target).
        merge_heads: Cut one mask for all heads of a layer.
        least: Density of one key in every row; None = 1 / length, that of data without padding.
            Where `config` asks for no density, the gates are trained for twice that at least.
        counts: What the densities are shares of, where units have costs of their own.
        units: What chooses, where the gates are switches. Densities then begin at that of all
            local masks; where `config` asks for none it is a quarter of the way from there to
            that of all full masks.

    Raises:
        ValueError: If `densities` are no numbers in (0, 1].
    """

    def __init__(
        self,
        run: Path,
        *,
        gates: Mapping[str, Any],
        config: Mapping[str, Any],
        target: float,
        length: int,
        densities: Sequence[float] | None = None,
        merge_heads: bool = False,
        least: float | None = None,
        units: Units | None = None,
        counts: str = "density",
    ) -> None:
        for density in densities or ():
            if not isinstance(density, int | float) or not 0 < density <= 1:
                raise ValueError(
                    "densities are shares of the pairs that masks keep, numbers in (0, 1], got "
                    f"{density!r}; give such as [0.1, 0.05]"
                )
        self.run, self.gates, self.config = run, dict(gates), waiting(config)
        self.length, self.least = length, 1 / length if least is None else least
        self.asked = [*(densities or ()), *([target] if "density" in config else [])]
        self.units, self.counts, floor = units, counts, 0.0
        if units is not None:
            self.least = floor = units.least
            if "density" not in config:
                target = self.config["density"] = units.quarter
        elif "density" not in config and target < self.least:
            target = self.config["density"] = min(0.9, 2 * self.least)
        above = (floor + (target - floor) * factor for factor in SPREAD)
        around = (max(self.least, min(max(0.9, target), density)) for density in above)
        self.densities = tuple(densities or dict.fromkeys(around))
        self.merge_heads = merge_heads
        self.known: set[int] = set()
        self.found: Path | None = None
        self.lost = False

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """First the training, then one mask for each density.

        Raises:
            ValueError: Before the training, if a density that was asked for is below one key a
                row.
        """
        from masksearch.gates.result import DamResult

        draw = max(self.known, default=-1) + 1
        if draw == 0:
            for density in self.asked:
                if self.units is not None:
                    self.units.refuse_less(density)
                if density < self.least * (1 - 0.5 / self.length):  # by half a cell
                    whole = f"1/{self.length} = " if self.least == 1 / self.length else ""
                    raise ValueError(
                        f"a mask of density {density:g} has rows without a key: at length "
                        f"{self.length} densities are at least {whole}{self.least:.4g}"
                    )
            self.known.add(0)
            return Proposal(0, OneShot(self.gates, self.config), {}, "dam")
        if self.lost or draw > len(self.densities):
            return "done"
        if self.found is None:
            return "wait"
        density = self.densities[draw - 1]
        params: dict[str, Any] = {self.counts: density}
        job: Job
        try:
            result = DamResult.load(self.found)
            if "attention_unlearned" in result.warmup_problems:
                return "done"
            if "unsettled" in result.warmup_problems:
                params["gates"] = "unsettled"
            with warnings.catch_warnings():  # a caution of the search says it
                warnings.filterwarnings("ignore", "DAM: ")
                mask = result.mask(sparsity=1 - density, merge_heads=self.merge_heads)
            if result.units is not None:
                params |= result.units.params(result.allocation(density))
            job = Evaluate(mask)
        except (MaskSearchError, ValueError) as error:
            job = Refused(f"{type(error).__name__}: {error}")
        self.known.add(draw)
        return Proposal(draw, job, params, "dam")

    def tell(self, record: Record) -> None:
        """Learns where the gates lie, or that their training failed."""
        self.known.add(record.number)
        if isinstance(record.job, OneShot) and record.status != "running":
            self.lost = "gates" not in record.artifacts
            if not self.lost:
                self.found = self.run / record.artifacts["gates"]


def waiting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `DamConfig` that say in the job that a warm-up not given is "auto"."""
    chosen = dict(config)
    if "preset" not in chosen and "dense_warmup" not in chosen:
        chosen["dense_warmup"] = "auto"
    return chosen
