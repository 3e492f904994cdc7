"""Which exact kernel is the fastest for one layer on this machine, found by running them.

attach(model, mask, backend="fastest")   # calls `fastest` once for each mask and length
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.attention.kernels.choose import Backend, Choice
from masksearch.attention.kernels.custom_op import compute
from masksearch.attention.kernels.states import asks_gradient

if TYPE_CHECKING:
    from masksearch.attention.lowered import Lowered

SECONDS = 0.1  # that each kernel is run for, at least
MOST_TABLE = 1 << 31  # cells of a mask on SDPA, beyond which it is not tried
DENSE = "dense"  # SDPA without our mask, timed for comparison
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Call:
    """One attention call, as a model makes it.

    Args:
        lowered: The layer's mask.
        query: `[batch, heads, n, width]`.
        key: `[batch, key heads, n, width]`.
        value: The same shape.
        visible: bool `[batch, n]`, keys that may be attended; None = all.
        scaling: Factor of the scores.
        dropout: Share of the attention weights that is dropped.
    """

    lowered: Lowered
    query: Tensor
    key: Tensor
    value: Tensor
    visible: Tensor | None
    scaling: float
    dropout: float

    @property
    def length(self) -> int:
        """Positions."""
        return self.query.shape[2]

    @property
    def trains(self) -> bool:
        """Whether a gradient is asked for."""
        return asks_gradient(self.query, self.key, self.value)

    def apart(self) -> Call:
        """The same call on leaves of their own: what is run does not reach the model's graph."""
        states = [
            part.detach().requires_grad_(self.trains)
            for part in (self.query, self.key, self.value)
        ]
        return replace(self, query=states[0], key=states[1], value=states[2])

    def left_out(self) -> dict[str, str]:
        """Backends that cannot compute the call, and why."""
        found = {}
        if (self.lowered.mask.heads or 1) * self.length**2 > MOST_TABLE:
            found["sdpa"] = "its table is too large"
        if self.trains and self.query.device.type == "cpu":
            found["flex"] = "no backward pass on the CPU"
        elif self.dropout > 0:
            found["flex"] = "no dropout"
        return found

    def by(self, backend: str) -> Run:
        """What a backend runs; plans and tables are made now."""
        lowered, device = self.lowered, self.query.device
        states = (self.query, self.key, self.value)
        if backend not in (DENSE, "sdpa"):
            plan = lowered.plan(backend, self.length, device)
            return lambda: compute(
                *states, self.visible, plan, backend, self.scaling, self.dropout
            )
        mask = None if self.visible is None else self.visible[:, None, None]
        table = lowered.table(self.length, device) if backend == "sdpa" else None
        if table is not None:
            mask = table if mask is None else table & mask
        if mask is not None and lowered.causal:
            mask = mask & torch.ones_like(mask).expand(-1, -1, self.length, -1).tril()
        return lambda: F.scaled_dot_product_attention(
            *states,
            mask,
            self.dropout,
            is_causal=mask is None and lowered.causal,
            scale=self.scaling,
            enable_gqa=self.key.shape[1] != self.query.shape[1],
        )


def fastest(call: Call) -> Choice:
    """Runs every exact kernel on the states of one call, and says which took the least time.

    Forward, and backward where the states ask for a gradient. The states, their gradients and
    the generators of random numbers stay as they are. A sparse kernel that the call cannot use,
    or that fails (FlexAttention without a compiler), is left out, and the reason says so.

    Args:
        call: Of a mask that drops something.

    Returns:
        The choice; its ratio is the measured one, over SDPA without the mask.
    """
    lowered, place = call.lowered, (call.length, call.query.device)
    expected, had_table = lowered.choice(*place, call.trains), place in lowered.tables
    call, absent, times = call.apart(), call.left_out(), {}
    devices = [call.query.device] if call.query.device.type == "cuda" else []
    # gradient checkpoints of the model count what is saved: not here
    hooks = torch.autograd.graph.saved_tensors_hooks(unchanged, unchanged)
    with torch.random.fork_rng(devices), hooks if call.trains else nullcontext():
        for backend in (DENSE, "sdpa", "gather", "flex"):
            if backend in absent:
                continue
            try:
                times[backend] = seconds(call.by(backend), call)
            except RuntimeError as error:
                if backend in (DENSE, "sdpa"):
                    raise
                absent[backend] = str(error).strip().splitlines()[0]
    dense = times.pop(DENSE)
    best = min(times, key=lambda backend: times[backend])
    if best != "sdpa" and not had_table:
        lowered.tables.pop(place, None)  # n x n cells that nothing else asked for
    told = [f"{name} {1000 * taken:.3g} ms" for name, taken in times.items()]
    told += [f"{name} left out: {why}" for name, why in absent.items()]
    return replace(
        expected,
        backend=cast(Backend, best),
        reason=f"timed: {', '.join(told)}; without the mask {1000 * dense:.3g} ms",
        ratio=dense / times[best],
        measured=True,
    )


def seconds(run: Run, call: Call) -> float:
    """Median time of a run, with its backward pass where a gradient is asked for."""
    from torch.utils.benchmark import Timer

    states = [part for part in (call.query, call.key, call.value) if part.requires_grad]

    def once() -> object:
        result = run()
        return torch.autograd.grad(result, states, torch.ones_like(result)) if states else result

    once()  # compiles, allocates
    timer = Timer("once()", globals={"once": once}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)


def unchanged(tensor: Tensor) -> Tensor:
    """What is saved for a backward pass, as it is."""
    return tensor
