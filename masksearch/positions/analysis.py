"""Which attention positions matter: effects on the loss, to first order or exact; and
the masks that check by training whether the diagonal does.

found = importance(model, batches, method="drop", per="model", special={"[CLS]": 101})
found.diagonal.mean, found.by_offset, found.special["[CLS]"], found.frame()
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor, nn

from masksearch import masks
from masksearch.contracts import Batch, Shape, mixed_seed
from masksearch.errors import check_name
from masksearch.masks.core import Mask
from masksearch.masks.families import match_density
from masksearch.masks.measure import effective_density
from masksearch.positions.probes import (
    FlippedAttention,
    ThinnedAttention,
    WatchedAttention,
    attached_probe,
    list_batches,
    shape_of,
    special_keys,
)
from masksearch.positions.result import (
    Importance,
    ImportanceSpec,
    Measured,
    Method,
    Per,
    Special,
    build_importance,
    line_sums,
    mean_with_interval,
)
from masksearch.training.loop import finite_loss, on_device

NEAR = 16  # farthest offset that "drop" measures unless it is told others

Unit = tuple[str, int | str]  # ("offset", -1), ("key", 0), ("special", "[CLS]")


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
) -> Importance:
    """Measures how much the positions of the attention matrix matter.

    With P the attention weights, y = P v, and L the loss of a batch:

    - `"gradient"`: -dL/dA of (P * A) v at A = 1, which is -P dL/dP. One backward pass a batch.
    - `"flip"`: the first-order rise of L when that pair is dropped and the others share its
      weight, -P/(1 - P) <dL/dy, v_j - y> (1 - P is taken as 0.1 where it is smaller).
    - `"fisher"`: the mean over sequences of the square of one sequence's slope of L by a bias on
      the pair's score, P (dL/dP - sum_k P_k dL/dP_k): where slopes of both signs cancel in a
      mean, their squares do not. Never negative, and no effect on L.
    - `"drop"`: the rise of L itself when an offset, a key position or a special token is dropped
      and the softmax is taken over the remaining keys. A row that would be empty keeps what it
      has. It takes batches x (1 + units x scopes) forward passes, units being the offsets, keys
      and special tokens, scopes 1, layers, or layers x heads by `per`.

    Positive = taking the pair out raises the loss. Intervals are Student's t over batches, which
    are taken to be equally large. The model runs in eval mode and is left as it was: weights,
    gradients, modes, and the mask on it, under which everything is measured.

    Args:
        model: A Hugging Face model, or a module that contains one, whose `model(**batch).loss`
            is the mean over scored tokens.
        batches: List of dicts of tensors with labels, all of one length n.
        method: See above.
        per: What is kept apart: every `"head"`, every `"layer"`, or nothing (`"model"`).
        signed: False = `"gradient"` and `"flip"` take the absolute value of each pair's effect
            in each sequence before they add up. In a trained model signed effects cancel: some
            sequences want more of a weight, others less.
        special: Name -> token id (or several ids), found wherever it stands in each sequence;
            needs `input_ids` in the batches.
        offsets: Signed offsets (key minus query) of the profile, in -(n - 1) .. n - 1; 0 is
            always added. None = all; for `"drop"` those within 16.
        keys: Key positions of the profile, in 0 .. n - 1. None = all.

    Returns:
        Values `[layers | 1, heads | 1, n, n]` (not for `"drop"`), profiles with intervals, a
        table.

    Raises:
        UnknownNameError: For an unknown method or `per`.
        ValueError: For an offset or key out of range, or batches that cannot be used.
        AttachError: If the model's attention cannot be reached, or gates are on it.
        LengthError: If the batches differ in length.
        NonFiniteLossError: If a loss is NaN or infinite.

    Reference: `"gradient"` is gradient x input (arXiv 1605.01713) with attention weights as the
    input; without the sign, as arXiv 1905.10650 ranks heads. `"fisher"` is the diagonal of the
    empirical Fisher information, as arXiv 1801.05787 prunes channels.
    """
    check_name("importance method", method, get_args(Method))
    check_name("resolution", per, get_args(Per))
    if not signed and method not in ("gradient", "flip"):
        raise ValueError(
            f"signed=False adds up first-order effects and does nothing for method {method!r}; "
            "leave it out, or use method='gradient'"
        )
    listed = list_batches(batches)
    shape = shape_of(model, listed[0])
    last = shape.length - 1
    reach = min(NEAR, last) if method == "drop" else last
    at = {0, *(range(-reach, reach + 1) if offsets is None else offsets)}
    columns = set(range(last + 1) if keys is None else keys)
    for name, of_kind, least in (("offsets", at, -last), ("keys", columns, 0)):
        outside = sorted(unit for unit in of_kind if not least <= unit <= last)
        if outside:
            raise ValueError(
                f"{name} of sequences of {shape.length} positions lie in {least} .. {last}, got "
                f"{outside[0]}; leave it out"
            )
    units = tuple(sorted(at)), tuple(sorted(columns))
    spec = ImportanceSpec(shape, method, per, signed, special or {}, *units)
    if method == "drop":
        return _drop_importance(model, listed, spec)
    return _first_order_importance(model, listed, spec)


def _first_order_importance(
    model: nn.Module, batches: list[Batch], spec: ImportanceSpec
) -> Importance:
    """Importance by `"gradient"`, `"flip"` or `"fisher"`; see `importance`."""
    shape = spec.shape
    size, square = (shape.layers, shape.heads), (shape.length, shape.length)
    calls: list[tuple[int, Tensor, Tensor]] = []  # layer, what has a gradient, valid pairs

    def observe(layer: int, leaf: Tensor, valid: Tensor) -> None:
        calls.append((layer, leaf, valid))

    kind = FlippedAttention if spec.method == "flip" else WatchedAttention
    probe = kind(shape.length, shape.heads, shape.layers, observe)
    values = torch.zeros((), dtype=torch.float64)  # mean of the tables so far
    lines: list[Tensor] = []
    chosen = spec.lines()
    tokens: dict[str, list[Tensor]] = {name: [] for name in spec.special}
    counts = torch.zeros(square, dtype=torch.float64)  # valid pairs of a sequence
    token_counts = dict.fromkeys(tokens, 0.0)
    losses: list[float] = []
    with attached_probe(model, probe, batches[0]), torch.enable_grad():
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, spec.special)
            calls.clear()
            loss = finite_loss(model, batch, number)
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, [leaf for _, leaf, _ in calls])
            table = torch.zeros(*size, *square, dtype=torch.float64)
            onto = {name: torch.zeros(size, dtype=torch.float64) for name in standing}
            for (layer, leaf, valid), grad in zip(calls, grads, strict=True):
                rise = -(grad * leaf.detach()).view(len(valid), shape.heads, *square) * valid
                if spec.method == "fisher":
                    # the loss is a mean: a sequence's own is so many times
                    slope = rise - leaf.detach() * rise.sum(-1, keepdim=True)
                    rise = len(valid) * slope.square()
                rise = rise if spec.signed else rise.abs()
                table[layer] += rise.double().sum(0).cpu()
                share = valid.double().mean(1) / len(calls) / len(batches)
                counts += share.mean(0).cpu()
                for name, at in standing.items():
                    onto[name][layer] += (rise * at[:, None, None]).double().sum((0, 2, 3)).cpu()
                    token_counts[name] += (share * at[:, None]).sum((1, 2)).mean().item()
            calls.clear()
            table = spec.pool(table)
            values = values + (table - values) / (number + 1)
            lines.append(line_sums(table)[..., chosen])
            for name, sums in onto.items():
                tokens[name].append(spec.pool(sums))
    return build_importance(
        spec,
        mean_with_interval(torch.stack(lines)),
        line_sums(counts)[chosen],
        {name: mean_with_interval(torch.stack(effects)) for name, effects in tokens.items()},
        token_counts,
        losses,
        values=values,
        batches=len(batches),
    )


def pairs_of(unit: Unit, length: int, standing: dict[str, Tensor]) -> Tensor:
    """The query-key pairs of an offset, a key or a token: bool `[batch | 1, 1, n, n]`."""
    kind, at = unit
    position = torch.arange(length)
    if kind == "special":
        return standing[str(at)][:, None, None, :].expand(-1, 1, length, length)
    if kind == "offset":
        return (position[None, :] - position[:, None] == int(at))[None, None]
    return (position == int(at)).expand(1, 1, length, length)


@torch.no_grad()
def _drop_importance(model: nn.Module, batches: list[Batch], spec: ImportanceSpec) -> Importance:
    """Importance by `"drop"`; see `importance`."""
    shape, per, special = spec.shape, spec.per, list(spec.special)
    units: list[Unit] = [("offset", at) for at in spec.offsets]
    units += [("key", at) for at in spec.keys]
    units += [("special", name) for name in special]
    layers = [None] if per == "model" else list(range(shape.layers))
    heads = list(range(shape.heads)) if per == "head" else [None]
    effects = torch.zeros(len(batches), len(layers), len(heads), len(units), dtype=torch.float64)
    cells = torch.zeros(len(units), dtype=torch.float64)
    losses: list[float] = []
    probe = ThinnedAttention(shape.length, shape.heads, shape.layers)
    with attached_probe(model, probe, batches[0]):
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, spec.special)
            probe.removed = None
            losses.append(finite_loss(model, batch, number).item())
            for index, unit in enumerate(units):
                pairs = pairs_of(unit, shape.length, standing)
                probe.removed = pairs.to(next(model.parameters()).device)
                probe.cells.clear()
                for row, column in itertools.product(range(len(layers)), range(len(heads))):
                    probe.layer, probe.head = layers[row], heads[column]
                    thinned = finite_loss(model, batch, number).item()
                    effects[number, row, column, index] = thinned - losses[-1]
                cells[index] += sum(probe.cells) / len(probe.cells) / len(batches)
    measured = mean_with_interval(effects)
    fixed = len(spec.offsets) + len(spec.keys)
    return build_importance(
        spec,
        Measured(*(part[..., :fixed] for part in measured)),
        cells[:fixed],
        {
            name: Measured(*(part[..., at] for part in measured))
            for at, name in enumerate(special, start=fixed)
        },
        {name: cells[at].item() for at, name in enumerate(special, start=fixed)},
        losses,
        batches=len(batches),
    )


def diagonal_controls(
    draws: int = 3, seed: int = 0, shape: Shape | None = None
) -> dict[str, Mask]:
    """Full attention, attention without the diagonal, and attention without random keys.

    A random mask drops one key of each query, drawn uniformly (its own one among them), so that
    it drops as many cells, n, and as many in each row, as the diagonal does. All layers and heads
    drop the same ones. For `masksearch.compare`, at a length of at least 2.

    Args:
        draws: Number of random masks (>= 1), named `"without random 0"`, ...
        seed: Seed of the draws.
        shape: The evaluator's, where its sequences are padded: the random masks then drop as
            many of the non-padding query-key pairs as the diagonal has. None = no padding.

    Raises:
        ValueError: If there is no draw, or the shape is causal: the first query of a decoder
            has no other key than its own.

    Reference: SparseBERT, arXiv 2102.12871 (without the diagonal, without random positions).
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if shape is not None and shape.causal:
        raise ValueError(
            "a decoder's first query has no other key than its own, so its diagonal cannot be "
            "left out; take an encoder"
        )

    def without(count: int, draw: int) -> Mask:
        return masks.full() - masks.random_keys(count, draw)

    bare = masks.without_diagonal(masks.full())
    controls = {"full": masks.full(), "without diagonal": bare}
    for draw in range(draws):
        start = mixed_seed(seed, draw) % 2**31
        controls[f"without random {draw}"] = (
            without(1, start)
            if shape is None
            else match_density(without, effective_density(bare, shape), shape, start)
        )
    return controls
