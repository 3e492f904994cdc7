"""What the records of a search say against believing it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch.analysis.compare import MAJORITY_MARGIN
from masksearch.analysis.pareto import is_baseline
from masksearch.contracts import Record

FEWEST = 3  # scored masks before their scores say anything together
IN_A_ROW = 5  # draws of known masks after which a space seems to be used up


def search_cautions(records: Sequence[Record]) -> list[str]:
    """What whoever runs or reads a search must know; empty where there is nothing.

    Args:
        records: Of one search or of several, finished ones and others.
    """
    return constant_scores(records) + repeated_masks(records)


def constant_scores(records: Sequence[Record]) -> list[str]:
    """Tasks on which every mask has the score of a constant prediction (`TASK/majority`)."""
    scored = [record for record in records if record.status == "done" and record.scored]
    constants: list[str] = []
    for task in sorted({name for record in scored for name in record.values}):
        majority = f"{task}/majority"
        known = [record.values for record in scored if majority in record.values]
        if len(known) >= FEWEST and all(
            values[task] <= values[majority] + MAJORITY_MARGIN for values in known
        ):
            constants.append(task)
    if not constants:
        return []
    return [
        f"none of the {len(scored)} masks trained so far scored better on {', '.join(constants)} "
        "than a constant prediction, so that this says nothing about the masks: train longer "
        "(more steps, epochs or rows), with another learning rate, or take an easier task"
    ]


def repeated_masks(records: Sequence[Record]) -> list[str]:
    """Strategies that draw the same masks again and again."""
    found = []
    drawn = [r for r in records if r.scored and not is_baseline(r) and r.origin != "compare"]
    for origin in dict.fromkeys(record.origin for record in drawn):
        trials = sorted((r for r in drawn if r.origin == origin), key=lambda r: r.number)
        again = [record.status == "reused" for record in trials]
        if (len(again) >= IN_A_ROW and all(again[-IN_A_ROW:])) or (
            sum(again) >= IN_A_ROW - 1 and 2 * sum(again) >= len(again)
        ):
            masks = len({record.fingerprint for record in trials})
            found.append(
                f"{sum(again)} of the {len(again)} trials of {origin} drew a mask that had been "
                f"trained before ({masks} different masks in all); they were not trained again, "
                "but each counts as a trial: search a larger space, with fewer trials, or with "
                "another strategy"
            )
    return found
