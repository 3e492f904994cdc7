"""Units by the first-order effect of their pairs: gradient x attention, or single flips.

score_units(judge, units, first_order, seed=0)          # or flip

A unit that changes as a whole is not the sum of its pairs, each changed alone: in experiments 11
and 14 both are the worst selectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import nn

import masksearch as ms
from experiments.rivals.trained_models import Scores
from masksearch.contracts import Batch


def first_order(
    units: ms.Units, model: nn.Module, batches: Sequence[Batch], *, method: str = "gradient"
) -> Scores:
    """The sum over the pairs of `ms.importance`.

    Args:
        units: The layers or heads, and their masks.
        model: Trained, without a mask.
        batches: All of one length, at most the units'; with labels.
        method: `"gradient"` or `"flip"`.
    """
    values = ms.importance(model, batches, method=method).values
    missing = units.shape.length - values.shape[-1]
    return units.scores_of(F.pad(values, (0, missing, 0, missing)))


flip = partial(first_order, method="flip")
