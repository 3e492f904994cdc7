"""What layers or heads of a trained model are worth, by its attention weights or gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import unknown_name
from masksearch.masks.measure import pair_weights
from masksearch.positions.analysis import importance
from masksearch.positions.attention_maps import attention_maps
from masksearch.strategies.units import Units

METHODS = ("mass", "gradient", "flip")


def score_units(
    units: Units,
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    method: Literal["mass", "gradient", "flip"] = "mass",
) -> dict[str, list[float]]:
    """Scores for `strategy="allocate"` from a trained model, without judging a mask.

    Args:
        units: The layers or heads, and their masks.
        model: As in `importance`; trained, with dense attention.
        batches: List of dicts of tensors, all of the units' length; with labels, except for
            `"mass"`.
        method: What a pair is worth that only the larger mask keeps: its mean attention weight
            (`"mass"`), or to first order the rise of the loss without it (`"gradient"`, `"flip"`:
            see `importance`).

    Returns:
        Unit -> a number for each level, from local to full: `strategy_options={"score": ..}`.

    Raises:
        UnknownNameError: For another method.
        ValueError: If the model has another number of layers or heads than the units, or the
            batches another length; and as `importance`.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    values: Tensor | None
    if method == "mass":  # of rare pairs of long sequences, less
        values = attention_maps(model, batches).maps * pair_weights(units.shape)
    else:
        values = importance(model, batches, method=method, per="head").values
    assert values is not None
    return units.scores_of(values)
