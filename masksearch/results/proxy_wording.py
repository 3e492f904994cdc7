"""What a proxy card says, in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masksearch.results.proxy_card import ProxyCard
    from masksearch.results.proxy_rows import Budget

LOW = 0.5  # noise ceiling below which seeds turn round a quarter of the pairs
HIGH = 0.9  # reliability beside which a low ceiling needs a word


def objections(card: ProxyCard) -> list[str]:
    """Why the data cannot decide whether the proxy is to be trusted."""
    from masksearch.results.proxy_card import CHANCE, FEWEST  # it imports this module lazily

    found = []
    if card.chance > CHANCE:
        reach = "any tau" if card.chance > 1 else f"a tau of +-{card.chance:.2f}"
        found.append(
            f"too few masks: {len(card.masks)} in density bands of {listed(card.band_sizes)}; two "
            f"unrelated rankings reach {reach} within bands in 1 of 20 cases, more than "
            f"+-{CHANCE:g}; at least {FEWEST} masks in one band, or more in several, are needed"
        )
    if card.seeds < 2 or math.isnan(card.ceiling_within.value):
        what = "one seed" if card.seeds < 2 else "no two seeds of the same masks within a band"
        found.append(
            f"{what} of {card.target}: the noise ceiling is unknown, so nobody can say how well "
            "any proxy could do; run the same masks with a second seed"
        )
    elif not card.ceiling_within.low > 0:
        found.append(
            f"two seeds of {card.target} do not agree within density bands (tau "
            f"{card.ceiling_within}, the interval includes 0): the reference itself does not "
            "rank these masks; run more seeds or longer"
        )
    elif abs(card.density_tau_within) >= card.fraction * card.ceiling_within.value:
        found.append(
            f"density alone ranks {card.target} within its bands (tau "
            f"{card.density_tau_within:.2f}, ceiling {card.ceiling_within.value:.2f}): agreement "
            "within bands this wide may be density's; use narrower bands, or masks of one density"
        )
    return found


def verdict_text(card: ProxyCard) -> str:
    """The verdict and the figures that it rests on, one a line."""
    budget = card.reference[1]
    what = f"{card.proxy} as a proxy of {card.target} at {budget:,} steps"
    reasons = card.objections()
    lines = []
    if reasons:
        lines.append(f"Not decided: {what}.")
        lines += [f"  {reason[0].upper()}{reason[1:]}." for reason in reasons]
    else:
        good = {name: card.stable_from(name) for name in card.series()}
        found = [
            f"from {start:,} steps on" + (f" ({name})" if len(good) > 1 else "")
            for name, start in good.items()
            if start is not None
        ]
        head = f"Valid {'; '.join(found)}" if found else "Not valid"
        low = card.ceiling_within.value < LOW
        lines.append(f"{head}: {what}.")
        rule = f"{card.fraction:.0%} of the noise ceiling ({card.fraction:g} x "
        rule += f"{card.ceiling_within.value:.2f})"
        for name, start in good.items():
            label = f"{name}: " if len(good) > 1 else ""
            if start is not None:
                lines.append(
                    f"  {label}from there on every budget keeps {rule} within density bands "
                    "between seeds, with an interval above 0."
                )
            else:
                lines.append(f"  {label}{shortfall(card, card.series()[name], rule)}")
        if low:
            lines.append(
                "  The ceiling is low: most masks of one band differ by no more than seeds do. "
                "Such a ranking finds masks that stand out, and no more; use several seeds a mask."
            )
    lines += figures(card)
    return "\n".join(lines)


def shortfall(card: ProxyCard, rows: list[Budget], rule: str) -> str:
    """Why no budget of a schedule is trusted, by its longest one."""
    last = rows[-1]
    if not last.within.low > 0:
        return (
            f"at {last.budget:,} steps tau within density bands is {last.within}: it cannot be "
            "told from 0."
        )
    return (
        f"at {last.budget:,} steps one seed's ranking within density bands agrees with another "
        f"seed's {card.target} by {last.between_seeds}, below {rule}."
    )


def figures(card: ProxyCard) -> list[str]:
    """What stands behind the verdict."""
    lines = []
    same = card.proxy == card.target
    which = "Longest budget short of the reference" if same else "Longest budget of the proxy"
    for name, rows in card.series().items():
        last = rows[-1]
        text = f"{last.across} across densities, {last.within} within density bands"
        if not math.isnan(last.between_seeds.value):
            text += f", {last.between_seeds} within bands between seeds"
        if not math.isnan(last.regret):
            text += f"; picking the best of each band by it gives away {last.regret:.3g} of "
            text += f"{card.target} (at random {last.at_random:.3g})"
        lines.append(f"{which}, {last.budget:,} steps ({name}, {last.masks} masks): tau-b {text}.")
    if card.seeds < 2:
        lines.append(f"Noise ceiling (two seeds of {card.target}): unknown, one seed.")
    else:
        lines.append(
            f"Noise ceiling (two seeds of {card.target}): {card.ceiling} across densities, "
            f"{card.ceiling_within} within bands."
        )
    lines.append(
        f"Density alone ranks {card.target} with tau-b {number(card.density_tau)} (sparser is "
        f"better: +1), {number(card.density_tau_within)} within bands."
    )
    wide, narrow = card.spread, card.spread_within
    if math.isnan(wide.sigma_seed):
        lines.append(
            f"Standard deviation of {card.target} over masks: {number(wide.sigma_mask, 3)}; that "
            "of seeds is unknown, one seed."
        )
    else:
        lines.append(
            f"Standard deviations of {card.target}: masks {number(wide.sigma_mask, 3)} (within "
            f"bands {number(narrow.sigma_mask, 3)}), seeds {number(wide.sigma_seed, 3)}; "
            f"reliability of one seed {number(wide.reliability)} (within bands "
            f"{number(narrow.reliability)}), of {card.seeds} seeds "
            f"{number(wide.of_seeds(card.seeds))} ({number(narrow.of_seeds(card.seeds))})."
        )
        if narrow.reliability > HIGH and card.ceiling_within.value < LOW:
            lines.append(
                "A few masks far from the rest make that reliability; the noise ceiling counts "
                "every pair of masks alike, and most of them lie close together."
            )
    lines += list(card.facts)
    if card.left_out:
        lines.append(
            "Left out: " + ", ".join(f"{count} {what}" for what, count in card.left_out.items())
            + "."
        )  # fmt: skip
    return lines


def number(value: float, places: int = 2) -> str:
    """A figure; a dash where it is not defined."""
    return "-" if math.isnan(value) else f"{value:.{places}g}" if places > 2 else f"{value:.2f}"


def listed(sizes: tuple[int, ...]) -> str:
    """Sizes with an "and" before the last."""
    *head, last = map(str, sizes)
    return f"{', '.join(head)} and {last}" if head else last
