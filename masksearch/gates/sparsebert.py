"""The published DAM, as its authors ran it: a reference for comparisons, quirks included.

gates = PublishedGates("toeplitz", length=128, heads=12)      # DAM_s; "symmetric" is DAM_u
loss = model(**batch).loss + published_penalty(gates)         # model with the gates attached

What the official code (github.com/han-shi/SparseBERT, modeling.py, run_pretraining.py,
schedulers.py and the shell scripts; Apache-2.0) does, and this file does too:

- Two logits a gate, drawn from 1e-3 * N(0, 1), per head, one set for all layers. Index 0 of the
  last axis means open. Both get noise -log(Exp(1) + 1e-5), no temperature is used (1, never
  annealed), and the gate is 1 where softmax(logit + noise) puts at least half on index 0.
- The gradient goes straight through to that soft value. One sample serves all layers of one
  forward pass. There is no switch for evaluation: eval mode samples as well.
- DAM_s: edge (i, j) has gate |i - j|; gate 0 is the diagonal. Special tokens have no privilege.
  DAM_u is there in commented-out lines only: a square table whose upper triangle is mirrored,
  with one logit and a plain sigmoid. Here (i, j) and (j, i) share a two-logit gate as in DAM_s.
- (M - 1) * 1e4 is added to the scores. A row without an open gate is thereby dense attention,
  though it counts as empty; only in such rows does a closed gate hear from the task.
- Loss = MLM + NSP, each a mean, unweighted, + lambda * norm(M, 1) over heads x n x n (counted
  once, not per layer). The norm's derivative at 0 is taken as 0, so a closed gate does not hear
  from the penalty either. lambda is 5e-5 in the script, 1e-4 where the model is built alone.
- Optimiser: `Lamb` with its defaults, lr 6e-3. Weights decay by 0.01; biases, norms and gates
  have no decay, hence no layer-wise scaling. The clip to norm 1 counts the gates' gradients too.
- Rate: `published_rate`, for weights and gates alike, from the first step. No dense warm-up.

What the official run does that is left to the caller, or left out:

- BERT-base, 128 positions, 7,038 updates of 65,536 sequences: 8 GPUs with 128 micro-batches of
  64, and a fresh sample of the gates for every micro-batch, so one update averages 128 samples.
  Every GPU starts from the same seed (12439 in the shell script, 42 in the configurations).
  Dropout 0.1. A second phase at 512 positions is scripted, but the table of gates is fixed at 128.
- fp16 weights with fp32 masters: scores near -1e4 are multiples of 8 there, so a fully masked row
  is about uniform; and the L1 sum overflows above density 1/3 (its gradient does not).
- Padding is -1e4 as well, so padded keys behind an open gate tie with real keys behind closed
  ones and leak where a row has nothing better. Here padding is exact: -inf, whatever the gates.
- No rule turns logits into a mask. The checkpoint keeps the last micro-batch's sample and logs
  its mean, the density, under the name sparsity.

Reference: SparseBERT, arXiv 2102.12871, Algorithm 1.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from masksearch.attention.call import AttentionCall
from masksearch.contracts import generator
from masksearch.errors import check_name
from masksearch.gates.estimators import add_to_scores
from masksearch.gates.gates import Gates, Lengths

PublishedStructure = Literal["symmetric", "toeplitz"]
SPREAD = 1e-3  # standard deviation of the first logits
NOISE_FLOOR = 1e-5  # added to the exponential noise; no Gumbel draw exceeds 11.5
MASKED = -1e4  # added to the score of a closed edge


class PublishedGates(Gates):
    """The gates of the published DAM: two logits each, masked by -1e4, empty rows dense.

    In eval mode they are sampled too, as published; only `deterministic` rounds them (a tie is
    open).

    Args:
        structure: `"toeplitz"`: one gate per distance |i - j| (DAM_s); `"symmetric"`: (i, j)
            and (j, i) share one (DAM_u).
        length: Longest sequence, in positions.
        heads: Heads of a layer. All layers share the gates.
        seed: Seed of the first logits and of the sampling noise.
        causal: As for `Gates`; so is `lengths`. They are for the density that is reported and
            for the masks that are cut: the published penalty counts every edge of the table.
        lengths: Tokens -> number of sequences.

    Attributes:
        logits: float `[1, heads, gates, 2]`; index 0 of the last axis: open, 1: closed.

    Raises:
        UnknownNameError: For another structure.
        ValueError: For a length or number of heads below 1.

    Reference: SparseBERT, arXiv 2102.12871; the module docstring lists what was verified.
    """

    def __init__(
        self,
        structure: PublishedStructure = "toeplitz",
        *,
        length: int,
        heads: int,
        seed: int = 0,
        causal: bool = False,
        lengths: Lengths | None = None,
    ) -> None:
        check_name("published structure", structure, get_args(PublishedStructure))
        super().__init__(
            structure,
            length=length,
            heads=heads,
            form="additive",
            initial=0.0,
            seed=seed,
            causal=causal,
            lengths=lengths,
        )
        first = torch.randn((*self.logits.shape, 2), generator=generator(seed, 0x5BE7))
        self.logits = nn.Parameter(SPREAD * first)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        settings = {"structure": self.structure, "seed": self.seed} | self.shape.to_dict()
        del settings["layers"]
        return settings

    def sample(self) -> Tensor:
        """Exactly 0 or 1 for every gate, `[1, heads, gates]`; the gradient of the soft sample."""
        logits = self.logits.float()
        if not self.deterministic:
            noise = torch.empty_like(logits, requires_grad=False)
            noise.exponential_(generator=self.noise_generator(logits.device))
            logits = logits - (noise + NOISE_FLOOR).log()
        soft = logits.softmax(-1)[..., 0]
        hard = (logits[..., 0] >= logits[..., 1]).to(soft.dtype)
        return hard + (soft - soft.detach())

    def compute(self, call: AttentionCall, gate: Tensor) -> Tensor:
        """softmax(score - 1e4 (1 - gate)); a query without an open gate attends to every key."""
        return add_to_scores(call, (1 - gate) * MASKED).attend()

    def open_chance(self, logits: Tensor) -> Tensor:
        """Chance that a gate with these two logits, on the last axis, is open."""
        return (logits[..., 0] - logits[..., 1]).sigmoid()


def published_penalty(gates: Gates, weight: float = 5e-5) -> Tensor:
    """The published density penalty: `weight` x the number of open edges in the drawn sample.

    Only edges that are open in the sample pass a gradient on to their gate: the norm's
    derivative at 0 is 0, here as in the official code. It is a sum, so the same weight counts
    more with more positions or heads; at most 5e-5 x 12 x 128 x 128 = 9.83 in the official run.

    Args:
        gates: Gates with a sample at hand, that is after a forward pass or `draw()`.
        weight: lambda, in nats of loss per edge.

    Returns:
        fp32 scalar.

    Raises:
        RuntimeError: If nothing has been drawn.
    """
    if gates.drawn is None:
        raise RuntimeError(
            "the penalty counts the edges of the drawn sample, and none is there; "
            "run the model with the gates attached and enabled, or call draw(), first"
        )
    drawn = gates.table(gates.drawn) if gates.structure == "block" else gates.drawn
    return weight * drawn.abs().sum()


def published_rate(update: int, updates: int, *, warmup: float = 0.2843) -> float:
    """Factor on the learning rate of an update: a linear rise, then sqrt(1 - progress).

    Where the rise ends the factor falls from 1 to sqrt(1 - warmup); that of the last update is 0.

    Args:
        update: Number of the update, from 1.
        updates: Updates of the whole run (7,038 in the official script).
        warmup: Share of the updates in which the rate rises, in [0, 1].
    """
    progress = update / updates
    return float(progress / warmup if progress < warmup else (1 - progress) ** 0.5)
