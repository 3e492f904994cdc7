"""Hand-designed schedules of live tokens: fewer keys in each layer, at a given share of the work.

>>> from masksearch import Shape
>>> drawn = token_schedules(0.6, Shape(16, 4, 1, read=1, hidden_size=8, intermediate_size=32))
>>> [*drawn][:3]
['every k-th token, late', 'every k-th token, evenly', 'every k-th token, to [CLS]']
>>> str(drawn["first tokens, late"])
'per_layer([full(), full(), columns(13), columns(6)])'
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from masksearch.masks.core import Mask
from masksearch.masks.leaves import Columns, Full, TokenColumns
from masksearch.masks.live import share_left
from masksearch.masks.measure import ROUNDING
from masksearch.masks.shape import Shape
from masksearch.masks.tables import PerLayer

STEPS = 512  # from [CLS] alone to all tokens in all layers
Thinned = Callable[[float, int, int], float]  # step in [0, 1], layer, layers -> share of tokens
THINNED: dict[str, Thinned] = {
    "late": lambda step, layer, layers: min(1.0, 2.0 ** ((layers + 7) * step - 8 - layer)),
    "evenly": lambda step, layer, layers: max(0.0, 1 - layer * (1 - step)),
    "to [CLS]": lambda step, layer, layers: min(1.0, max(0.0, layers * step - layer)),
}


def token_schedules(limit: float, shape: Shape) -> dict[str, Mask]:
    """Masks of columns, fewer from layer to layer, each with as many as its work allows.

    All keep the first token, [CLS]. Shares are of the tokens of all texts together, so that of a
    short text more may be kept.

    - "every k-th token": the same positions in every text, spread as evenly as can be; "first
      tokens": the same number in every text.
    - "rarest words": the most frequent ids of `shape.tokens` go first. Only where it has some.
    - "late": all tokens up to a layer, then in each half of those before; "evenly": as many less
      in each; "to [CLS]": all tokens up to a layer, then [CLS] alone.
    - ".. and [SEP]": so is the token that ends every row of `shape.tokens`, wherever it stands.

    Args:
        limit: The most that `masks.work` may be.
        shape: An encoder's, with `read` and the sizes of the model.

    Returns:
        Name -> mask, without those whose least member is beyond the limit, each mask once.

    Raises:
        ValueError: If the shape is a decoder's, or all its rows are read, or it has no sizes.
    """
    if shape.causal or shape.read is None:
        raise ValueError(
            "tokens are left out where an encoder's head reads some rows alone: give Shape(.., "
            f"read=1) for [CLS]'s, got causal={shape.causal}, read={shape.read}"
        )
    drawn: dict[str, Mask] = {}
    for kind, ranking in rankings(shape).items():
        for how, share in THINNED.items():
            steps, layers = [step / STEPS for step in range(STEPS + 1)], range(shape.layers)
            at = [[ranking.first(share(t, n, len(layers))) for n in layers] for t in steps]
            price = partial(ranking.work, shape=shape)
            if within := bisect_right(at, limit * (1 + ROUNDING), key=price):
                mask = ranking.mask(at[within - 1])
                drawn |= {} if mask in drawn.values() else {f"{kind}, {how}": mask}
    return drawn


@dataclass(frozen=True)
class Ranking:
    """The order in which positions or words are kept, and the texts whose tokens they are.

    Args:
        ranks: Place of each token's position or word in that order, int64 `[n]`, `[texts, n]`.
        real: Which are no padding, bool `[texts, n]`.
        texts: How many texts of each row the data has, int64 `[texts]`.
        always: Which are kept in any case, bool `[n]`, `[texts, n]`.
        columns: Of how many, from the first on, and of which tokens in any case -> mask.
        special: These tokens.
    """

    ranks: Tensor
    real: Tensor
    texts: Tensor
    always: Tensor
    columns: Callable[[int, list[int]], Mask]
    special: list[int] = field(default_factory=list)

    @cached_property
    def held(self) -> list[float]:
        """The share of the tokens that the first 1, 2, .. hold."""
        weights = self.texts[:, None].expand_as(self.real)[self.real].double()
        held = torch.bincount(self.ranks.expand_as(self.real)[self.real], weights).cumsum(0)
        return (held / held[-1]).tolist()

    def first(self, share: float) -> int:
        """How many hold a share of the tokens, at most."""
        return bisect_right(self.held, share * (1 + ROUNDING))

    def mask(self, counts: list[int]) -> Mask:
        """The mask that keeps so many in each layer."""
        layers = [self.columns(count, self.special) for count in counts]
        whole = len(self.held)  # all that the texts have
        return PerLayer([Full() if n >= whole else m for n, m in zip(counts, layers, strict=True)])

    def work(self, counts: list[int], shape: Shape) -> float:
        """`masks.work` where so many are kept in each layer."""
        last = torch.arange(shape.length) < (shape.read or 1)
        layers = [(self.ranks < count) | self.always | last for count in counts]
        live = torch.stack([(kept & self.real) for kept in [*layers, last]], 1)
        return share_left(live, self.real.sum(1), self.texts, shape)


def rankings(shape: Shape) -> dict[str, Ranking]:
    """Kind -> the order in which it keeps tokens."""
    at, tokens = torch.arange(shape.length), shape.tokens
    lengths, texts = torch.tensor(shape.histogram).unbind(1)
    mirrored = torch.zeros_like(at)  # the digits of a position, the last one first
    for digit in range(bits := shape.length.bit_length()):
        mirrored += ((at >> digit) & 1) << (bits - 1 - digit)
    made = {}
    for kind, order in {"every k-th token": mirrored.argsort(), "first tokens": at}.items():
        columns = partial(_columns, order.tolist())
        made[kind] = Ranking(order.argsort(), at < lengths[:, None], texts, at == 0, columns)
    if tokens is None:
        return made
    real, each = tokens >= 0, torch.ones(len(tokens), dtype=torch.int64)
    ids, words, count = torch.unique(tokens, return_inverse=True, return_counts=True)
    order = torch.where(ids < 0, tokens.numel(), count).argsort(stable=True)  # padding is last
    left_out = partial(_all_but, ids[order].tolist())
    made["rarest words"] = Ranking(order.argsort()[words], real, each, at == 0, left_out)
    ends = torch.unique(tokens.gather(1, real.sum(1, keepdim=True) - 1)).tolist()
    for kind, ranking in [*made.items()] if len(ends) == 1 else []:
        always = (at == 0) | (tokens == ends[0])
        rows = replace(ranking, real=real, texts=each, always=always, special=ends)
        made[f"{kind} and [SEP]"] = rows
    return made


def _columns(order: list[int], count: int, special: list[int]) -> Mask:
    """The columns of the first `count` positions of an order that begins at 0, and some tokens."""
    columns = Columns(positions=order[: max(1, count)])
    return columns | TokenColumns(special) if special else columns


def _all_but(ids: list[int], count: int, special: list[int]) -> Mask:
    """All words but those behind the first `count` of an order, and some tokens."""
    left_out = {token for token in ids[count:] if token >= 0} - {*special}
    return Columns(1) | ~TokenColumns(left_out) if left_out else Full()
