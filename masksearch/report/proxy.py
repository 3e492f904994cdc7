"""A proxy card of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masksearch.analysis.proxy_card import ProxyCard, judge_proxy, observe
from masksearch.errors import SearchError
from masksearch.report.collect import studies_in


def proxy_card(
    runs: Path | str | Sequence[Path | str],
    *,
    proxy: str = "loss",
    target: str | None = None,
    reference: Path | str | None = None,
    bands: int | None = None,
    fraction: float = 0.9,
    resamples: int = 1000,
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
            protocols (of 200, 800 and 3,200 steps, say), each of which is then judged at its
            end. It need not be among `runs`.
        bands: Density bands of about equally many masks; None = factors of two.
        fraction: Share of the noise ceiling that a trusted budget keeps, in (0, 1].
        resamples: Draws of the bootstrap behind the 95% intervals (>= 1).

    Returns:
        With `.verdict()`, `.frame`, `.valid_from` and `.to_dict()`.

    Raises:
        SearchError: If a folder holds no run, runs have no curves, protocols are mixed without
            a reference, or fewer than two masks can be compared.
        UnknownNameError: If no run reports such a measure.
        ValueError: If an argument is out of range.
    """
    folders = [runs] if isinstance(runs, Path | str) else list(runs)
    named = {Path(each).resolve(): str(each) for each in folders}
    judge = (
        None if reference is None else named.setdefault(Path(reference).resolve(), str(reference))
    )
    if not named:
        raise SearchError("a proxy card needs at least one run folder")
    for folder, name in named.items():
        if not folder.is_dir():
            raise SearchError(f"{name}: no such run folder")
    studies = {name: studies_in(Path(name)) for name in named.values()}
    return judge_proxy(
        observe(
            {n: [r for each in found for r in each.records] for n, found in studies.items()}, judge
        ),
        proxy=proxy,
        target=target,
        objectives=[o for found in studies.values() for each in found for o in each.objectives],
        bands=bands,
        fraction=fraction,
        resamples=resamples,
    )
