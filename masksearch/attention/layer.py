"""One attached layer: its mask lowered at each length, and where its queries stand.

The normal path, an encoder: `LayerState.kept` asks its `LayerMask` for the table at the length of
the input, bool [1, heads | 1, n, n], or interface.py asks it for the plan of a sparse kernel.
Either is made at the first call of a length and found at the next. Layers with equal masks share
one `LayerMask`.

The rest serves what is not the normal path: generation, where queries and keys come with a cache
(`SequencePositions`), cross-attention, of whose table a corner is taken, and graphs that
torch.compile or torch.export make, in which a table is a constant (`graph_function`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from masksearch.attention.kernels.choose import (
    BLOCK,
    NUMBERS,
    SHORTEST,
    SOURCES,
    KernelChoice,
    choose,
)
from masksearch.attention.kernels.flex import FlexPlan
from masksearch.attention.kernels.plan import GatherPlan
from masksearch.attention.tokens import TokenMask
from masksearch.errors import AttachError, EmptyRowError
from masksearch.masks.checks import no_empty_rows
from masksearch.masks.core import Mask, Points
from masksearch.masks.leaves import Causal
from masksearch.masks.lower import refuse_longer, row_counts
from masksearch.masks.tables import Cropped

if TYPE_CHECKING:
    from masksearch.attention.call import GateBank

STATE = "masksearch_layer"  # where an attention module carries its LayerState, in its __dict__
LENGTHS = 8  # lengths that are kept; generation asks for a new one at every token
T = TypeVar("T")


class LayerMask:
    """One distinct mask of a model, lowered: tables, choices of a kernel, and plans.

    A table of n positions serves shorter inputs by its upper left corner, which is what padding
    them to n computes for the real tokens.

    Args:
        mask: The mask of one layer.
        causal: Whether the model hides later keys from it.
        where: Part and layer, for errors.
        backend: One of `choose.REQUESTS`.
        plain: Whether it is self-attention without a bias, which sparse kernels compute.
        heads: Query heads of the layer.

    Attributes:
        given: The mask as it was given; `mask` is its corner where it has only one length.
        lowered: Length -> (what, ..) -> table, choice or plan, of the last lengths.
        key: Its name in `SOURCES`, by which a graph finds it.
    """

    def __init__(
        self,
        mask: Mask,
        causal: bool,
        where: str,
        backend: str = "auto",
        plain: bool = True,
        heads: int = 1,
    ) -> None:
        self.given, self.causal, self.where = mask, causal, where
        self.mask = mask if mask.length is None else Cropped(mask, mask.length)
        self.backend, self.plain, self.heads = backend, plain, heads
        self.by_length = depends_on_length(self.mask)
        self.lowered: dict[int, dict[tuple[Any, ...], Any]] = {}
        self.key = str(next(NUMBERS))
        SOURCES[self.key] = self
        self.in_graph = graph_function(self.key)

    @property
    def seen(self) -> Mask:
        """The mask with the model's causality in it."""
        return self.mask & Causal() if self.causal else self.mask

    def lower(self, make: Callable[[], T], length: int, *what: Any) -> T:
        """Calls `make` once for each length and purpose, and keeps its result.

        It is made in a thread of its own, because whatever records or transforms computations
        does so in one thread: torch.export and its fake tensors, inference mode, torch.func,
        torch.jit.trace, a default device. In a new thread there is none of it.
        """
        forms = self.lowered.get(length, {})
        if what not in forms:
            refuse_longer(self.given, length, self.where)
            with ThreadPoolExecutor(1) as pool:
                forms[what] = pool.submit(make).result()
            self.lowered[length] = forms
            for oldest in list(self.lowered)[:-LENGTHS]:  # another thread may do so as well
                self.lowered.pop(oldest, None)
        value: T = forms[what]
        return value

    def table(self, length: int, device: torch.device) -> Tensor | None:
        """Bool `[1, heads | 1, n, n]`, or None where everything is kept.

        Raises:
            EmptyRowError: If a query keeps no key, by itself or because the model is causal.
            LengthError: If the mask is shorter.
        """

        def make() -> Tensor | None:
            self._refuse_empty_rows(length)
            table = self.mask.dense(length)[0]
            return None if table.all() else table[None].to(device)

        return self.lower(make, length, "table", device)

    def cells(self, query: Tensor, key: Tensor, length: int) -> Tensor:
        """Those of some queries and keys, bool `[1, heads | 1, queries, keys]`.

        Args:
            query: int64 `[queries, 1]`, positions.
            key: int64 `[1, keys]`, likewise.
            length: Positions of the whole.
        """
        heads = range(self.mask.heads or 1)
        tables = [self.mask.allows(Points(query, key, length, 0, head)) for head in heads]
        return torch.stack([one.expand(len(query), key.shape[1]) for one in tables])[None]

    def _refuse_empty_rows(self, length: int) -> None:
        """Raises EmptyRowError where a query keeps no key, without a table of all cells."""
        mask = self.mask
        if isinstance(mask, Cropped):  # its rows are judged at its own length
            length, mask = mask.at, mask.of
        empty = row_counts(mask, length)[0] == 0
        no_empty_rows(~empty[None, :, :, None])
        if not self.causal:
            return
        empty = row_counts(mask & Causal(), length)[0] == 0
        if empty.any():
            head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"{self.where}, head {head}, row {row} keeps only later keys, and the model is "
                f"causal: causality hides every one of them ({int(empty.sum())} such rows of "
                f"{empty.numel()}); add for example masks.window(0), the diagonal"
            )

    def choose(
        self, length: int, device: torch.device, trains: bool, dtype: torch.dtype
    ) -> KernelChoice:
        """Chooses the kernel of a self-attention call over whole sequences of that length."""
        refuse_longer(self.given, length, self.where)
        asked: dict[str, Any] = {
            "device": device,
            "trains": trains,
            "dtype": dtype,
            "requested": self.backend if self.plain else "sdpa",
        }
        choice = choose(self.mask, length, **asked)
        if self.causal and choice.backend != "dense":  # else the model's own causality is enough
            choice = choose(self.seen, length, **asked)
        return choice

    def may_be_sparse(self, length: int) -> bool:
        """Whether a sparse kernel is considered at all at that length."""
        long = self.backend == "auto" and length >= SHORTEST
        return long or self.backend in ("gather", "flex")

    def sparse_backend(
        self, length: int, device: torch.device, trains: bool, dtype: torch.dtype
    ) -> str:
        """`"gather"` or `"flex"` where such a call is computed by it, else empty."""
        asked = (device, trains, dtype)
        backend = self.lower(lambda: self.choose(length, *asked), length, "choice", *asked).backend
        return backend if backend in ("gather", "flex") else ""

    def plan(self, backend: str, length: int, device: torch.device) -> GatherPlan | FlexPlan:
        """The plan of a sparse kernel, the model's causality included.

        Raises:
            EmptyRowError, LengthError: As `table`.
        """

        def make() -> GatherPlan | FlexPlan:
            self._refuse_empty_rows(length)
            if backend == "gather":
                return GatherPlan.of_mask(self.seen, length, BLOCK).to(device)
            return FlexPlan.of_mask(self.seen, length, BLOCK, device, self.heads)

        return self.lower(make, length, backend, device)

    def prepare(self, backend: str, length: int, device: torch.device) -> bool:
        """Makes the plan, or raises its errors, before a graph asks for it."""
        return self.plan(backend, length, device) is not None

    def corner(
        self, length: int, device: torch.device, start: int, stop: int, keys: int
    ) -> Tensor | None:
        """The cells of a cross-attention call, `[1, heads | 1, stop - start, keys]`; None = all.

        Raises:
            EmptyRowError: If one of those queries keeps none of those keys.
        """

        def make() -> Tensor | None:
            table = self.cells(
                torch.arange(start, stop)[:, None], torch.arange(keys)[None], length
            )
            empty = ~table[0].any(-1)
            if empty.any():
                head, row = (int(index) for index in empty.nonzero()[0])
                raise EmptyRowError(
                    f"{self.where}, head {head}: query {start + row} keeps none of the {keys} "
                    "keys of the encoder; rows are the decoder's positions, columns the "
                    "encoder's: add for example masks.global_tokens(1)"
                )
            return None if table.all() else table.to(device)

        return self.lower(make, length, "corner", device, start, stop, keys)

    def __getstate__(self) -> dict[str, Any]:
        names = ("causal", "where", "backend", "plain", "heads")
        return {"mask": self.given, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def depends_on_length(mask: Mask) -> bool:
    """Whether cells of the mask change with the length (random keys that are not cropped)."""
    if isinstance(mask, Cropped):
        return False
    if not mask.parts:  # a leaf that is resolved at each length
        return type(mask).resolve is not Mask.resolve
    return any(depends_on_length(part) for part in mask.parts)


# -- graphs ------------------------------------------------------------------------------------
def graph_function(key: str) -> Callable[..., Any]:
    """Calls a method of the `LayerMask` with that key; its result is a constant of a graph.

    A function of its own for each mask: Dynamo tells constants apart by the name of their code.
    """

    def lowered(method: str, *arguments: Any) -> Any:
        return getattr(SOURCES[key], method)(*arguments)

    lowered.__code__ = lowered.__code__.replace(co_name=f"lowered_{key}")
    as_constant: Any = torch.compiler.assume_constant_result
    constant: Callable[..., Any] = as_constant(lowered)
    return constant


def fixed(number: int) -> int:
    """The same number; under Dynamo a constant, because a mask is lowered at one length."""
    return len(range(number))


# -- caches ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CachePosition:
    """Where the queries and keys of a self-attention mask stand, as it was asked for.

    Args:
        queries: Number of queries.
        keys: Number of keys, those of a static cache that are still empty included.
        first_query: Place of the first query in the sequence; None within a compiled graph.
        first_key: Place of the first key.
        moving: The first of these places as a tensor, where a static cache counts it; compiled
            steps read it instead of the number, for which they would be compiled anew.
    """

    queries: int
    keys: int
    first_query: int | None
    first_key: int
    moving: Tensor | None

    @property
    def start(self) -> int | Tensor:
        """Place of the first query."""
        # whether Dynamo traces is asked first: a number that is read is guarded
        if self.moving is not None and torch.compiler.is_compiling():
            return self.moving
        if self.first_query is None:
            return 0 if self.moving is None else int(self.moving)
        return self.first_query


class RunningPass(threading.local):
    """The state of the forward pass that a thread is in; each thread sees its own.

    Attributes:
        last: Where queries and keys stand, as the model's mask was asked for last.
        before: The same before: models with two kinds of layers ask twice.
        held: Name of a layer -> positions of the keys that its `MaskedCache` has just handed out,
            int64 `[keys]`, the new ones last.
        seen: What layers with one mask share: what each query sees of such keys, the plan of
            FlexAttention under padding.
        inside: Whether a model that the mask or gates are on is being computed.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Ends the pass, also one that failed."""
        self.last: CachePosition | None = None
        self.before: CachePosition | None = None
        self.held: dict[str, Tensor] = {}
        self.seen: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self.inside = False


class SequencePositions:
    """Where queries and keys of a running forward pass stand in the sequence.

    One for an attachment. The function that makes a model's mask notes it, the layers of the same
    pass then read it.

    Args:
        written: Whether the models' masks are always written out, because a layer without one
            hides other keys than the probe saw.
        packs: Whether these masks reach attention alone, so that padding may come packed.
        floats: Whether they are added to scores by code of the models, which asks for numbers.

    Attributes:
        masks: What may need the padding of those models without a table around it.
        token_masks: Those of the masks that follow the tokens.
        running: The pass of the thread that asks.
    """

    def __init__(self, written: bool = False, packs: bool = True, floats: bool = False) -> None:
        self.configs: list[weakref.ref[Any]] = []
        self.masks: list[LayerMask] = []
        self.token_masks: list[TokenMask] = []
        self.written, self.packs, self.floats = written, packs, floats
        self.running = RunningPass()

    def enrol(
        self, configs: Iterable[Any], masks: list[LayerMask], token_masks: list[TokenMask]
    ) -> None:
        """Makes these the positions that are found by the configurations."""
        self.masks, self.token_masks = masks, token_masks
        for config in configs:
            if id(config) not in self.ids():
                self.configs.append(weakref.ref(config))
        for key in [key for key, each in POSITIONS.items() if key not in each.ids()]:
            del POSITIONS[key]  # of models that are gone
        POSITIONS.update(dict.fromkeys(self.ids(), self))

    def ids(self) -> set[int]:
        """Of its configurations that are still there."""
        return {id(config) for reference in self.configs if (config := reference()) is not None}

    def note(self, queries: int, keys: int, offset: int | Tensor, first_key: int) -> None:
        """Keeps what a self-attention mask was asked for."""
        moving = first = None
        if isinstance(offset, Tensor):
            moving = offset.clone()  # the cache counts on in place
            first = None if torch.compiler.is_compiling() else int(offset)
        else:
            first = offset
        running, position = self.running, CachePosition(queries, keys, first, first_key, moving)
        running.last, running.before = position, running.last

    def start(self, queries: int, keys: int) -> tuple[int | Tensor, int]:
        """First query and first key of a self-attention call."""
        if queries == keys:
            return 0, 0
        for noted in (self.running.last, self.running.before):
            if noted is not None and noted.queries == queries and noted.keys == keys:
                return noted.start, noted.first_key
        return keys - queries, 0

    def cross_start(self, queries: int) -> int | Tensor:
        """First query of a cross-attention call: where the decoder's own attention stands."""
        last = self.running.last
        return last.start if last is not None and last.queries == queries else 0

    def __getstate__(self) -> dict[str, Any]:
        configs = [config() for config in self.configs]
        return {
            "configs": [config for config in configs if config is not None],
            "masks": self.masks,
            "token_masks": self.token_masks,
            "written": self.written,
            "packs": self.packs,
            "floats": self.floats,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        forms = {name: state.pop(name) for name in ("written", "packs", "floats")}
        self.__init__(**forms)  # type: ignore[misc]
        self.enrol(**state)


# id(configuration) -> its positions: the function that makes a model's mask is handed nothing else
# of the model. A plain dict, which Dynamo reads; so entries of models that are gone are taken out
# by the next attach, not by the garbage collector while it reads.
POSITIONS: dict[int, SequencePositions] = {}


# -- layers ------------------------------------------------------------------------------------
@dataclass(eq=False)
class LayerState:
    """The state of one attention module while a mask, or gates, are attached to its model.

    Args:
        name: Qualified name of the module within the model.
        part: `"self"` in a plain model, else the part that it belongs to.
        layer: Index of the layer within its part.
        positions: Of the running forward pass.
        mask: The layer's own mask; None where gates are attached.
        bank: The gates; None where a mask is attached.
        backend: As asked for: `"auto"`, `"sdpa"`, `"gather"` or `"flex"`.
        causal: Whether the model hides later keys here.
        cross: Whether queries and keys come from different sequences.
        lowered: What the mask is lowered to, shared by layers with the same mask.
        token_mask: The resolved mask that follows the tokens, shared likewise; None for others.
        fallback: Why the kernel that was asked for did not compute the last call, or empty.
    """

    name: str
    part: str
    layer: int
    positions: SequencePositions
    mask: Mask | None = None
    bank: GateBank | None = None
    backend: str = "auto"
    causal: bool = False
    cross: bool = False
    lowered: LayerMask | None = None
    token_mask: TokenMask | None = None
    fallback: str = ""

    def start(self, queries: int, keys: int) -> tuple[int | Tensor, int]:
        """First query and first key of a call."""
        if self.cross:
            return self.positions.cross_start(queries), 0
        return self.positions.start(queries, keys)

    def kept(
        self,
        batch: int,
        queries: int,
        keys: int,
        device: torch.device,
        visible: Tensor | None = None,
    ) -> Tensor | None:
        """The cells of one call, bool `[1 | batch, heads | 1, queries, keys]`; None = all.

        Args:
            batch: Examples.
            queries: Number of queries.
            keys: Number of keys.
            device: Where the call computes.
            visible: The model's mask, as the call was given it.

        Raises:
            EmptyRowError: If a query keeps no key.
            LengthError: If the mask is shorter.
            AttachError: If the mask is another one at each length, and keys come from a cache.
        """
        if self.token_mask is not None:
            return self.token_mask.kept(batch, queries, keys, visible)
        lowered = self.lowered
        if lowered is None:
            return None
        table: Tensor | None
        if queries == keys and not self.cross:  # whole sequences
            table = lowered.in_graph("table", fixed(keys), device)
            return table
        start, first_key = self.start(queries, keys)
        if self.cross and not isinstance(start, Tensor):
            return self._kept_across(lowered, queries, keys, start, device)
        if lowered.by_length:
            raise AttachError(
                f"{lowered.where}: {lowered.mask} keeps other keys at every length, so that a "
                "cache would hold what was computed under another mask; attach "
                "masks.cropped(mask, at=the longest length), or generate with use_cache=False"
            )
        length = first_key + keys
        last = self.positions.running.last
        if isinstance(start, Tensor) and last is not None:
            length = max(length, last.keys)  # a static cache in a compiled step
        table = lowered.in_graph("table", fixed(length), device)
        if table is None:
            return None
        if isinstance(start, Tensor):
            table = table.index_select(2, start + torch.arange(queries, device=device))
        else:
            table = table[:, :, start : start + queries]
        return table[..., first_key : first_key + keys]

    def once(self, make: Callable[[], T], *same: Any) -> T:
        """Calls `make` once in a pass for layers that have the same objects."""
        key, seen = tuple(map(id, same)), self.positions.running.seen
        if key not in seen:
            seen[key] = (*same, make())  # they stay alive beside their ids
        value: T = seen[key][-1]
        return value

    def cells_of_cached_keys(
        self, positions: Tensor, queries: int, visible: Tensor | None
    ) -> Tensor | None:
        """Which keys of a `MaskedCache` each query attends to: the mask's, and the model's, cells.

        Args:
            positions: int64 `[keys]`, positions of the keys, those of the queries last.
            queries: Number of queries.
            visible: The model's mask over all positions, bool or float `[batch | 1, heads | 1,
                queries, positions]`; None = earlier keys alone.

        Returns:
            The same with a column for each key; None = all.

        Raises:
            EmptyRowError: If a query keeps no key.
            AttachError: If the model's mask has another number of positions.
        """
        assert self.lowered is not None
        length = int(positions[-1]) + 1
        positions = positions if visible is None else positions.to(visible.device)
        query, key = positions[-queries:, None], positions[None]
        kept = self.lowered.cells(query, key, length) & (key <= query)
        if (empty := ~kept.any(-1)).any():
            _, head, row = (int(index) for index in empty.nonzero()[0])
            raise EmptyRowError(
                f"{self.lowered.where}, head {head}: query {int(query[row])} keeps no earlier key "
                "and not its own; add for example masks.window(0), the diagonal"
            )
        if visible is None:
            return None if kept.all() else kept
        if visible.shape[-1] != length:
            raise AttachError(
                f"the attention mask has {visible.shape[-1]} positions, and the cache stands at "
                f"{length}; give one for all positions so far, the dropped keys' too"
            )
        visible = visible.index_select(-1, positions)
        if visible.dtype == torch.bool:
            return visible & kept
        return visible.masked_fill(~kept, -torch.inf)

    def _kept_across(
        self, lowered: LayerMask, queries: int, keys: int, start: int, device: torch.device
    ) -> Tensor | None:
        """The cells of a cross-attention call: a corner of the table of the longer side."""
        length = max(start + queries, keys)
        if lowered.by_length and start and length > keys:
            raise AttachError(
                f"{lowered.where}: {lowered.mask} keeps other keys at every length, and the "
                f"decoder has outgrown the {keys} keys of the encoder; attach "
                "masks.cropped(mask, at=the longest length), or generate with use_cache=False"
            )
        numbers = (fixed(length), device, fixed(start), fixed(start + queries), fixed(keys))
        corner: Tensor | None = lowered.in_graph("corner", *numbers)
        return corner
