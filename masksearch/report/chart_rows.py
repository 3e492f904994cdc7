"""The rows that a chart is made of, which chart_data.py writes into `result.json`, and that
charts.py and page.js read there. docs/schemas/result.schema.json describes that file for others.

Sparsities are in percent; an end of an interval that is not known is None.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Arm = str  # whose front: a kind of masks, "searched", "random", or "truth"


class PointGroup(TypedDict):
    """Points of one colour and shape."""

    name: str
    colour: str
    shape: str  # matplotlib's marker
    arm: Arm


class Estimate(TypedDict):
    """A point or a step, by its score."""

    id: str  # of the point that is shown for it; "" of none
    score: float
    low: float | None
    high: float | None


class Facts(TypedDict):
    """The facts of a mask, whatever its score."""

    place: str  # how a command line names it: `RUN#7`, or its expression
    expression: str
    short: str  # the expression, cut
    fingerprint: str
    sparsity: float
    saved: float  # of the cost that the chart is drawn over
    table_sparsity: float  # of all n x n cells
    costs: dict[str, float]  # shares of dense attention's, or milliseconds
    picture: list[list[int]] | None  # an image of the result for each layer and head


class Point(Estimate, Facts):
    """A mask: a trial of a search, or a mask of a comparison over its seeds."""

    name: str
    group: str
    search: str  # "" of one that is no trial
    seeds: int
    values: dict[str, list[float | None]]  # of each reported value its mean and interval
    front: bool  # of a search
    nothing: bool  # whether it has learned nothing
    promised: float | None  # the search's own score
    lead: str  # what it stands for where a page begins with it, else ""


class FrontStep(Estimate):
    """A step of a front: the best score from `saved` on."""

    group: str
    arm: Arm
    saved: float


class Level(Estimate):
    """A line across the chart: full attention."""

    label: str


class Score(TypedDict):
    """The objective that a chart is about."""

    name: str
    title: str
    goal: Literal["higher", "lower"]


class FrontChart(TypedDict):
    """Score over what is saved."""

    kind: Literal["front"]
    id: str
    score: Score
    axis: str
    groups: list[PointGroup]
    points: list[Point]
    lines: list[FrontStep]
    levels: list[Level]


class Difference(TypedDict):
    """A declared comparison."""

    label: str
    mask: str
    against: str
    outcome: str
    margin: float | None  # with the sign that a loss has
    mean: float
    low: float
    high: float
    level: float
    adjusted_p: float
    seeds: int
    rows: int


class DifferenceChart(TypedDict):
    """Paired differences, one a row."""

    kind: Literal["differences"]
    id: str
    title: str
    lines: list[Difference]


class ChartStrategy(TypedDict):
    """The searches by one strategy."""

    name: str
    colour: str
    shape: str
    searches: int


class Volume(TypedDict):
    """The hypervolume that a strategy has reached."""

    group: str
    compute: float
    mean: float
    low: float
    high: float


class VolumeChart(TypedDict):
    """Hypervolume over trials or seconds."""

    kind: Literal["hypervolume"]
    id: str
    score: str
    compute: str
    groups: list[ChartStrategy]
    lines: list[Volume]


Chart = FrontChart | DifferenceChart | VolumeChart


class KeptShares(TypedDict):
    """The share that a mask keeps of each layer and head, `[layers, heads]`."""

    id: str
    name: str
    kept: list[list[float]]


class Kept(TypedDict):
    """The masks of a front by what they keep, densest first."""

    masks: list[KeptShares]
    notes: list[str]
    most: float  # the largest share
