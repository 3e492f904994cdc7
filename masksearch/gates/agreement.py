"""What several DAM runs say together: do seeds agree, and does the control of density work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from masksearch.contracts import generator
from masksearch.gates.bank import Gates, Structure
from masksearch.gates.discretise import at_sparsity

CELLS = 2**20  # of random tables that are drawn in all, about
FEWEST, MOST = 3, 12  # random tables
TOLERANCE = 0.02  # relative move of a density against its control that still counts as noise
BY_PENALTY = ("penalty", "sum")  # controls that are set by a penalty instead of a target


class Agreement(TypedDict):
    """Overlap of the masks of several seeds: intersection over union (IoU), in [0, 1]."""

    seeds: int  # tables that were compared
    density: float  # at which the masks were cut
    iou: float  # mean over the pairs of seeds
    chance: float  # the same for gates with random values
    matched: float  # with the heads of each layer put in the order that agrees best
    matched_chance: float  # the same for gates with random values
    by_pair: list[float]  # in the order (0, 1), (0, 2), .., (1, 2), ..
    matched_by_pair: list[float]


class Point(TypedDict):
    """One run: what its control was set to, and what came of it."""

    asked: float  # penalty, or target density
    density: float
    loss: float | None  # held-out, nats


class Response(TypedDict):
    """How density and loss answer to what the control was set to."""

    control: str  # of DamConfig
    setting: str  # what was varied: "penalty" or "density"
    points: list[Point]  # by `asked`, ascending
    monotone: bool  # more penalty never gives more density; more asked for never gives less
    reversals: list[list[float]]  # pairs of neighbouring settings between which it does


def expected_iou(kept: int, other: int, cells: int) -> float:
    """Mean IoU of two independent sets of `kept` and `other` cells, each uniform at random.

    The overlap o is hypergeometric, so the mean is the sum over o of
    C(other, o) C(cells - other, kept - o) / C(cells, kept) x o / (kept + other - o).
    For many cells this is close to E[o] / (kept + other - E[o]) with E[o] = kept x other / cells;
    at equal density d that is d / (2 - d).

    Returns:
        In [0, 1]; 1 for two empty sets.

    Raises:
        ValueError: If a set is larger than the number of cells, or negative.

    >>> round(expected_iou(1, 1, 4), 3)  # the same one of four cells, or not
    0.25
    """
    if not (0 <= kept <= cells and 0 <= other <= cells):
        raise ValueError(f"sets of {cells} cells hold 0 .. {cells} of them, got {kept}, {other}")
    if kept + other == 0:
        return 1.0
    low, high = max(0, kept + other - cells), min(kept, other)
    overlap = torch.arange(low, high + 1, dtype=torch.float64)

    def log_choose(total: float, part: Tensor) -> Tensor:
        whole = torch.full_like(part, float(total))
        return (whole + 1).lgamma() - (part + 1).lgamma() - (whole - part + 1).lgamma()

    weights = (log_choose(other, overlap) + log_choose(cells - other, kept - overlap)).softmax(0)
    return float((weights * overlap / (kept + other - overlap)).sum())


def iou(one: Tensor, two: Tensor) -> float:
    """Intersection over union of two bool tables of one shape; 1 where both are empty."""
    shared = int((one & two).sum())
    union = int(one.sum()) + int(two.sum()) - shared
    return shared / union if union else 1.0


def matched_heads(one: Tensor, two: Tensor) -> Tensor:
    """For each head of `one` the head of `two` that stands for it, layer by layer.

    Heads of one layer may change places without changing the model, so two seeds that found
    the same need not have it in the same head. The assignment has the largest number of shared
    edges; as the number of edges is given, it also has the largest IoU of the whole tables.

    Args:
        one: bool `[layers, heads, n, n]`.
        two: The same shape.

    Returns:
        int64 `[layers, heads]`, of each layer a permutation of 0 .. heads - 1.
    """
    shared = one.flatten(2).float() @ two.flatten(2).float().mT
    rows = [linear_sum_assignment(layer.numpy(), maximize=True)[1] for layer in shared]
    return torch.stack([torch.from_numpy(row) for row in rows])


def pair_scores(tables: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """IoU of every pair of bool tables: as they stand, and with their heads matched."""
    plain, matched = [], []
    for one, two in itertools.combinations(tables, 2):
        plain.append(iou(one, two))
        order = matched_heads(one, two)
        swapped = two.gather(1, order[:, :, None, None].expand_as(two))
        matched.append(iou(one, swapped))
    return plain, matched


def agreement(
    probabilities: Sequence[Tensor],
    *,
    density: float,
    gates: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Agreement:
    """Compares the masks that several seeds give at one density.

    Chance is what gates with random values would score, cut in the same way. For free gates it
    is `expected_iou`; with heads matched, and for gates that many edges share (whose offsets or
    tiles agree as a whole), it is the mean over all pairs of a few random tables.

    Args:
        probabilities: Two or more float `[layers, heads, n, n]` of one shape, one a seed.
        density: At which the masks are cut, in (0, 1]; below one key a row: 1/n.
        gates: Arguments of the `Gates`, for chance; None = free ones.
        seed: Of the random tables.

    Raises:
        ValueError: If there are fewer than two tables, or they differ in shape.
    """
    shapes = {tuple(table.shape) for table in probabilities}
    if len(probabilities) < 2 or len(shapes) != 1:
        raise ValueError(
            "agreement needs two or more tables of one shape, got "
            f"{len(probabilities)} of {sorted(shapes)}; train the same gates with other seeds"
        )
    (shape,) = shapes
    sparsity = 1 - max(density, 1 / shape[-1])
    plain, matched = pair_scores([at_sparsity(table, sparsity) for table in probabilities])
    cells = torch.Size(shape).numel()
    maker = random_gates(shape, gates or {})
    source = generator(seed, 0xA93E)
    count = max(FEWEST, min(MOST, CELLS // cells))
    drawn = []
    for _ in range(count):
        values = torch.rand(maker.logits.shape, generator=source)
        drawn.append(at_sparsity(maker.table(values), sparsity))
    chance, matched_chance = pair_scores(drawn)
    kept = round((1 - sparsity) * cells)
    free = maker.structure == "free"
    return Agreement(
        seeds=len(probabilities),
        density=1 - sparsity,
        iou=mean(plain),
        chance=expected_iou(kept, kept, cells) if free else mean(chance),
        matched=mean(matched),
        matched_chance=mean(matched_chance),
        by_pair=plain,
        matched_by_pair=matched,
    )


def random_gates(shape: Sequence[int], arguments: Mapping[str, Any]) -> Gates:
    """Gates of that table shape with the structure that the arguments name; free by default."""
    names = ("structure", "signed", "global_count", "block")
    chosen = {name: arguments[name] for name in names if name in arguments}
    if chosen.get("structure", "free") not in get_args(Structure):
        chosen = {}
    return Gates(**chosen, layers=shape[0], heads=shape[1], length=shape[-1])


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return sum(values) / len(values)


def response(
    runs: Sequence[tuple[Mapping[str, Any], float, float | None]],
) -> Response:
    """Whether the density follows its control over several runs.

    Runs with the same setting (other seeds) are averaged before neighbours are compared; a move
    the wrong way by at most 2% counts as noise.

    Args:
        runs: For each run the fields of its `DamConfig`, the density reached in (0, 1], and the
            held-out loss in nats (None = unknown).

    Raises:
        ValueError: If there is no run, or the runs have several controls.
    """
    controls = sorted({str(config["control"]) for config, _, _ in runs})
    if len(controls) != 1:
        raise ValueError(
            f"a response is that of one control, got {', '.join(controls) or 'no run'}; "
            "give the runs of each control on their own"
        )
    setting = "penalty" if controls[0] in BY_PENALTY else "density"
    points = []
    for config, density, loss in runs:
        value = config[setting]
        asked = mean(value) if isinstance(value, Sequence) else value
        points.append(Point(asked=float(asked), density=float(density), loss=loss))
    points.sort(key=lambda point: (point["asked"], point["density"]))
    groups = {
        asked: mean([point["density"] for point in group])
        for asked, group in itertools.groupby(points, key=lambda point: point["asked"])
    }
    reversals = []
    for (low, before), (high, after) in itertools.pairwise(groups.items()):
        more, less = (before, after) if setting == "penalty" else (after, before)
        if more < less * (1 - TOLERANCE):
            reversals.append([low, high])
    return Response(
        control=controls[0],
        setting=setting,
        points=points,
        monotone=not reversals,
        reversals=reversals,
    )
