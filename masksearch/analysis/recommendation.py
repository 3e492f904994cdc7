"""The mask to take within a budget: the searched one where it is shown to be better than the best
hand-designed one, else that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from masksearch.analysis.runs import ComparedRuns, Kind, MaskRuns
from masksearch.analysis.stats import PairedDifference
from masksearch.errors import SearchError
from masksearch.masks.core import Mask

Difference = Callable[[MaskRuns, MaskRuns, float], PairedDifference]
Advice = Literal["better", "not shown", "worse", "too few seeds", "learned nothing", "alone"]
UNRIVALLED = "no hand-designed mask of the same cost was evaluated"


@dataclass(frozen=True)
class Recommendation:
    """Which mask a comparison recommends, and why.

    Args:
        name: The mask's, in the comparison.
        mask: The mask.
        outcome: Of the searched mask against the hand-designed one: shown to be `"better"` or
            `"worse"`, `"not shown"`, with `"too few seeds"`, `"learned nothing"`; `"alone"` where
            there is no mask of the other kind.
        sentence: The same in words, with the difference and its interval.
        difference: Searched minus hand-designed; None where only one kind is there.
    """

    name: str
    mask: Mask
    outcome: Advice
    sentence: str
    difference: PairedDifference | None = None

    def __str__(self) -> str:
        return self.sentence


def recommend(
    comparison: ComparedRuns, entries: Sequence[MaskRuns], difference: Difference, score: str
) -> Recommendation:
    """The mask to take among some of a comparison.

    Of each kind the one with the best score *in the search* is taken, where all of that kind
    have one of one protocol; else the best mean of the comparison, and then the interval is at
    the level of the family of pairs that could have been chosen.

    Args:
        comparison: It says how its masks were found.
        entries: The masks within the budget.
        difference: Of two masks, at a level.
        score: What the score is called in the sentence.

    Raises:
        SearchError: If no searched or hand-designed mask among them has a finished run.
    """
    sign = comparison.sign
    masks = {record.name: record.mask for record in comparison.records if record.mask is not None}
    chosen: dict[Kind, MaskRuns] = {}
    pairs = 1
    for kind in ("searched", "hand-designed"):
        of_kind = [e for e in entries if e.kind == kind and e.scores and e.name in masks]
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
                "no searched or hand-designed mask within that budget has a finished run; give a "
                "larger budget, or compare some"
            )
        why = UNRIVALLED if searched else "no searched mask of that cost was evaluated"
        sentence = f"{only.name} is the only choice: {why}"
        return Recommendation(only.name, masks[only.name], "alone", sentence + ".")
    gap = difference(searched, hand, 1 - 0.05 / pairs)
    low, high = sorted((sign * gap.low, sign * gap.high))
    outcome: Advice = "not shown"
    if not gap.decides:
        outcome = "too few seeds"
    elif searched.learned_nothing:
        outcome = "learned nothing"
    elif low > 0:
        outcome = "better"
    elif high < 0:
        outcome = "worse"
    taken = searched if outcome == "better" else hand
    figure = f"{score} {gap.text(signed=True)}" + (f", {gap.n} seeds" if gap.n > 1 else "")
    words = {
        "better": f"is shown to be better than {hand.name}",
        "not shown": f"is not shown to be better than {hand.name}, so that one is taken",
        "worse": f"is shown to be worse than {hand.name}, so that one is taken",
        "too few seeds": f"has too few seeds to compare with {hand.name}, so that one is taken",
        "learned nothing": f"has learned nothing, so {hand.name} is taken",
    }
    sentence = f"{searched.name} {words[outcome]}: {figure}."
    return Recommendation(taken.name, masks[taken.name], outcome, sentence, gap)
