"""How much of a known set of edges trained gates have found."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masksearch.errors import LengthError


class Recovery(NamedTuple):
    """Agreement of edge probabilities with the true edges; both figures lie in [0, 1]."""

    auroc: float  # chance that a true edge ranks above a false one, ties counted half
    precision: float  # share of true edges among the likeliest ones, as many as there are true


def recovery(probabilities: Tensor, edges: Tensor) -> Recovery:
    """Scores gates against the edges of a planted process.

    An edge counts with its largest probability over layers and heads, because one head that
    looks there is enough. The diagonal is left out. Of equally likely edges at the boundary the
    expected share counts, so that gates that say nothing score 0.5 and the share of true edges.

    Args:
        probabilities: float `[layers, heads, n, n]`, or any leading axes.
        edges: bool `[n, n]`, query by key; the diagonal is ignored.

    Raises:
        LengthError: If the two have different lengths.
        ValueError: If no edge off the diagonal is true, or all are, or a probability is NaN.

    >>> edges = torch.eye(3).roll(1, 0) > 0
    >>> recovery(edges.float(), edges)
    Recovery(auroc=1.0, precision=1.0)
    """
    length = edges.shape[-1]
    if edges.shape != (length, length) or probabilities.shape[-2:] != edges.shape:
        raise LengthError(
            f"probabilities {list(probabilities.shape)} do not fit edges {list(edges.shape)}; "
            "both end in n x n"
        )
    off_diagonal = ~torch.eye(length, dtype=torch.bool)
    scores = probabilities.detach().double().cpu().reshape(-1, length, length).amax(0)
    if scores.isnan().any():
        raise ValueError("probabilities hold NaN, which has no place in an order; train again")
    scores, true = scores[off_diagonal], edges.cpu()[off_diagonal]
    count = int(true.sum())
    if count in (0, len(true)):
        raise ValueError(f"recovery needs both true and false edges, got {count} of {len(true)}")
    hits, others = scores[true], scores[~true].sort().values
    below = torch.searchsorted(others, hits)
    not_above = torch.searchsorted(others, hits, right=True)
    auroc = (below + not_above).double().mean() / (2 * len(others))
    boundary = scores.topk(count).values[-1]
    tied = scores == boundary
    above = scores > boundary
    places = count - above.sum()
    found = true[above].sum() + places * true[tied].double().mean()
    return Recovery(auroc.item(), found.item() / count)
