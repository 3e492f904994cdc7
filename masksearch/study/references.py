"""Masks that are named by the run that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch.analysis.pareto import best_record, is_baseline
from masksearch.contracts import Objective, Record
from masksearch.errors import SearchError


def choose_best(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    sparsity: float = 0.0,
    *,
    baselines: bool = False,
) -> Record:
    """`best_record`, or why there is none.

    Raises:
        SearchError: If no finished trial is as sparse; says the sparsest that there is.
    """
    found = best_record(records, objectives, sparsity, baselines=baselines)
    if found is not None:
        return found
    scored = [record for record in records if record.scored]
    counted = [record for record in scored if baselines or not is_baseline(record)]
    problem = f"no finished trial has a sparsity of {sparsity} or more"
    if counted:
        sparsest = max(record.measures["sparsity"] for record in counted)
        raise SearchError(f"{problem}; the sparsest has {sparsest:.4f}")
    if scored:
        raise SearchError(
            f"only baselines have finished ({len(scored)}), nothing that the strategy proposed; "
            "search on, or take a baseline with study.best(baselines=True)"
        )
    raise SearchError(f"{problem}; none has finished")
