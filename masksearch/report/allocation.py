"""What layers and heads keep of the masks of a front, and what changes along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from masksearch.masks.measure import unit_densities
from masksearch.report.section import Section
from masksearch.report.tables import percent

TOLD = 12  # layers whose shares are told one by one
SHOWN = 24  # masks of a front at most


def allocation_data(section: Section, chart: Mapping[str, Any] | None) -> dict[str, Any]:
    """The kept share of each layer and head of the masks on a chart's front, densest first.

    Where the chart has no joint front (a comparison), the fronts of its kinds are taken together.
    """
    shape, points = section.shape, list(chart["points"]) if chart else []
    steps = {line["id"] for line in chart["lines"]} if chart else set()
    best = [p for p in points if p["front"]] or [p for p in points if p["id"] in steps]
    best = list(
        {p["fingerprint"] or p["id"]: p for p in best if p["picture"] is not None}.values()
    )
    best.sort(key=lambda point: (point["sparsity"], point["name"]))
    masks = {record.fingerprint: record.mask for record in section.records}
    every = []
    if shape is not None and shape.layers * shape.heads > 1:
        for point in best:
            if (mask := masks.get(point["fingerprint"])) is not None:
                kept = unit_densities(mask, shape)
                every.append({"id": point["id"], "name": point["name"], "kept": kept})
    uneven = [each for each in every if np.ptp(each["kept"]) > 1e-9]
    if not uneven:
        note = "Every mask of the front keeps the same share in all layers and heads."
        return {"masks": [], "notes": [note] if every else [], "most": 1.0}
    places = np.linspace(0, len(uneven) - 1, min(SHOWN, len(uneven))).round().astype(int)
    notes = describe_allocation(uneven)
    if len(uneven) < len(every):
        notes.append(
            f"{len(every) - len(uneven)} more masks of the front keep the same share everywhere."
        )
    if len(places) < len(uneven):
        notes.append(f"{len(places)} of these {len(uneven)} masks are shown.")
    return {
        "masks": [uneven[place] for place in places],
        "notes": notes,
        "most": float(max(np.max(each["kept"]) for each in uneven)),
    }


def describe_allocation(masks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What changes from the densest mask to the sparsest, in sentences."""
    first, last = np.array(masks[0]["kept"]), np.array(masks[-1]["kept"])
    lines = []
    if len(masks) > 1:
        told = []
        for at in (int((first - last).argmax()), int((first - last).argmin())):
            layer, head = divmod(at, first.shape[1])
            shares = f"{percent(first[layer, head])} to {percent(last[layer, head])}"
            told.append(f"layer {layer}, head {head} ({shares})")
        lines.append(
            f"From {masks[0]['name']} to {masks[-1]['name']}: {told[0]} gives up the most, "
            f"{told[1]} the least."
        )
    if any(np.ptp(np.mean(each["kept"], axis=1)) > 1e-9 for each in masks):
        fullest = [int(np.mean(each["kept"], axis=1).argmax()) for each in masks]
        layer = max(sorted(set(fullest)), key=fullest.count)
        means = "; ".join(
            f"layer {index} {percent(before)} and {percent(after)}"
            for index, (before, after) in enumerate(zip(first.mean(1), last.mean(1), strict=True))
        )
        kept = f" Kept in the first and in the last mask: {means}." if len(first) <= TOLD else ""
        lines.append(
            f"Layer {layer} is the fullest in {fullest.count(layer)} of {len(masks)} masks.{kept}"
        )
    return lines
