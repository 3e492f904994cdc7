"""The mask to take within a budget: the better mean of searched and hand-designed; and, apart from
that, which of the two is shown to be better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from masksearch.analysis.runs import ComparedRuns, MaskGroup, MaskRuns
from masksearch.analysis.stats import PairedDifference, decimals_for
from masksearch.errors import SearchError
from masksearch.masks.core import Mask

Difference = Callable[[MaskRuns, MaskRuns, float], PairedDifference]
Shown = Literal["better", "not told apart", "worse", "too few seeds", "alone"]
UNRIVALLED = "no hand-designed mask of the same cost was evaluated"


@dataclass(frozen=True)
class Recommendation:
    """Which mask a comparison recommends, and what is shown.

    Args:
        name: The mask's, in the comparison.
        mask: The mask.
        outcome: Of the searched mask against the hand-designed one, whichever is taken: shown to
            be `"better"` or `"worse"`, `"not told apart"`, or with `"too few seeds"`; `"alone"`
            where no mask of the other kind has learned anything.
        sentence: The same in words, with the difference and its interval.
        difference: Searched minus hand-designed; None where only one kind is there.
        by_seed: The same of each seed that both have.
    """

    name: str
    mask: Mask
    outcome: Shown
    sentence: str
    difference: PairedDifference | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.sentence


def recommend(
    comparison: ComparedRuns, entries: Sequence[MaskRuns], difference: Difference, score: str
) -> Recommendation:
    """The mask to take among some of a comparison: the better mean, and of means that are printed
    alike the hand-designed one's. A mask that has learned nothing is never taken.

    Of each kind the one with the best score *in the search* is compared, where all of that kind
    have one of one protocol; else the best mean of the comparison, and then the interval is at
    the level of the family of pairs that could have been chosen.

    Args:
        comparison: It says how its masks were found.
        entries: The masks within the budget.
        difference: Of two masks, at a level.
        score: What the score is called in the sentence.

    Raises:
        SearchError: If no searched or hand-designed mask among them has learned anything.
    """
    sign = comparison.sign
    masks = {record.name: record.mask for record in comparison.records if record.mask is not None}
    chosen: dict[MaskGroup, MaskRuns] = {}
    pairs = 1
    for kind in ("searched", "hand-designed"):
        of_kind = [e for e in entries if e.kind == kind and e.scores and e.name in masks]
        of_kind = [entry for entry in of_kind if not entry.learned_nothing]
        found = [comparison.found_with.get(entry.name) for entry in of_kind]
        scores = [each.score for each in found if each and each.score is not None]
        if len(scores) == len(of_kind) and len({each.protocol for each in found if each}) == 1:
            order = scores
        else:
            order = [entry.score.value for entry in of_kind]
            pairs *= max(1, len(of_kind))
        if of_kind:
            chosen[kind] = of_kind[max(range(len(order)), key=lambda at: sign * order[at])]
    searched, hand = chosen.get("searched"), chosen.get("hand-designed")
    if searched is None or hand is None:
        only = searched or hand
        if only is None:
            raise SearchError(
                "no searched or hand-designed mask within that budget has a finished run that has "
                "learned anything; give a larger budget, train longer, or compare some"
            )
        other = "hand-designed" if searched else "searched"
        sentence = f"{only.name} is the only choice: "
        if any(entry.kind == other for entry in entries):
            sentence += f"no {other} mask of that cost has learned anything."
        else:
            sentence += f"{UNRIVALLED if searched else 'no searched mask was evaluated'}."
        return Recommendation(only.name, masks[only.name], "alone", sentence)
    gap = difference(searched, hand, 1 - 0.05 / pairs)
    low, high = sorted((sign * gap.low, sign * gap.high))
    outcome: Shown = "not told apart"
    if not gap.decides:
        outcome = "too few seeds"
    elif low > 0:
        outcome = "better"
    elif high < 0:
        outcome = "worse"
    ahead = sign * (searched.score.value - hand.score.value)
    printed = round(ahead, decimals_for((gap.value, gap.low, gap.high)))
    taken = searched if printed > 0 else hand
    by_seed = {
        seed: searched.scores[seed] - hand.scores[seed]
        for seed in sorted(searched.scores.keys() & hand.scores.keys())
    }
    first = sum(sign * each > 0 for each in by_seed.values())
    count = f"{gap.n_rows:,} rows" if gap.seedless else f"ahead on {first} of {len(by_seed)} seeds"
    words = {
        "better": f"{searched.name} is shown to be better",
        "not told apart": "the two are not told apart",
        "worse": f"{searched.name} is shown to be worse",
        "too few seeds": "too few seeds to tell them apart",
    }
    why = "by the better mean" if printed else "of equal means the one drawn by hand"
    sentence = (
        f"{taken.name} is taken, {why}. {searched.name} minus {hand.name}: {score} "
        f"{gap.text(signed=True)}, {count}; {words[outcome]}."
    )
    return Recommendation(taken.name, masks[taken.name], outcome, sentence, gap, by_seed)
