"""What a DAM run leaves: edge probabilities, its curve, and masks cut from them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masksearch import masks
from masksearch.analysis.cautions import warmup_problems
from masksearch.contracts import Report, Shape
from masksearch.files import read_tensors, write_tensors
from masksearch.gates.config import warmup_steps
from masksearch.gates.diagnostics import Health, health, switch_health
from masksearch.gates.discretise import (
    EmptyRows,
    Per,
    at_sparsity,
    at_threshold,
    mean_of_edges,
    top_keys,
    weights_of,
)
from masksearch.gates.units import Allocation, Units, cut_switches, read_levels
from masksearch.masks.core import Mask
from masksearch.masks.picture import table_html

FORMAT = "masksearch-gates-1"


@dataclass(frozen=True, eq=False)
class DamResult:
    """The outcome of a DAM run: edge probabilities, from which masks are cut.

    Args:
        probabilities: float32 `[layers, heads, n, n]` on the CPU: how likely each edge is open.
            An axis of 1 means shared by all layers or heads. Of switches
            `[layers, units of a layer, levels]`: how likely each unit takes each of its masks.
        curve: Reports, oldest first, with `loss`, `density`, `target`, `entropy`, `control`; the
            last one also has `relaxed`, `sampled`, `held_out` and `discretised` where held-out
            batches were given (see `masksearch.gates.dam`).
        target: Density that was asked for.
        gates: Arguments of the `Gates`.
        config: Fields of the `DamConfig`.
    """

    probabilities: Tensor
    curve: tuple[Report, ...]
    target: float
    gates: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.probabilities.shape))
        loss = "" if self.held_out is None else f", held-out loss {self.held_out:.3f}"
        return (
            f"DamResult({sizes} probabilities of "
            f"{self.gates.get('structure', 'free')} gates, density "
            f"{self.density:.4f}, asked for {self.target:.4g}, "
            f"{self.curve[-1].step if self.curve else 0} steps{loss})"
        )

    def _repr_html_(self) -> str:
        """A picture of the probabilities, for notebooks."""
        if self.units is not None:
            return f"<code>{escape(repr(self))}</code>"
        return table_html(self.probabilities, escape(repr(self)))

    @cached_property
    def units(self) -> Units | None:
        """The layers or heads of switches, and their masks; None where edges have gates."""
        if self.gates.get("structure") != "switch":
            return None
        names = ("length", "layers", "heads", "causal", "lengths", "read")
        told = {name: self.gates[name] for name in names if name in self.gates}
        shape = Shape(**told | {"lengths": dict(told.get("lengths") or {}) or None})
        levels = read_levels(self.gates["levels"])
        rest = self.gates.get("kv_heads"), self.gates.get("costs")
        return Units(shape, levels, self.gates["unit"], *rest)

    @property
    def density(self) -> float:
        """Mean probability of an edge, over the pairs that count, in [0, 1]."""
        if self.units is None:
            return mean_of_edges(self.probabilities, self.weights).item()
        return float((self.probabilities * self.units.prices_by_layer).sum(-1).mean())

    @property
    def weights(self) -> Tensor | None:
        """How much each edge counts, float64 `[n, n]` or `[layers, 1, n, n]`
        (`masksearch.masks.measure.pair_weights` of the data that the gates were trained on);
        None where all count alike."""
        lengths = self.gates.get("lengths")
        return weights_of(
            Shape(
                length=self.probabilities.shape[-1],
                layers=self.probabilities.shape[0],
                heads=1,
                causal=bool(self.gates.get("causal", False)),
                lengths=None if lengths is None else dict(lengths),
                read=self.gates.get("read"),
            )
        )

    @property
    def held_out(self) -> float | None:
        """Loss on the held-out batches under the rounded gates, or None without any."""
        return self.curve[-1].values.get("held_out") if self.curve else None

    @property
    def warmup_steps(self) -> int:
        """Steps before the gates acted; all of them where attention has learned nothing."""
        last = self.curve[-1] if self.curve else None
        if last is None or "pruned_steps" not in last.values:
            return warmup_steps(self.config)
        return last.step - int(last.values["pruned_steps"])

    @property
    def warmup_problems(self) -> dict[str, str]:
        """Why the gates mean little: flags of the health card (`attention_unlearned`,
        `unsettled`), each in words; empty where attention had learned before they were pruned."""
        return warmup_problems(self.curve[-1].values, self.curve[-1].step) if self.curve else {}

    def mask(
        self,
        *,
        sparsity: float | None = None,
        threshold: float | None = None,
        keys: int | None = None,
        per: Per = "mask",
        merge_heads: bool = False,
        empty_rows: EmptyRows = "best",
    ) -> Mask:
        """Cuts a mask from the probabilities; give exactly one of the first three arguments.

        Warns where the gates were pruned before attention had learned, or not at all.

        Args:
            sparsity: Share of closed edges, in [0, 1 - 1/n]. Exactly round((1 - sparsity) x
                cells) edges are kept: the best key of each row, then the likeliest; ties go to
                the nearer offset. Of gates that know the lengths of their data, that it is causal
                or which rows are read, it is the effective sparsity: edges between padding, to
                later keys or of rows that are not read are not kept and count for nothing.
                Switches take the only argument that this is; the mask is the densest on the
                path of `masksearch.gates.units.cut_switches` that is at least as sparse.
            threshold: Lowest kept probability, in [0, 1].
            keys: Number of keys that every row keeps, 1..n.
            per: What the sparsity holds for: the whole `"mask"`, each `"layer"`, each `"head"`.
            merge_heads: One mask for all heads of a layer, by an edge's largest probability:
                weights that are trained anew may use the heads in another way.
            empty_rows: `"best"`: a row that would be empty keeps its best key, which counts in
                the density; `"refuse"`: it is an error.

        Returns:
            A table mask of length n.

        Raises:
            ValueError: If none or several are given, or one is out of range.
            EmptyRowError: If a row would be empty and `empty_rows` is `"refuse"`.
        """
        if self.units is not None:
            plain = per == "mask" and not merge_heads and empty_rows == "best"
            if sparsity is None or threshold is not None or keys is not None or not plain:
                raise ValueError(
                    "switches choose whole masks, so mask() takes their sparsity alone: "
                    "result.mask(sparsity=0.7)"
                )
            return self.units.mask(self.allocation(1 - sparsity))
        given = [
            name
            for name, value in (("sparsity", sparsity), ("threshold", threshold), ("keys", keys))
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "mask() takes exactly one of sparsity, threshold and keys, got "
                f"{' and '.join(given) or 'none'}"
            )
        for problem in self.warmup_problems.values():
            warnings.warn(f"DAM: {problem}", stacklevel=2)
        table = self.probabilities
        if merge_heads:
            table = table.amax(1, keepdim=True)
        if sparsity is not None:
            kept = at_sparsity(table, sparsity, per, empty_rows=empty_rows, weights=self.weights)
        elif threshold is not None:
            kept = at_threshold(table, threshold, empty_rows=empty_rows, weights=self.weights)
        else:
            assert keys is not None
            kept = top_keys(table, keys, weights=self.weights)
        return masks.table(kept)

    def allocation(self, density: float) -> Allocation:
        """The level of each of `units` at a density: that of `mask(sparsity=1 - density)`.

        Raises:
            ValueError: If edges have gates, or all units at their lowest mask are denser.
        """
        if self.units is None:
            raise ValueError("gates of edges have no units that choose; cut a mask: result.mask")
        return cut_switches(self.units, self.probabilities, density)

    def health(
        self, *, others: Sequence[DamResult] = (), retrained: float | None = None
    ) -> Health:
        """Density against the target, the losses from relaxed to retrained, undecided gates, mass
        by distance, agreement of seeds, and whether the run collapsed.

        Args:
            others: The same gates trained with other seeds.
            retrained: Held-out loss of a model trained from scratch under the mask of the target
                density.
        """
        aims = self.config.get("control", "hinge") == "hinge"
        target = self.target if aims else self.density
        initial = self.curve[0].values["density"] if self.curve else 1.0
        if self.units is not None:
            if others:
                raise ValueError(
                    "the agreement of seeds is measured for gates of edges; of switches compare "
                    "the probabilities of their units, result.probabilities"
                )
            return switch_health(
                self.probabilities,
                self.units,
                target=target,
                initial=initial,
                curve=self.curve,
                warmup_steps=self.warmup_steps,
                retrained=retrained,
            )
        return health(
            self.probabilities,
            target=target,
            initial=initial,
            curve=self.curve,
            warmup_steps=self.warmup_steps,
            retrained=retrained,
            others=[other.probabilities for other in others],
            gates=self.gates,
            weights=self.weights,
        )

    def save(self, path: str | Path) -> Path:
        """Writes one `.safetensors` file: the probabilities, and the rest as JSON metadata.

        Raises:
            ValueError: If the path has another ending.
        """
        about = {
            "curve": [asdict(report) for report in self.curve],
            "target": self.target,
            "gates": dict(self.gates),
            "config": dict(self.config),
        }
        metadata = {"format": FORMAT, "dam": json.dumps(about)}
        tensors = {"probabilities": self.probabilities.float()}
        return write_tensors(path, tensors, metadata, what="gates")

    @staticmethod
    def load(path: str | Path) -> DamResult:
        """Reads a file that `save` has written.

        Raises:
            FileNotFoundError: If there is no such file.
            MaskFormatError: If the file is not one of `save`.
        """
        tensors, metadata = read_tensors(path, what="gates", expected=FORMAT)
        about = json.loads(metadata["dam"])
        curve = tuple(Report(item["step"], item["values"]) for item in about.pop("curve"))
        return DamResult(tensors["probabilities"].to(torch.float32), curve, **about)
