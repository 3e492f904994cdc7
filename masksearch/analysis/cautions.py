"""What the records of a search say against believing it, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from masksearch.analysis.pareto import beats_constant, learned_nothing
from masksearch.contracts import OneShot, Record

FEWEST = 3  # scored masks before their scores say anything together
IN_A_ROW = 5  # draws of known masks after which a space seems to be used up
REMEDY = (
    "train longer (more steps, epochs or rows), with another learning rate, or take an easier task"
)
ATTENTION_REMEDY = (
    "give more steps (--set dam.steps=..) or another lr; of random weights larger initial weights "
    "(a standard deviation of about 1 / sqrt(width)); of a checkpoint another finetune_lr, or "
    "adapt='none', which trains gates alone on a model that has learned"
)


def search_cautions(records: Sequence[Record]) -> list[str]:
    """What whoever runs or reads a search must know; empty where there is nothing.

    Args:
        records: Of one search or of several, finished ones and others.
    """
    return constant_scores(records) + repeated_masks(records) + unlearned_gates(records)


def nothing_learned(records: Sequence[Record]) -> str:
    """How many finished trials score no better than constant answers; empty where all do.

    Args:
        records: Of a search; those that have learned nothing are on no front.
    """
    scored = [record for record in records if record.scored]
    those = [record for record in scored if learned_nothing(record)]
    if not those:
        return ""
    tasks = list(dict.fromkeys(task for r in those for task in beats_constant(r.values)))
    constant = f"a constant answer on {' or '.join(tasks)}"
    if len(those) < len(scored):
        return (
            f"{len(those)} of the {len(scored)} finished trials have learned nothing and are on "
            f"no front: their scores are no better than those of {constant}"
        )
    return (
        f"nothing learned: none of the {len(scored)} finished trials scores better than "
        f"{constant}, so that there is no front"
    )


def constant_scores(records: Sequence[Record]) -> list[str]:
    """Tasks on which every mask has the score of a constant answer (`TASK/majority`)."""
    trained = [record for record in records if record.status == "done" and record.scored]
    if len(trained) < FEWEST:
        return []
    if all(map(learned_nothing, trained)):
        return [f"{nothing_learned(records)}; {REMEDY}"]
    beaten = [beats_constant(record.values) for record in trained]
    constants = [
        task
        for task in sorted({task for each in beaten for task in each})
        if len(known := [each[task] for each in beaten if task in each]) >= FEWEST
        and not any(known)
    ]
    if not constants:
        return []
    return [
        f"none of the {len(trained)} masks trained so far scored better on "
        f"{', '.join(constants)} than a constant answer, so that this says nothing about the "
        f"masks: {REMEDY}"
    ]


def repeated_masks(records: Sequence[Record]) -> list[str]:
    """Strategies that draw the same masks again and again."""
    found = []
    drawn = [r for r in records if r.scored and r.role == "trial"]
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


def unlearned_gates(records: Sequence[Record]) -> list[str]:
    """Trained gates that were pruned before attention had learned, or not at all."""
    return [
        f"DAM, trial {record.number}: {words}"
        for record in records
        if isinstance(record.job, OneShot) and record.status == "done"
        for words in warmup_problems(record.values, record.step).values()
    ]


def warmup_problems(values: Mapping[str, float], steps: int) -> dict[str, str]:
    """What the last report of a DAM run says of a warm-up that has found its own end.

    Kinds are `"attention_unlearned"` and `"unsettled"`; none for a run whose warm-up was given.

    Args:
        values: Those of `masksearch.gates.pruning.WarmupWatch.values` among others.
        steps: Optimiser steps of the run.
    """
    if "pruned_steps" not in values:
        return {}
    if not values["pruned_steps"]:
        worth = values.get("attention_worth", 0.0)
        how = "nothing" if not values["attention_learned"] else "too late to be pruned"
        what = f"attention has learned {how} (the loss without it is {max(0.0, worth):.3g} higher)"
        return {
            "attention_unlearned": (
                f"{what}, so no gate was pruned and a mask cut from these gates means nothing; "
                f"{ATTENTION_REMEDY}"
            )
        }
    if not values["settled"]:
        return {
            "unsettled": (
                "gates were pruned before attention had learned: at step "
                f"{steps - int(values['pruned_steps'])} the loss was still falling, so edges that "
                f"it learns later may be gone; {ATTENTION_REMEDY}"
            )
        }
    return {}
