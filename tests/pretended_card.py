"""A card that is pretended: its tensors compute on the CPU, and may not meet those that are there.

with pretended_card():
    model.to(CARD)(tokens.to(CARD))     # as on the CPU, but for rounding
    model(tokens)                       # DevicesMixed, as on a real card

They say that they are on the device `meta`, the one beside the CPU that every build has.
Moves between the two, numbers without dimensions and indices of the CPU are allowed, as by CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Card(str):
    """The card's name; it is no device `meta`, whose models have no weights."""

    type = "card"


def where_it_is(model: nn.Module) -> Card | None:
    """The card, where a model is there."""
    return Card(CARD.type) if next(model.parameters()).device == CARD else None


@dataclass(frozen=True)
class Place:
    """A card, pretended or real.

    Args:
        device: Its name for torch.
        there: The context in which it is there.
        mixed: The error of an operation that mixes it with the CPU.
    """

    device: torch.device
    there: Callable[[], AbstractContextManager[None]]
    mixed: type[Exception]


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The pretended card, and a real one where there is one."""
    if request.param == "cuda":
        return Place(torch.device("cuda"), nullcontext, RuntimeError)
    monkeypatch.setattr("masksearch.attention.probe.offloaded", where_it_is)
    return Place(CARD, pretended_card, DevicesMixed)


class DevicesMixed(RuntimeError):
    """An operation of tensors of the card and of the CPU."""


class OnCard(Tensor):
    """A tensor of the pretended card."""

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> OnCard:
        places = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        return Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, dtype=on_cpu.dtype, device=CARD, **places
        )

    def __init__(self, on_cpu: Tensor) -> None:
        self.on_cpu = on_cpu

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.on_cpu!r})"

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Computes what makes tensors on the card, or moves them there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Moves what is made of Python's numbers, which torch does not let modes see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_card(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(CARD)
        return func(*args, **kwargs)


@contextmanager
def pretended_card() -> Iterator[None]:
    """Within it the card is there, in further threads too: masks are lowered in one of their own.

    Autocast knows the card as the CPU, and fused optimisers ask for no device: they refuse `meta`.
    """
    autocast, submitted = torch.autocast, ThreadPoolExecutor.submit
    enabled = torch.is_autocast_enabled

    def of_device(device: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if is_card(device) else device, *args, **kwargs)

    def asked(device: str) -> bool:
        return enabled("cpu" if is_card(device) else device)

    def within(function: Any, *args: Any) -> Any:
        with Operations(), Literals():
            return function(*args)

    def submit(pool: ThreadPoolExecutor, function: Any, *args: Any) -> Any:
        return submitted(pool, within, function, *args)

    with (
        mock.patch.object(torch, "autocast", of_device),
        mock.patch.object(torch, "is_autocast_enabled", asked),
        mock.patch("torch.optim.adam._device_dtype_check_for_fused"),
        mock.patch.object(ThreadPoolExecutor, "submit", submit),
        Operations(),
        Literals(),
    ):
        yield


def is_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == CARD.type


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device that torch would have put it on."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    cards = {id(each.on_cpu): each for each in tensors if isinstance(each, OnCard)}
    others = [each for each in tensors if not isinstance(each, OnCard) and each.dim()]
    indexed = func in INDEXED and isinstance(args[0], OnCard)
    if cards and others and func not in MOVES and not indexed:
        raise DevicesMixed(f"{func} of tensors of the card and of the CPU")
    to_card = bool(cards)
    if func is torch.ops.aten.copy_.default:
        to_card = isinstance(args[0], OnCard)
    if kwargs.get("device") is not None:
        to_card = is_card(kwargs["device"])
        kwargs = {**kwargs, "device": "cpu"}

    def on_cpu(value: Any) -> Any:
        return value.on_cpu if isinstance(value, OnCard) else value

    def on_card(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return cards[id(value)] if id(value) in cards else OnCard(value)

    result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    return tree_map(on_card, result) if to_card else result
