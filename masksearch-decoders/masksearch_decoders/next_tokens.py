"""Decoders on text: their training, and what they say of every held-out token.

training = NextTokenTraining(text, 16, MachineConfig(), device)
for number in training.steps(model, config, seed, checkpoints):
    ...
scores = score_tokens(model, rows.tokens)
band_means(scores.nll, rows, edges=(16, 64, 256))   # {"at-1-15": 4.1, "back-64-255": 2.7, ..}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores
from masksearch.attention.attach import attach, detach
from masksearch.attention.probe import keeping_modes
from masksearch.contracts import Batch, mixed_seed
from masksearch.errors import NonFiniteLossError
from masksearch.masks.core import Mask
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import (
    TrainConfig,
    autocast,
    move_batches,
    train,
)
from masksearch.training.parts import MachineConfig, Precision
from masksearch_decoders.decoders import LayerStates, NextTokenModel, copy_beside, divergence
from masksearch_decoders.tasks.next_token import NextTokenRows
from masksearch_decoders.tasks.recall import NextTokenTask

DATA, NOISE = 72, 73  # streams of random numbers
TOKENS = 4096  # of a forward pass, about
LOSS, RECALL = "nll", "recall"  # the score; the share of right answers, and its task
TEXT = "text"  # stands beside the groups of tasks


@dataclass(frozen=True)
class NextTokenTraining:
    """Trains decoders on a text.

    Args:
        text: Gives batches.
        batch: Sequences of a batch.
        how: The precision, and the time between checkpoints.
        device: That trains.
    """

    text: NextTokenTask
    batch: int
    how: MachineConfig
    device: torch.device

    def steps(
        self,
        model: NextTokenModel,
        config: TrainConfig,
        seed: int,
        kept: Checkpoints | None,
        *,
        title: str = "",
        teacher: NextTokenModel | None = None,
        memory: dict[str, Any] | None = None,
    ) -> Iterator[int]:
        """Trains all weights of a model in place; gives the number of each step.

        Args:
            model: With its mask on, or without one.
            config: Steps and rate.
            seed: Of the order of the text and of the dropout.
            kept: Where checkpoints are kept; None = nowhere.
            title: What is trained, for a display.
            teacher: Whose predictions are learnt; None = the next token is.
            memory: Plain data that the checkpoints keep.
        """

        def loss(student: nn.Module, batch: Batch) -> Tensor:
            with autocast(batch, self.how.precision):
                output = student(**batch)
                if teacher is None:
                    return cast(Tensor, output.loss)
                with torch.no_grad():
                    target = teacher(**batch).logits
                return divergence(output.logits.float(), target.float()).mean()

        order = mixed_seed(seed, DATA)
        model.requires_grad_(True)
        run = train(
            model,
            lambda start: move_batches(self.text.batches(order, self.batch, start), self.device),
            config,
            loss,
            checkpoints=kept and replace(kept, seconds=self.how.checkpoint_seconds),
            memory=memory,
            noise_seed=mixed_seed(seed, NOISE),
            title=title,
        )
        return (step.number for step in run)


class DenseDecoder:
    """A dense decoder that masks are put on in turn, and what it makes of the judged tokens.

    Args:
        model: Its weights are frozen.
        tokens: Ids `[rows, length]`.
        precision: `"float32"`, or `"bfloat16"` for autocast.
    """

    def __init__(self, model: NextTokenModel, tokens: Tensor, precision: Precision | None) -> None:
        self.model, self.tokens, self.precision = model, tokens, precision

    @contextmanager
    def under(self, mask: Mask) -> Iterator[NextTokenModel]:
        """The model with a mask, which is taken off afterwards."""
        attach(self.model, mask)
        try:
            yield self.model
        finally:
            detach(self.model)

    @cached_property
    def states(self) -> LayerStates:
        """Hidden states of lower layers under the mask before."""
        return LayerStates(self.model, self.tokens.numel())

    @cached_property
    def features(self) -> list[Tensor]:
        """Hidden states without a mask. The model carries one when they are asked for, so they
        come from a copy with the same weights."""
        made = cast(NextTokenModel, detach(copy_beside(self.model), missing_ok=True))
        return _dense_features(made, self.tokens, precision=self.precision)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A decoder's scores on every token of some sequences; the first of a row is not predicted.

    Args:
        nll: Negative log-likelihood of each token, in nats: float32 `[rows, length]`, 0 in front.
        right: Whether the likeliest token is the right one, bool `[rows, length]`; None where
            it is not asked for.
        kl: Divergence of the prediction of each token from the dense model's, in nats; None where
            there is none to compare with.
    """

    nll: Tensor
    right: Tensor | None = None
    kl: Tensor | None = None


@torch.no_grad()
def score_tokens(
    model: NextTokenModel,
    tokens: Tensor,
    *,
    answers: bool = False,
    dense: Sequence[Tensor] | None = None,
    precision: Precision | None = "float32",
    states: LayerStates | None = None,
) -> TokenScores:
    """Judges every token; a table of all logits is never made.

    Args:
        model: With its mask on; its mode is restored.
        tokens: Ids `[rows, length]`.
        answers: Whether `right` is asked for, which costs a fifth of the output layer more.
        dense: `_dense_features` of the same tokens and weights without a mask, for `kl`.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        states: What the model's lower layers made of the same tokens under the mask before.

    Raises:
        NonFiniteLossError: If the model says NaN or infinity of a token.
    """
    device = next(model.parameters()).device
    nll = torch.zeros(tokens.shape)
    right = torch.zeros(tokens.shape, dtype=torch.bool) if answers else None
    kl = None if dense is None else torch.zeros(tokens.shape)
    size = max(1, TOKENS // tokens.shape[1])
    with (
        keeping_modes(model),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        _casts_kept(model),
        nullcontext() if states is None else states.reused(model),
    ):
        model.eval()
        for number, start in enumerate(range(0, len(tokens), size)):
            rows = slice(start, start + size)
            ids = tokens[rows].to(device)
            with nullcontext() if states is None else states.batch(number):
                features = model.features(ids)[:, :-1].flatten(0, 1)
            targets = ids[:, 1:].flatten()
            columns = [torch.empty(len(targets), device=device) for _ in range(2)]
            hits = torch.empty(len(targets), dtype=torch.bool, device=device)
            for part in model.pieces(features):
                logits = model.logits(features[part]).float()
                columns[0][part] = F.cross_entropy(logits, targets[part], reduction="none")
                if answers:
                    hits[part] = logits.argmax(-1) == targets[part]
                if dense is not None:
                    target = model.logits(dense[number].to(device)[part]).float()
                    columns[1][part] = divergence(logits, target)
            shape = (len(ids), -1)
            nll[rows, 1:] = columns[0].view(shape).cpu()
            if right is not None:
                right[rows, 1:] = hits.view(shape).cpu()
            if kl is not None:
                kl[rows, 1:] = columns[1].view(shape).cpu()
    if not torch.isfinite(nll).all():
        row, at = (int(index) for index in (~torch.isfinite(nll)).nonzero()[0])
        raise NonFiniteLossError(
            f"the model's loss at token {at} of held-out sequence {row} is "
            f"{nll[row, at].item()}; its weights are damaged, or overflow in this precision "
            "(precision='float32')"
        )
    return TokenScores(nll, right, kl)


@contextmanager
def _casts_kept(model: nn.Module) -> Iterator[None]:
    """Autocast casts each weight once, not at every use: it keeps what it has cast of those alone
    that require a gradient, which no frozen weight does."""
    frozen = [each for each in model.parameters() if not each.requires_grad]
    try:
        for each in frozen:
            each.requires_grad_(True)
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


@torch.no_grad()
def _dense_features(
    model: NextTokenModel, tokens: Tensor, *, precision: Precision | None = "float32"
) -> list[Tensor]:
    """The features of a model without a mask, one tensor for each forward pass of `score_tokens`,
    on the CPU: 4 bytes for each token and number of a hidden state."""
    device = next(model.parameters()).device
    size, passes = max(1, TOKENS // tokens.shape[1]), list[Tensor]()
    with (
        keeping_modes(model),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        model.eval()
        for start in range(0, len(tokens), size):
            features = model.features(tokens[start : start + size].to(device))
            passes.append(features[:, :-1].flatten(0, 1).cpu())
    return passes


def band_edges(length: int) -> tuple[int, ...]:
    """Powers of 4 from 16, below the length.

    >>> band_edges(512)
    (16, 64, 256)
    """
    return tuple(4**power for power in range(2, 16) if 4**power < length)


def _band_means(values: Tensor, rows: NextTokenRows, edges: Sequence[int]) -> dict[str, float]:
    """Means over the scored tokens of each band that has any.

    Args:
        values: Of each token, `[rows, length]`.
        rows: The tokens.
        edges: Rising, in positions, each the first of a band.

    Returns:
        `"at-16-63"`: tokens with 16 to 63 others before them; `"back-16-63"`: tokens whose nearest
        evidence (`NextTokenRows.needs`) lies so far back; `"new"`: tokens without any.
    """
    length, scored = values.shape[1], rows.labels != -100
    bounds = [*(edge for edge in edges if 1 < edge < length), length]
    at = torch.arange(length).expand(values.shape)
    means: dict[str, float] = {}
    for kind, distance in (("at", at), ("back", rows.needs)):
        for first, end in zip([1, *bounds], bounds, strict=False):
            chosen = scored & (distance >= first) & (distance < end)
            if chosen.any():
                means[f"{kind}-{first}-{end - 1}"] = values[chosen].double().mean().item()
    new = scored & (rows.needs == 0)
    if new.any():
        means["new"] = values[new].double().mean().item()
    return means


def document_scores(values: Tensor, rows: NextTokenRows) -> NDArray[np.float64]:
    """A mean over scored tokens, document by document; the mean over documents is that mean.

    Documents have different numbers of tokens, so the mean over tokens is a ratio of two means. A
    document's score is the mean and what the document adds to it: the sum of its values' distances
    from the mean, over the mean number of a document's tokens. So an interval over documents is
    that of the ratio.

    Args:
        values: Of each token, `[rows, length]`.
        rows: The tokens, and the document of each row.

    Returns:
        `[documents]`.

    Reference: Cochran, Sampling Techniques, 3rd edition, Section 2.11 (ratio estimates).
    """
    scored = rows.labels != -100
    _, of = np.unique(rows.documents, return_inverse=True)
    sums = np.bincount(of, (values * scored).double().sum(1).numpy())
    counts = np.bincount(of, scored.sum(1).numpy())
    mean = sums.sum() / counts.sum()
    scores: NDArray[np.float64] = mean + (sums - mean * counts) / counts.mean()
    return scores


def row_scores(values: Tensor, rows: NextTokenRows) -> RowScores:
    """`document_scores` for a file beside the reports."""
    return RowScores(
        {"text": document_scores(values, rows)}, {"text": 1.0}, {"text": rows.digest()}
    )


def token_values(
    scores: TokenScores, rows: NextTokenRows, edges: Sequence[int]
) -> dict[str, float]:
    """A report's values: the loss, its means over bands of tokens and, where they are known, the
    divergence and the answers.

    Args:
        scores: What a model says of the tokens.
        rows: The tokens.
        edges: As of `_band_means`.
    """
    means = {LOSS: float(document_scores(scores.nll, rows).mean())}
    means |= {
        f"{LOSS}/{band}": mean for band, mean in _band_means(scores.nll, rows, edges).items()
    }
    if scores.kl is not None:
        means["kl"] = float(document_scores(scores.kl, rows).mean())
    if rows.answers is not None and scores.right is not None:
        means[RECALL] = scores.right[rows.answers].double().mean().item()
        means[f"{LOSS}/{RECALL}"] = scores.nll[rows.answers].double().mean().item()
    return means


def task_values(name: str, scores: TokenScores, rows: NextTokenRows) -> dict[str, float]:
    """The share of a task's answers that are right in full, and the loss of their tokens."""
    assert scores.right is not None
    assert rows.answers is not None
    whole = (scores.right | ~rows.answers).all(1)
    loss = scores.nll[rows.answers].double().mean().item()
    return {name: whole.double().mean().item(), f"{LOSS}/{name}": loss}


def constant_loss(text: NextTokenTask, rows: NextTokenRows) -> float:
    """The loss of a guess by token frequencies of the training text, in nats a token."""
    share, labels = text.frequencies.log(), rows.labels
    return -share[labels[labels != -100]].mean().item()
