"""The tables of a proxy card, for the report and the terminal."""

from __future__ import annotations

import math

from masksearch.results.proxy_card import ProxyCard
from masksearch.results.proxy_stats import Interval
from masksearch.results.tables import DASH, Cell, Table, figure, heads, percent

REFERENCE = "="  # marks the budget that is the reference itself


def brief_table(card: ProxyCard) -> Table:
    """The columns of `budgets_table` that a terminal has room for."""
    whole = budgets_table(card)
    wanted = {
        "schedule", "steps", "masks", "tau-b, all", "tau-b in bands", "between seeds",
        "front held", f"regret ({card.target})", "at random",
    }  # fmt: skip
    places = [place for place, cell in enumerate(whole.head) if cell.text in wanted]
    return Table(
        tuple(whole.head[place] for place in places),
        tuple(tuple(row[place] for place in places) for row in whole.rows),
    )


def budgets_table(card: ProxyCard) -> Table:
    """One row a budget: agreement with the reference, best sets, front, regret, seeds."""
    sets = list(card.rows[0].overlaps) if card.rows else []
    several = len({row.schedule for row in card.rows}) > 1
    names = [
        *(["schedule"] if several else []),
        "steps", "masks", "tau-b, all", "tau-b in bands", "between seeds", "Spearman", "in bands",
        *sets, "front held", f"regret ({card.target})", "at random", "sd masks", "sd seeds",
    ]  # fmt: skip
    rows = []
    for row in card.rows:
        mark = f" {REFERENCE}" if row.is_reference else ""
        rows.append(
            tuple(
                map(
                    Cell,
                    (
                        *([row.schedule] if several else []),
                        f"{row.budget:,}{mark}",
                        str(row.masks),
                        shown(row.across),
                        shown(row.within),
                        shown(row.between_seeds),
                        decimals(row.spearman),
                        decimals(row.spearman_within),
                        *(percent(row.overlaps[name]) for name in sets),
                        percent(row.pareto_recall),
                        figure(row.regret, 3),
                        figure(row.at_random, 3),
                        figure(row.spread.sigma_mask, 3),
                        figure(row.spread.sigma_seed, 3),
                    ),
                )
            )
        )
    return Table(heads(*names, text=("schedule",)), tuple(rows))


def others_table(card: ProxyCard) -> Table:
    """One row a further measure and budget: its agreement with the proxy there."""
    head = heads(
        "measure", "schedule", "steps", f"{card.proxy} at", "masks", "tau-b, all",
        "tau-b in bands", "Spearman", "ceiling in bands", text=("measure", "schedule"),
    )  # fmt: skip
    rows = [
        tuple(
            map(
                Cell,
                (
                    other.measure,
                    other.schedule,
                    f"{other.budget:,}",
                    f"{other.proxy_budget:,}",
                    str(other.masks),
                    shown(other.across),
                    shown(other.within),
                    decimals(other.spearman),
                    shown(other.ceiling),
                ),
            )
        )
        for other in card.others
    ]
    return Table(head, tuple(rows))


def shown(interval: Interval) -> str:
    """An interval, or a dash."""
    return DASH if math.isnan(interval.value) else str(interval)


def decimals(value: float) -> str:
    """A correlation to two decimals, or a dash."""
    return DASH if math.isnan(value) else f"{value:.2f}"
