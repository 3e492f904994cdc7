"""Which attention positions matter, measured in one of four ways.

found = importance(model, batches, method="drop", per="model", special={"[CLS]": 101})
found.diagonal.mean, found.by_offset, found.special["[CLS]"], found.frame()
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import get_args

from torch import nn

from masksearch.contracts import Batch
from masksearch.errors import unknown_name
from masksearch.gates.dam import endless
from masksearch.positions.ablation import Progress, drop_importance
from masksearch.positions.first_order import first_order_importance
from masksearch.positions.instrument import list_batches, shape_of
from masksearch.positions.learned import learned_importance
from masksearch.positions.result import Importance as Importance
from masksearch.positions.result import ImportanceSpec, Method, Per, Special
from masksearch.training.loop import TrainConfig

NEAR = 16  # farthest offset that "drop" measures unless it is told others


def importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    method: Method = "gradient",
    per: Per = "head",
    signed: bool = True,
    special: Special | None = None,
    offsets: Iterable[int] | None = None,
    keys: Iterable[int] | None = None,
    steps: int = 1000,
    lr: float = 2e-3,
    gate_lr: float = 0.02,
    initial: float = 0.0,
    progress: Progress | None = None,
) -> Importance:
    """Measures how much the positions of the attention matrix matter.

    With P the attention weights, y = P v, and L the loss of a batch:

    - `"gradient"`: -dL/dA of (P * A) v at A = 1, which is -P dL/dP. One backward pass a batch.
    - `"flip"`: the first-order rise of L when that pair is dropped and the others share its
      weight, -P/(1 - P) <dL/dy, v_j - y> (1 - P is taken as 0.1 where it is smaller).
    - `"drop"`: the rise of L itself when an offset, a key position or a special token is dropped
      and the softmax is taken over the remaining keys. A row that would be empty keeps what it
      has. It takes batches x (1 + units x scopes) forward passes, units being the offsets, keys
      and special tokens, scopes 1, layers, or layers x heads by `per`.
    - `"learned"`: A = sigmoid(alpha) in (P * A) v, alpha trained together with the weights, from
      the weights that the model has, by AdamW as `train` does; alpha by Adam without decay.

    Positive = taking the pair out raises the loss (`"learned"`: A near 1 = kept). Intervals are
    Student's t over batches, which are taken to be equally large. The first three run in eval
    mode. Whatever the method, the model is left as it was: weights, gradients, modes, and the
    mask on it, under which everything is measured.

    Args:
        model: A Hugging Face model, or a module that contains one, whose `model(**batch).loss`
            is the mean over scored tokens.
        batches: List of dicts of tensors with labels, all of one length n. `"learned"` goes over
            a list as often as it needs, and also takes an iterator of at least `steps` batches.
        method: See above.
        per: What is told apart: every `"head"`, every `"layer"`, or nothing (`"model"`).
        signed: False = `"gradient"` and `"flip"` take the absolute value of each pair's effect
            in each sequence before they add up. In a trained model signed effects cancel: some
            sequences want more of a weight, others less.
        special: Name -> token id (or several ids), found wherever it stands in each sequence;
            needs `input_ids` in the batches.
        offsets: Signed offsets (key minus query) of the profile, in -(n - 1) .. n - 1; 0 is
            always added. None = all; for `"drop"` those within 16.
        keys: Key positions of the profile, in 0 .. n - 1. None = all.
        steps: Optimiser steps of `"learned"`.
        lr: Its peak learning rate of the weights.
        gate_lr: Its learning rate of alpha.
        initial: Its first alpha; 0 starts every scale at 1/2, where alpha moves it most.
        progress: Called by `"drop"` with the forward passes done and in all, first with 0.

    Returns:
        Values `[layers | 1, heads | 1, n, n]` (not for `"drop"`), profiles with intervals, a
        table and a file.

    Raises:
        UnknownNameError: For an unknown method or `per`.
        ValueError: For an offset or key out of range, or batches that cannot be used.
        AttachError: If the model's attention cannot be reached, or gates are on it.
        LengthError: If the batches differ in length.
        NonFiniteLossError: If a loss is NaN or infinite.

    Reference: SparseBERT, arXiv 2102.12871 (`"learned"`; its initial alpha is not known to us).
    `"gradient"` is gradient x input (arXiv 1605.01713) with attention weights as the input;
    without the sign, as arXiv 1905.10650 ranks heads.
    """
    if method not in get_args(Method):
        raise unknown_name("importance method", method, get_args(Method))
    if per not in get_args(Per):
        raise unknown_name("resolution", per, get_args(Per))
    if not signed and method not in ("gradient", "flip"):
        raise ValueError(
            f"signed=False adds up first-order effects and does nothing for method {method!r}; "
            "leave it out, or use method='gradient'"
        )
    if method == "learned" and isinstance(batches, Iterator):
        first = next(batches, None)
        if first is None:
            raise ValueError("importance is learned from batches, got none; pass at least one")
        batches = itertools.chain([first], batches)
        found = [first]
    else:
        batches = found = list_batches(batches)
    shape = shape_of(model, found[0])
    last = shape.length - 1
    reach = min(NEAR, last) if method == "drop" else last
    at = {0, *(range(-reach, reach + 1) if offsets is None else offsets)}
    columns = set(range(last + 1) if keys is None else keys)
    for name, given, least in (("offsets", at, -last), ("keys", columns, 0)):
        outside = sorted(unit for unit in given if not least <= unit <= last)
        if outside:
            raise ValueError(
                f"{name} of sequences of {shape.length} positions lie in {least} .. {last}, got "
                f"{outside[0]}; leave it out"
            )
    units = tuple(sorted(at)), tuple(sorted(columns))
    spec = ImportanceSpec(shape, method, per, signed, special or {}, *units)
    if method == "drop":
        return drop_importance(model, found, spec, progress)
    if method != "learned":
        return first_order_importance(model, found, spec)
    if not (gate_lr > 0 and math.isfinite(initial)):
        raise ValueError(
            f"gate_lr must be above 0 and initial finite, got {gate_lr} and {initial}"
        )
    config = TrainConfig(steps=steps, lr=lr)
    return learned_importance(
        model, endless(batches), found[0], spec, config, gate_lr=gate_lr, initial=initial
    )
