"""What one layer's mask is lowered to: a table, or the plan of a sparse backend.

Lowering happens at the length of each input and is kept for a few lengths. Layers with equal
masks share one `Lowered`. While a graph is traced (torch.compile, torch.export, torch.jit.trace)
or torch.func transforms the model, lowering runs outside of that: a table is a constant there.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from masksearch.attention.kernels.choose import BLOCK, SHORTEST, Choice, choose
from masksearch.errors import EmptyRowError
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Causal
from masksearch.masks.lower import no_empty_rows, row_counts
from masksearch.masks.stacks import Cropped

LENGTHS = 8  # lengths that are kept; generation asks for a new one at every token
NUMBERS = itertools.count()
T = TypeVar("T")


class Lowered:
    """What one distinct mask of a model is lowered to.

    Args:
        mask: The mask of one layer.
        causal: Whether the model hides later keys from it.
        where: Part and layer, for errors.
        backend: One of `choice.REQUESTS`.
        heads: Query heads of the layer.
        width: Numbers of a head's query.
        plain: Whether it is self-attention without a bias, which sparse backends compute.

    Tables and plans are made outside of inference mode, whose tensors no backward pass could use,
    and tables outside of everything else that records or transforms what is computed (`apart`).

    Attributes:
        by_length: Whether cells of the mask change with the length.
        key: Its name in `LOWERED`; a string, which Dynamo never makes a symbol.
        tables: (length, device) -> bool `[1, heads | 1, n, n]`; None = everything is kept.
        choices: (length, device, whether a gradient is needed) -> what computes.
        plans: (backend, length, device) -> plan.
    """

    def __init__(
        self,
        mask: Mask,
        causal: bool,
        where: str,
        backend: str = "auto",
        heads: int = 1,
        width: int = 1,
        plain: bool = True,
    ) -> None:
        self.mask, self.causal, self.where = mask, causal, where
        self.backend, self.heads, self.width, self.plain = backend, heads, width, plain
        self.by_length = depends_on_length(mask)
        self.tables: dict[tuple[int, torch.device], Tensor | None] = {}
        self.corners: set[tuple[int, int, int]] = set()
        self.choices: dict[tuple[int, torch.device, bool], Choice] = {}
        self.plans: dict[tuple[str, int, torch.device], Any] = {}
        self.key = str(next(NUMBERS))
        LOWERED[self.key] = self

    @property
    def seen(self) -> Mask:
        """The mask with the model's causality in it."""
        return self.mask & Causal() if self.causal else self.mask

    def forget_beyond(self, length: int) -> None:
        """Makes room for another length."""
        held = dict.fromkeys([n for n, _ in self.tables])
        held |= dict.fromkeys([n for n, _, _ in self.choices])
        held |= dict.fromkeys([n for _, n, _ in self.plans])
        for old in list(held)[: max(0, len(held.keys() - {length}) + 1 - LENGTHS)]:
            self.tables = {k: v for k, v in self.tables.items() if k[0] != old}
            self.choices = {k: v for k, v in self.choices.items() if k[0] != old}
            self.plans = {k: v for k, v in self.plans.items() if k[1] != old}
            self.corners = {k for k in self.corners if max(k[1:]) != old}

    def table(self, length: int, device: torch.device) -> Tensor | None:
        """Bool `[1, heads | 1, n, n]`, or None where everything is kept.

        Raises:
            EmptyRowError: If a query keeps no key, by itself or because the model is causal.
            LengthError: If the mask has another length.
        """
        if (length, device) not in self.tables:
            made = apart(lambda: self.made(length, device, judged=True))
            self.forget_beyond(length)
            self.tables[length, device] = made
        return self.tables[length, device]

    def made(self, length: int, device: torch.device, judged: bool) -> Tensor | None:
        """A new table, or None where everything is kept."""
        table = self.mask.dense(length)[0]
        if judged and isinstance(self.mask, Cropped):  # its rows are judged at its own length
            self.judge(self.mask.of.dense(self.mask.at)[0])
        elif judged:
            self.judge(table)
        return None if table.all() else table[None].to(device)

    def judge(self, table: Tensor) -> None:
        """Refuses empty rows of a table `[heads | 1, n, n]`."""
        no_empty_rows(table[None])
        if self.causal:
            self.refuse(~table.tril().any(-1))

    def judge_tiles(self, length: int) -> None:
        """Refuses empty rows without a table of all cells."""
        if isinstance(self.mask, Cropped):
            length = self.mask.at
        mask = self.mask.of if isinstance(self.mask, Cropped) else self.mask
        for kept in [mask, mask & Causal()] if self.causal else [mask]:
            empty = row_counts(kept, length)[0] == 0
            if kept is mask:
                no_empty_rows(~empty[None, :, :, None])
            else:
                self.refuse(empty)

    def refuse(self, empty: Tensor) -> None:
        """Refuses rows, bool `[heads | 1, n]`, that keep only what causality hides."""
        if empty.any():
            head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"{self.where}, head {head}, row {row} keeps only later keys, and the model is "
                f"causal: causality hides every one of them ({int(empty.sum())} such rows of "
                f"{empty.numel()}); add for example masks.window(0), the diagonal"
            )

    def corner(self, length: int, device: torch.device, rows: slice, keys: int) -> Tensor | None:
        """The table for cross-attention, of which only those rows and keys are judged."""
        if (length, device) not in self.tables:
            made = apart(lambda: self.made(length, device, judged=False))
            self.forget_beyond(length)
            self.tables[length, device] = made
        table = self.tables[length, device]
        asked = (rows.start, rows.stop, keys)
        if table is not None and asked not in self.corners:
            apart(lambda: self.judge_corner(table[0, :, rows, :keys], rows.start))
            self.corners.add(asked)
        return table

    def judge_corner(self, some: Tensor, first: int) -> None:
        """Refuses empty rows of a corner, bool `[heads | 1, queries, keys]`."""
        empty = ~some.any(-1)
        if empty.any():
            head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"{self.where}, head {head}: query {first + row} keeps none of the "
                f"{some.shape[-1]} keys of the encoder; rows are the decoder's positions, columns "
                "the encoder's: add for example masks.global_tokens(1)"
            )

    def choice(self, length: int, device: torch.device, trains: bool) -> Choice:
        """What computes a self-attention call over whole sequences of that length."""
        if (length, device, trains) not in self.choices:
            sizes = {"heads": self.heads, "width": self.width, "device": device}
            asked: dict[str, Any] = {**sizes, "trains": trains, "requested": self.backend}
            made = choose(self.mask, length, **asked)
            if self.causal and made.backend != "dense":
                made = choose(self.seen, length, **asked)
            self.forget_beyond(length)
            self.choices[length, device, trains] = made
        return self.choices[length, device, trains]

    def unmeasured(self, length: int, device: torch.device, trains: bool) -> bool:
        """Whether the kernels are still to be timed for such a call."""
        if self.backend != "fastest" or torch.compiler.is_compiling():
            return False
        made = self.choice(length, device, trains)
        return not made.measured and made.backend != "dense"

    def may_be_sparse(self, length: int) -> bool:
        """Whether a sparse backend is considered at all at that length."""
        asked = self.backend not in ("auto", "fastest")
        return self.backend != "sdpa" and (asked or length >= SHORTEST)

    def sparse(self, length: int, device: torch.device, trains: bool) -> str:
        """`"gather"` or `"flex"` where such a call is computed by it, else empty."""
        backend = self.choice(length, device, trains).backend
        return backend if backend in ("gather", "flex") else ""

    @torch.inference_mode(False)
    def plan(self, backend: str, length: int, device: torch.device) -> Any:
        """The `GatherPlan` or `FlexPlan` of the mask with the model's causality.

        Raises:
            EmptyRowError: As `table`.
        """
        if (backend, length, device) not in self.plans:
            self.judge_tiles(length)
            if backend == "gather":
                from masksearch.attention.kernels.gather import GatherPlan

                plan: Any = GatherPlan.of_mask(self.seen, length, BLOCK).to(device)
            else:
                from masksearch.attention.kernels.flex import FlexPlan

                plan = FlexPlan.of_mask(self.seen, length, BLOCK, device=str(device))
            self.forget_beyond(length)
            self.plans[backend, length, device] = plan
        return self.plans[backend, length, device]

    def __getstate__(self) -> dict[str, Any]:
        names = ("mask", "causal", "where", "backend", "heads", "width", "plain")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


LOWERED: weakref.WeakValueDictionary[str, Lowered] = weakref.WeakValueDictionary()


def apart(make: Callable[[], T]) -> T:
    """What `make` returns, computed in a thread of its own.

    Whatever records or transforms computations does so in one thread: torch.export and its fake
    tensors, torch.jit.trace, torch.func, inference mode, a default device. In a new thread there
    is none of it.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()


def depends_on_length(mask: Mask) -> bool:
    """Whether cells of the mask change with the length (random keys that are not cropped)."""
    if isinstance(mask, Cropped):
        return False
    if not mask.parts:  # a leaf that is resolved at each length
        return type(mask).resolve is not Mask.resolve
    return any(depends_on_length(part) for part in mask.parts)


# -- outside of the graph ----------------------------------------------------------------------
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def lowered_table(key: str, length: int, device: torch.device) -> Tensor | None:
    """`Lowered.table` of the one with that key."""
    return LOWERED[key].table(length, device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def lowered_corner(
    key: str, length: int, device: torch.device, start: int, stop: int, keys: int
) -> Tensor | None:
    """`Lowered.corner` of the one with that key."""
    return LOWERED[key].corner(length, device, slice(start, stop), keys)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def lowered_backend(key: str, length: int, device: torch.device, trains: bool) -> str:
    """`Lowered.sparse` of the one with that key."""
    return LOWERED[key].sparse(length, device, trains)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def lowered_plan(key: str, backend: str, length: int, device: torch.device) -> bool:
    """Makes `Lowered.plan` of the one with that key; an operator of the graph finds it."""
    return LOWERED[key].plan(backend, length, device) is not None


def left_to_sdpa() -> str:
    """Why SDPA must compute a call because of what is done with its model; empty where not.

    A graph that leaves this process, or that only torch reads, cannot find a plan.
    """
    if torch.compiler.is_compiling():
        return "the model is exported: SDPA computes" if torch.compiler.is_exporting() else ""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace records the model: SDPA computes"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the model: SDPA computes"
    return ""


def whole(number: int) -> int:
    """The same number; under Dynamo a constant, because a mask is lowered at one length."""
    return len(range(number))
