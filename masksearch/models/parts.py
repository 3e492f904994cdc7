"""Which attention calls belong to which part of a model: encoder, decoder, cross, towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from masksearch.errors import AttachError, unknown_name
from masksearch.models.probe import Call, own_config

SELF = "self"  # the only part of a plain model


@dataclass(frozen=True)
class Part:
    """Attention layers that share a mask.

    Args:
        name: What `attach(part=...)` calls it.
        calls: The first call of each layer, in the order in which the layers are called.
        cross: Whether keys come from another sequence than queries.
    """

    name: str
    calls: tuple[Call, ...]
    cross: bool = False

    @property
    def layers(self) -> int:
        """Number of attention modules."""
        return len(self.calls)

    @property
    def heads(self) -> int:
        """Query heads of every layer.

        Raises:
            AttachError: If the layers differ in it.
        """
        found = {call.heads for call in self.calls}
        if len(found) > 1:
            raise AttachError(
                f"layers with {sorted(found)} heads cannot share one mask; attach to parts of "
                "the model, by the names of submodules: part='...'"
            )
        return found.pop()


def owners(model: nn.Module) -> dict[nn.Module, PreTrainedModel]:
    """The Hugging Face model that each module belongs to, the innermost one."""
    found: dict[nn.Module, PreTrainedModel] = {}

    def walk(module: nn.Module, owner: PreTrainedModel | None) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        if owner is not None:
            found.setdefault(module, owner)
        for child in module.children():
            walk(child, owner)

    walk(model, None)
    return found


def involved(model: nn.Module, calls: list[Call], cross: bool) -> list[PreTrainedModel]:
    """The Hugging Face models whose masks reach those calls.

    A decoder's masks may be made by any model around it (generation with a static cache).
    """
    owner = owners(model)
    found = {owner[call.module] for call in calls}
    decoding = {call.module for call in calls if call.causal or cross}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and decoding & set(module.modules()):
            found.add(module)
    return [module for module in model.modules() if module in found]


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> its dotted name within the model."""
    return {module: name for name, module in model.named_modules()}


def parts_of(
    model: nn.Module, calls: list[Call], inputs: Mapping[str, Any] | None = None
) -> dict[str, Part]:
    """The parts that a model has by itself.

    `"self"` alone for a plain model; `"encoder"`, `"decoder"` and `"cross"` where queries and
    keys differ in number; else one part for each Hugging Face model inside, by its dotted name.

    Raises:
        AttachError: If example inputs of equal lengths hide which calls are cross-attention.
    """
    first: dict[nn.Module, Call] = {}
    for call in calls:
        first.setdefault(call.module, call)
    owner = owners(model)
    cross = {call.module for call in calls if call.queries != call.keys}
    decoders = {owner[module] for module in cross}
    towers = list(dict.fromkeys(owner[module] for module in first))
    given = inputs or {}
    paired = len(towers) > 1 and any(
        getattr(root.config, "is_encoder_decoder", False) for root in set(owner.values())
    )
    if not cross and (paired or given.get("encoder_hidden_states") is not None):
        raise AttachError(
            f"{type(model).__name__} was shown encoder and decoder inputs of equal length, so "
            "that cross-attention cannot be told apart; give inputs with different lengths"
        )
    groups: dict[str, list[Call]] = {}
    names = names_of(model)
    for module, call in first.items():
        if module in cross:
            name = "cross"
        elif cross:
            name = "decoder" if owner[module] in decoders else "encoder"
        else:
            inner = owner[module]
            name = SELF if len(towers) == 1 else names[inner] or SELF
            if name == SELF and len(towers) > 1 and own_config(module) is not inner.config:
                name = names[module].split(".")[0]  # a tower that is no model of its own (ViT-MAE)
        groups.setdefault(name, []).append(call)
    order = sorted(groups, key=list(groups).index)
    return {name: Part(name, tuple(groups[name]), name == "cross") for name in order}


def chosen(model: nn.Module, calls: list[Call], known: dict[str, Part], part: str | None) -> Part:
    """The part of that name: one of `parts_of`, or the layers below a submodule.

    Raises:
        AttachError: If there are several and none is named, or a submodule mixes them.
        UnknownNameError: If there is no such part.
    """
    title = type(model).__name__
    if part is not None and not isinstance(part, str):
        raise TypeError(f"a part is named by a string such as 'encoder', got {part!r}")
    if part is None:
        if len(known) > 1:
            listed = "; ".join(
                f"{name} ({p.layers} layers, {p.calls[0].heads} heads)"
                for name, p in known.items()
            )
            both = ", ".join(f'"{name}": mask' for name in list(known)[:2])
            raise AttachError(
                f"{title} has several kinds of attention: {listed}; say which: "
                f'ms.attach(model, mask, part="{next(iter(known))}"), or several at once: '
                f"ms.attach(model, {{{both}}})"
            )
        return next(iter(known.values()))
    if part in known:
        return known[part]
    names = names_of(model)
    below = [
        call
        for whole in known.values()
        for call in whole.calls
        if names[call.module] == part or names[call.module].startswith(part + ".")
    ]
    if not part or not below:
        raise unknown_name(f"part of {title}", part, [*known, *tower_names(model, known)])
    asked = {call.queries != call.keys for call in below}
    if len(asked) > 1:
        raise AttachError(
            f"{part!r} of {title} holds self-attention and cross-attention; attach by "
            f"{' or '.join(repr(name) for name in known)}"
        )
    return Part(part, tuple(below), asked.pop())


def tower_names(model: nn.Module, known: dict[str, Part]) -> list[str]:
    """Dotted names of the Hugging Face models inside that hold attention layers."""
    owner, names = owners(model), names_of(model)
    found = {names[owner[call.module]] for part in known.values() for call in part.calls}
    return sorted(found - {"", *known})
