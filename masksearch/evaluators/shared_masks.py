"""Where a super-net's masks come from, and how a batch carries several of them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable

import optuna
import torch
import torch.nn.functional as F
from optuna.samplers import RandomSampler
from optuna.trial import BaseTrial
from torch import Tensor, nn

from masksearch.contracts import Shape, mixed_seed
from masksearch.errors import LengthError, MaskSearchError, SearchError
from masksearch.gates.forms import attention_mask
from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.lower import lower
from masksearch.masks.measure import table_fingerprint
from masksearch.results.study_store import quiet

Space = Callable[[BaseTrial], Mask]
ATTEMPTS = 20  # draws of a space that may fail in a row
RENEWED = 256  # draws after which the study behind them is forgotten
SAMPLE = 32  # draws that stand for a space in a digest
DRAWS = 31  # stream of random numbers


class SpaceDraws:
    """Masks drawn from a space at random, each a function of the seed and its number alone.

    A draw that fails (the space raises a `MaskSearchError` or a `ValueError`, returns no mask, or
    one that does not fit the shape) is made again, as a search passes over such a trial.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        shape: What masks are lowered to.
        seed: Seed of all draws.
    """

    def __init__(self, space: Space, shape: Shape, seed: int) -> None:
        self.space, self.shape, self.seed = space, shape, seed
        self.study: optuna.Study | None = None
        self.made = 0

    def table(self, number: int) -> DenseMask:
        """The lowered mask of a draw: bool `[layers, heads, n, n]`.

        Raises:
            SearchError: If it fails 20 times; gives the first reason.
        """
        reasons = []
        for attempt in range(ATTEMPTS):
            try:
                return lower(self.drawn(number, attempt), self.shape)
            except (MaskSearchError, ValueError) as error:
                reasons.append(f"{type(error).__name__}: {error}")
        raise SearchError(
            f"the space gave no mask that fits {self.shape} in {ATTEMPTS} draws; the first "
            f"failed with {reasons[0]}"
        )

    def drawn(self, number: int, attempt: int) -> Mask:
        """One attempt at a draw."""
        with quiet():
            if self.study is None or self.made % RENEWED == 0:
                self.study = optuna.create_study()
            self.made += 1
            seed = mixed_seed(self.seed, DRAWS, number, attempt) % 2**32
            self.study.sampler = RandomSampler(seed=seed)
            mask = self.space(self.study.ask())
        if not isinstance(mask, Mask):
            raise SearchError(
                f"the space returned {type(mask).__name__}, not a Mask (content masks have no "
                "cells to search); end it with for example `return masks.window(reach)`"
            )
        return mask

    def digest(self) -> str:
        """Hash of the space: its source, and the first masks that it draws.

        The masks tell apart what one source makes in two surroundings (other closures, other
        globals, partial applications).
        """
        prints = [table_fingerprint(self.table(number)) for number in range(SAMPLE)]
        return hashlib.sha256("|".join([source_of(self.space), *prints]).encode()).hexdigest()


def source_of(space: Space) -> str:
    """Hash of what a space does: its source, or its byte code where there is no source."""
    text = getattr(space, "masksearch_source", None)
    if text is None:
        try:
            text = inspect.getsource(space)
        except (OSError, TypeError):
            code = getattr(space, "__code__", None)
            text = repr((code.co_code, code.co_consts)) if code else type(space).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class MaskBank(nn.Module):
    """Hard masks on a batch, each row under one of them; `attach` puts it on a model as gates.

    It has no weights: what lies in it is set with `put` before every forward pass.

    Args:
        shape: Of the masks.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.length, self.layers, self.heads = shape.length, shape.layers, shape.heads
        self.tables: Tensor | None = None
        self.rows: Tensor | None = None

    def put(self, tables: Tensor, rows: Tensor) -> None:
        """Sets the masks of the next forward passes.

        Args:
            tables: bool `[masks, layers, heads, n, n]`.
            rows: int64 `[batch]`, the mask of each row.
        """
        self.tables, self.rows = tables, rows

    def draw(self) -> None:
        """Nothing is sampled."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        *,
        dropout: float,
        scaling: float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """One layer's attention, every row under its mask; see `contracts.GateBank.attend`.

        Sequences shorter than the masks use their first positions. A row whose kept keys are all
        invisible (a padded query) has the output 0.

        Raises:
            LengthError: If there are more keys than the masks have.
            ValueError: If the batch has another number of rows than was set.
            RuntimeError: If no masks are set.
        """
        if self.tables is None or self.rows is None:
            raise RuntimeError("no masks are set; call put(tables, rows) before the model")
        queries, keys = query.shape[-2], key.shape[-2]
        if keys > self.length:
            raise LengthError(
                f"these masks hold {self.length} positions, got {keys} keys; searched masks do "
                "not stretch: use batches of that length"
            )
        kept = self.tables[:, layer, :, keys - queries : keys, :keys].to(query.device)
        if len(kept) > 1:
            if len(self.rows) != len(query):
                raise ValueError(
                    f"masks are set for {len(self.rows)} rows, the batch has {len(query)}"
                )
            kept = kept.index_select(0, self.rows.to(query.device))
        if visible is not None:
            kept = kept & visible
        seen = attention_mask(kept, bias, query.dtype)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling
        )


def shared_out(rows: int, masks: int) -> Tensor:
    """Which mask each row of a batch gets, as evenly as can be: int64 `[rows]`.

    >>> shared_out(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return torch.arange(rows) * masks // rows
