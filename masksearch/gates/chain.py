"""What each step from trained gates to a mask costs, with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.gates.bank import Gates
from masksearch.gates.discretise import at_sparsity

SAMPLES = 4  # samples of the gates whose losses are averaged


@torch.no_grad()
def loss_chain(
    model: nn.Module,
    gates: Gates,
    loss: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    density: float,
) -> dict[str, float]:
    """Mean loss over the batches in eval mode, under four readings of the same gates.

    Args:
        model: With the gates on it.
        gates: Left as they were.
        loss: Loss of a batch.
        batches: At least one.
        density: Of the mask that is cut; at least one key a row.

    Returns:
        In nats: `relaxed` (every gate at its probability), `sampled` (mean over four samples),
        `held_out` (every gate rounded), `discretised` (the mask of exactly that density).
    """
    training, gate_training = model.training, gates.training
    before = (gates.form, gates.deterministic, gates.enabled)
    source = gates.source(gates.logits.device)
    state = source.get_state()

    def mean() -> float:
        return sum(loss(batch).item() for batch in batches) / len(batches)

    model.eval()
    gates.enabled = True
    probabilities = gates.probabilities()
    found: dict[str, float] = {}
    try:
        gates.fixed = probabilities
        if gates.form == "flip":  # which rounds
            gates.form = "log"
        found["relaxed"] = mean()
        gates.form, gates.fixed = before[0], None
        gates.train()
        gates.deterministic = False
        found["sampled"] = sum(mean() for _ in range(SAMPLES)) / SAMPLES
        gates.eval()
        gates.deterministic = True
        found["held_out"] = mean()
        cut = at_sparsity(probabilities.cpu(), 1 - max(density, 1 / gates.length))
        gates.fixed = cut.to(probabilities)
        found["discretised"] = mean()
    finally:
        gates.fixed = None
        gates.form, gates.deterministic, gates.enabled = before
        source.set_state(state)
        model.train(training)
        gates.train(gate_training)
    return found
