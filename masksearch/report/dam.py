"""The report's section on DAM: health cards, their figures, and what several runs say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from masksearch.contracts import OneShot, Record
from masksearch.gates.result import Health
from masksearch.report.figures.dam import (
    plot_agreement,
    plot_dam,
    plot_gates,
    plot_offsets,
    plot_switches,
)
from masksearch.report.tables import health_table

CARDS = 4  # runs that are shown in full at most


@dataclass(frozen=True, eq=False)
class DamCard:
    """One DAM run whose gates could be read.

    Args:
        title: Which run it is.
        record: Of its one-shot job.
        health: Its figures.
        probabilities: float `[layers, heads, n, n]`; of switches `[layers, units, options]`.
        warmup_steps: Steps before the gates acted.
    """

    title: str
    record: Record
    health: Health
    probabilities: Tensor
    warmup_steps: int = 0


@dataclass(frozen=True, eq=False)
class DamRuns:
    """What a page says about its DAM runs.

    Args:
        cards: One a run.
        agreements: Name -> `masksearch.gates.result.Agreement` of runs that differ in their
            seed only.
        missing: Lines on gates that could not be read.
    """

    cards: Sequence[DamCard] = ()
    agreements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A figure of the section, with its texts."""

    key: str
    figure: Figure
    alt: str
    caption: str


def dam_pictures(runs: DamRuns, records: Sequence[Record]) -> Iterator[tuple[int | None, Picture]]:
    """Every figure of the section, with the number of its card (None = of several runs).

    Args:
        runs: Cards; the first `CARDS` are drawn in full.
        records: Of the page; one-shot jobs without a card get their curve only.
    """
    for index, card in enumerate(runs.cards[:CARDS]):
        for picture in card_pictures(card, f"dam_{index}" if len(runs.cards) > 1 else "dam"):
            yield index, picture
    shown = {id(card.record) for card in runs.cards[:CARDS]}
    curves = [
        record
        for record in records
        if isinstance(record.job, OneShot)
        if record.curve and id(record) not in shown
    ]
    alone = len(curves) == 1 and not shown
    titles = {id(card.record): card.title for card in runs.cards}
    for index, record in enumerate(curves, start=len(shown)):
        title = titles.get(id(record), f"Trial {record.number}")
        picture = Picture(
            "dam" if alone else f"dam_{index}",
            plot_dam(record.curve),
            "DAM's density and loss over the training steps",
            f"{title}: density of the gates with its target, and the loss.",
        )
        yield None, picture
    if runs.agreements:
        picture = Picture(
            "dam_agreement",
            plot_agreement(runs.agreements),
            "Overlap of the masks of several seeds against chance",
            "Do seeds find the same mask? Bars: mean intersection over union of two seeds' masks, "
            "cut at the target density; points: each pair; black lines: gates with random values.",
        )
        yield None, picture


def card_pictures(card: DamCard, key: str) -> Iterator[Picture]:
    """The figures of one run; `key` begins their names."""
    yield Picture(
        key,
        plot_dam(card.record.curve, card.warmup_steps),
        "DAM's density and loss over the training steps",
        "Density of the gates with its target, and the training loss.",
    )
    if card.probabilities.ndim == 3:
        yield Picture(
            f"{key}_gates",
            plot_switches(card.probabilities),
            "Probability of the fullest mask for every unit of every layer",
            "Which units take their fullest mask: layers down, the units of a layer across.",
        )
        return
    yield Picture(
        f"{key}_gates",
        plot_gates(card.probabilities),
        "Gate probabilities of every layer and head",
        "Probability of every edge at the end: queries down, keys across; above each panel its "
        "density.",
    )
    yield Picture(
        f"{key}_offsets",
        plot_offsets(card.probabilities),
        "Gate probabilities by signed offset",
        "Where the mass lies: mean probability of an edge by key minus query.",
    )


def health_data(runs: DamRuns) -> dict[str, Any]:
    """What the section says, as plain data: the cards in words and figures, and what they say
    together."""
    left = len(runs.cards) - CARDS
    return {
        "cards": [
            {
                "title": card.title,
                "problems": [sentence(line) for line in card.health.problems.values()],
                "notes": [
                    *(sentence(line) for line in card.health.notes),
                    *(f"Said while it ran: {line}." for line in card.health.warnings),
                ],
                "table": health_table(card.health),
                "health": asdict(card.health),
                "curve": [{"step": report.step, **report.values} for report in card.record.curve],
                "warmup_steps": card.warmup_steps,
            }
            for card in runs.cards[:CARDS]
        ],
        "notes": [f"{CARDS} of {len(runs.cards)} runs are shown in full."] if left > 0 else [],
        "together": bool(runs.agreements),
        "agreements": runs.agreements,
        "missing": runs.missing,
    }


def sentence(line: str) -> str:
    """A line with a capital and a full stop."""
    return f"{line[:1].upper()}{line[1:]}."
