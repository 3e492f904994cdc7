"""Switches: gates that choose one of several masks for each layer or head of a model.

With y_o the attention of a unit under level o, the output is y of the level that was drawn: what
the mask will compute. The gate of level o learns from <dL/dy, y_o - y>, which is what moving from
the drawn level towards o does to the loss, exactly to first order. A unit that changes as a whole
is not the sum of its edges, each flipped alone: so this is no sum of the flip gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.contracts import AttentionCall
from masksearch.gates.units import ROUNDING, Allocation, Units, ranked_path


def attend_switched(call: AttentionCall, gate: Tensor, tables: Tensor) -> Tensor:
    """One layer's attention under switches.

    Args:
        call: The layer's.
        gate: float `[units, levels]`: one-hot, or shares of the levels that mix their outputs.
        tables: bool `[levels, heads | 1, queries, keys]`.

    Returns:
        `[batch, heads, queries, head_dim]`.
    """
    units, levels = gate.shape
    heads = call.query.shape[1]
    members = heads // units

    def output(level: Tensor) -> Tensor:
        """Attention where each unit has its level, int64 `[units]`."""
        if units == 1:
            kept = tables[level[0]]
        else:
            each = level.repeat_interleave(members)
            kept = tables.expand(-1, heads, -1, -1)[each, torch.arange(heads, device=each.device)]
        seen = kept[None] if call.visible is None else call.visible & kept
        return replace(call, visible=seen).attend()

    def over_heads(share: Tensor) -> Tensor:
        """A value for each unit, as a factor on outputs."""
        return share.repeat_interleave(members)[:, None, None].to(call.value.dtype)

    values = gate.detach()
    chosen = values.argmax(-1)
    if not torch.equal(values, F.one_hot(chosen, levels).to(values)):
        every = torch.arange(levels, device=gate.device)[:, None].expand(-1, units)
        mixed = [output(every[o]) * over_heads(gate[:, o]) for o in range(levels)]
        return torch.stack(mixed).sum(0)
    drawn = found = output(chosen)
    if not (gate.requires_grad and torch.is_grad_enabled()):
        return drawn
    for further in range(1, levels):
        other = (chosen + further) % levels
        with torch.no_grad():
            difference = output(other) - drawn
        share = gate.gather(-1, other[:, None])[:, 0]
        found = found + over_heads(share - share.detach()) * difference  # adds 0
    return found


def draw_levels(logits: Tensor, noise: torch.Generator | None, temperature: float) -> Tensor:
    """Shares of the levels, float `[.., levels]`: Gumbel's softmax of logits; without noise
    (None) the softmax itself."""
    if noise is None:
        return logits.softmax(-1)
    uniform = torch.rand(logits.shape, generator=noise, device=logits.device)
    gumbel = -(-uniform.clamp_(1e-6, 1 - 1e-6).log()).log()
    return ((logits + gumbel) / temperature).softmax(-1)


def straight_through(shares: Tensor) -> Tensor:
    """The largest share as 1 and the others as 0, with the gradient of the shares."""
    hard = F.one_hot(shares.detach().argmax(-1), shares.shape[-1]).to(shares)
    return hard + (shares - shares.detach())


def entropy_of_levels(probabilities: Tensor) -> Tensor:
    """Mean entropy of the units' choices, in bits."""
    p = probabilities.clamp_min(1e-30)
    return -(p * p.log2()).sum(-1).mean()


# -- from probabilities to masks -----------------------------------------------------------------
def cut_switches(units: Units, probabilities: Tensor, density: float) -> Allocation:
    """The units' levels as the probabilities say, as dense as a budget allows.

    Units rise in the order of log p per share of pairs, along their convex hulls: at every cost
    that is reached this is the likeliest allocation of that cost. Sparser ones are below denser
    ones in every unit.

    Args:
        units: With their levels, from local to full.
        probabilities: float `[layers, units, levels]`.
        density: Mean cost of a unit, in (0, 1].

    Returns:
        The level of each unit.

    Raises:
        ValueError: If all units at their lowest level cost more.
    """
    count = len(units.names)
    worth = probabilities.double().clamp_min(1e-300).log().flatten(0, 1)[:count]
    path = ranked_path(worth.tolist(), units.prices.tolist())
    units.refuse_less(density)
    return [step for step in path if units.density(step) <= density * (1 + ROUNDING)][-1]


def as_shares(units: Units, allocation: Allocation, shape: torch.Size) -> Tensor:
    """An allocation as one-hot shares, float `[layers, units, levels]`."""
    missing = shape[:2].numel() - len(allocation)
    levels = torch.tensor([*allocation, *[units.spared or 0] * missing])
    return F.one_hot(levels, shape[-1]).float().view(shape)
