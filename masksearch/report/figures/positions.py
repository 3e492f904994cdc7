"""Figures of attention positions: maps of every layer and head."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

from masksearch.report.figures.dam import plot_heads

SHARES, EFFECTS = "Blues", "RdBu_r"  # from 0 up; around 0, red = dropping it hurts


def plot_attention_maps(values: Tensor, label: str = "attention weight") -> Figure:
    """A heat map for every layer (down) and head (across): queries down, keys across.

    Values of both signs are coloured around 0, others from 0 up; all panels share the scale.

    Args:
        values: float `[layers, heads, n, n]`; an axis of 1 is called "all".
        label: What the colours mean, with its unit.

    Raises:
        ValueError: If the tensor has another shape.
    """
    if values.ndim != 4 or values.shape[-1] != values.shape[-2]:
        raise ValueError(
            f"maps are [layers, heads, n, n], got {list(values.shape)}; "
            "add axes of 1 for what is pooled"
        )
    shown = values.detach().float().cpu()
    low, high = shown.min().item(), shown.max().item()
    reach = max(abs(low), abs(high)) or 1.0
    if low < 0:
        return plot_heads(shown, label, EFFECTS, (-reach, reach))
    return plot_heads(shown, label, SHARES, (0.0, reach))
