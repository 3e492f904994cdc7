"""Which layers of an encoder fine-tuning leaves as they are."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn


def check_frozen(encoder: nn.Module, frozen: int | Literal["all"] | None) -> list[nn.ModuleList]:
    """The encoder's lists of layers, where only some of them are frozen.

    Raises:
        ValueError: If there is no such list, or it has fewer layers than are to be frozen.
    """
    if not isinstance(frozen, int):
        return []
    config: Any = encoder.config
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not stacks:
        raise ValueError(
            f"{type(encoder).__name__} has no list of {config.num_hidden_layers} layers (they "
            "share weights, perhaps); use frozen='all' or None"
        )
    if frozen > len(stacks[0]):
        raise ValueError(
            f"frozen={frozen}, but the encoder has {len(stacks[0])} layers; use at most that many"
        )
    return stacks


def freeze(encoder: nn.Module, frozen: int | Literal["all"] | None) -> None:
    """Takes the embeddings and the lowest layers (or everything) out of the training.

    Args:
        encoder: A Hugging Face encoder.
        frozen: See `FineTuning`.

    Raises:
        ValueError: See `check_frozen`.
    """
    stacks = check_frozen(encoder, frozen)
    if frozen == "all":
        encoder.requires_grad_(False)
    if not isinstance(frozen, int):
        return
    layers = [{id(p) for p in layer.parameters()} for layer in stacks[0]]
    trained = set().union(*layers[frozen:])
    inside, above = set().union(*layers), False
    for parameter in encoder.parameters():  # in order: embeddings, layers, a last norm
        above = above or id(parameter) in inside
        own = id(parameter) in trained or (above and id(parameter) not in inside)
        parameter.requires_grad_(own)
