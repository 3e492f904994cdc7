"""Results as matplotlib figures, those that a page shows; `figure.savefig("front.pdf")` keeps one.

    from masksearch import plots

    figure = plots.plot_front(ms.open_study("runs/first"))

Sizes and fonts are those of print, whatever your matplotlibrc says.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from masksearch.driver import Comparison, Study
from masksearch.errors import SearchError
from masksearch.report.curves import draw_differences, draw_volume
from masksearch.report.dam import plot_dam as plot_dam
from masksearch.report.fronts import compared_points, draw_front, trial_points
from masksearch.report.pictures import plot_masks as plot_masks
from masksearch.report.section import Section
from masksearch.report.tables import by_origin

__all__ = [
    "plot_comparison",
    "plot_curves",
    "plot_dam",
    "plot_differences",
    "plot_front",
    "plot_masks",
]


def plot_front(study: Study) -> Figure:
    """The finished trials of a search, by what their masks save and how they score, and the front
    of each strategy.

    Raises:
        SearchError: If no trial has finished.
    """
    section = Section(by_origin(study.records()), study.objectives)
    return _drawn(draw_front(trial_points(section), study.objectives), "no trial has finished")


def plot_comparison(comparison: Comparison) -> Figure:
    """The masks of a comparison with their 95% intervals, and the front of each kind.

    Raises:
        SearchError: If no mask has a score.
    """
    points = compared_points(comparison)
    return _drawn(draw_front(points, comparison.objectives), "no mask has a score")


def plot_differences(comparison: Comparison) -> Figure:
    """The declared comparisons: paired differences, with intervals that hold together.

    Raises:
        SearchError: If nothing was compared.
    """
    return _drawn(draw_differences(comparison), "no two masks were compared")


def plot_curves(studies: Mapping[str, Study]) -> Figure:
    """Hypervolume over counted trials and over seconds, a line for each search.

    Args:
        studies: Name -> search; all with the same objectives.

    Raises:
        SearchError: If no mask of theirs dominates anything yet.
    """
    searches = {name: {0: study.records()} for name, study in studies.items()}
    objectives = next(iter(studies.values())).objectives
    return _drawn(draw_volume(searches, objectives), "no mask has a hypervolume yet")


def _drawn(figure: Figure | None, nothing: str) -> Figure:
    """The figure.

    Raises:
        SearchError: If there is none.
    """
    if figure is None:
        raise SearchError(f"there is nothing to draw: {nothing}")
    return figure
