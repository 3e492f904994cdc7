"""A proxy card of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masksearch.analysis.proxy_card import ProxyCard, default_goal, judge_proxy, observe
from masksearch.contracts import Objective, Record
from masksearch.errors import SearchError
from masksearch.report.collect import studies_in


def proxy_card(
    runs: Path | str | Sequence[Path | str],
    *,
    proxy: str = "loss",
    target: str | None = None,
    reference: Path | str | None = None,
    bands: int | Sequence[float] | None = None,
    fraction: float = 0.9,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> ProxyCard:
    """How far to trust a short run that judges masks.

    Ranks the masks of finished runs by a cheap measure at every budget and compares that with
    the reference: the same measure at the longest budget, or another one that counts (the GLUE
    score). Within density bands, against the noise ceiling (two seeds).

    Args:
        runs: Run folders of searches and comparisons (or folders that hold several).
        proxy: The reported value that is cheap.
        target: The reported value that counts; None = the proxy at the longest budget.
        reference: Run folder that judges the others; needed where the runs come from several
            protocols (of 200, 800 and 3,200 steps, say). It need not be among `runs`.
        bands: Density bands: None = factors of two, a number = so many of about equally many
            masks, or inner edges in (0, 1).
        fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
        level: Coverage of the bootstrap's intervals, in (0, 1).
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        With `.verdict()`, `.frame`, `.valid_from` and `.to_dict()`.

    Raises:
        SearchError: If a folder holds no run, runs have no curves, protocols are mixed without
            a reference, or fewer than two masks can be compared.
        UnknownNameError: If no run reports such a measure.
        ValueError: If an argument is out of range.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, Path | str) else runs)]
    judge = None if reference is None else Path(reference)
    if judge is not None and all(folder.resolve() != judge.resolve() for folder in folders):
        folders.append(judge)
    if not folders:
        raise SearchError("a proxy card needs at least one run folder")
    records: dict[str, list[Record]] = {}
    objectives: list[Objective] = []
    for folder in folders:
        if not folder.is_dir():
            raise SearchError(f"{folder}: no such run folder")
        studies = studies_in(folder)
        records[str(folder)] = [record for study in studies for record in study.records]
        objectives += [objective for study in studies for objective in study.objectives]
    name = None
    if judge is not None:
        name = next(str(f) for f in folders if f.resolve() == judge.resolve())
    table = observe(records, name)
    goals = {measure: default_goal(measure, objectives) for measure in set(table["measure"])}
    return judge_proxy(
        table,
        proxy=proxy,
        target=target,
        goals=goals,
        bands=bands,
        fraction=fraction,
        level=level,
        resamples=resamples,
        seed=seed,
    )
