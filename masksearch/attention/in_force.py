"""Whether what is attached to a model still takes part in its attention.

A mask takes part only while the attention layers compute under our name. That name stands in
the models' configuration objects, which users change (`set_attn_implementation`), copy and share.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from masksearch.attention.probe import PROBE, Probe, own_config, owners
from masksearch.attention.slots import ATTACHMENT, SLOT
from masksearch.errors import AttachError

if TYPE_CHECKING:
    from masksearch.attention.slots import Attachment

NAME = "masksearch"


class Hold:
    """The configuration objects that an attachment has under our name, while it lives."""

    def __init__(self, configs: Iterable[Any]) -> None:
        self.configs = list(configs)
        for config in self.configs:
            HELD[id(config)] = self

    def release(self) -> None:
        """Other attachments may have them."""
        for config in self.configs:
            if HELD.get(id(config)) is self:
                del HELD[id(config)]

    def __getstate__(self) -> dict[str, Any]:
        return {"configs": self.configs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


HELD: weakref.WeakValueDictionary[int, Hold] = weakref.WeakValueDictionary()  # id(config) -> it


def watch(model: nn.Module, attachment: Attachment) -> None:
    """Takes the configurations that compute under our name, and checks them in each forward pass.

    Each is checked where the innermost model that it belongs to is called.
    """
    owner = owners(model)
    belongs: dict[nn.Module, dict[int, Any]] = {}
    for attention in attachment.slots:
        for config in (owner[attention].config, own_config(attention)):
            if config is not None and config._attn_implementation == NAME:
                belongs.setdefault(owner[attention], {})[id(config)] = config
    held = {key: config for several in belongs.values() for key, config in several.items()}
    for outer in attachment.involved:
        config = outer.config
        if id(config) not in held and config._attn_implementation == NAME:
            belongs[outer] = {id(config): config}
            held[id(config)] = config
    for module, several in belongs.items():
        check = partial(check_call, list(several.values()))
        attachment.hooks.append(module.register_forward_pre_hook(check, with_kwargs=True))
    attachment.hold = Hold(held.values())


def check_call(
    configs: list[Any], model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Pre-forward hook of a model whose layers carry a mask or gates.

    Raises:
        AttachError: If other attention is in use, or attention weights are asked for.
    """
    for config in configs:
        if config._attn_implementation not in (NAME, PROBE):
            refuse_other(type(model).__name__, str(config._attn_implementation))
    if named.get("output_attentions") and Probe.calls is None:
        refuse_weights(type(model).__name__)


def refuse_other(title: str, name: str) -> None:
    """Says that a mask is passed over."""
    raise AttachError(
        f"{title} computes its attention by {name!r} now, which passes over the mask or gates "
        "that are attached; attach again, ms.attach(model, mask), or first ms.detach(model) and "
        f"then model.set_attn_implementation({name!r})"
    )


def refuse_weights(title: str) -> None:
    """Says that there are no attention weights."""
    raise AttachError(
        f"{title} is asked for output_attentions, and attention with a mask or gates attached "
        "gives no weights; leave output_attentions off, in the call and in model.config, or look "
        'at the weights without it: ms.detach(model), model.set_attn_implementation("eager")'
    )


def in_force(model: nn.Module) -> Attachment | None:
    """What is attached to a model.

    Raises:
        AttachError: If other attention is in use, which passes it over.
    """
    attachment: Attachment | None = model.__dict__.get(ATTACHMENT)
    for config in attachment.hold.configs if attachment is not None and attachment.hold else ():
        if config._attn_implementation != NAME:
            refuse_other(type(model).__name__, str(config._attn_implementation))
    return attachment


def refuse_others(model: nn.Module, configs: list[Any]) -> None:
    """Refuses configurations that another attachment has, or that ask for attention weights."""
    earlier: Attachment | None = model.__dict__.get(ATTACHMENT)
    own = None if earlier is None else earlier.hold

    def others() -> bool:
        return any(HELD.get(id(config), own) is not own for config in configs)

    if any(getattr(config, "output_attentions", False) for config in configs):
        refuse_weights(type(model).__name__)
    if others():
        gc.collect()  # a dropped model lives on in its cycles
    if others():
        raise AttachError(
            f"{type(model).__name__} already has a mask, put on through another module or through "
            "a model with the same configuration object; detach that one first, or make this "
            "model from copy.deepcopy(config)"
        )


def sweep(model: nn.Module, hooks: Iterable[Any]) -> bool:
    """Takes off what no attachment holds: the rest in a copied part of an attached model.

    Args:
        model: What is swept.
        hooks: Functions that attachments register to be called before a forward pass.

    Returns:
        Whether a mask or gates were taken off.
    """
    swept = False
    ours = [check_call, *hooks]
    for module in model.modules():
        configs = [own_config(each) for each in module.modules()]
        if any(id(config) in HELD for config in configs if config is not None):
            continue
        swept |= module.__dict__.pop(SLOT, None) is not None
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, partial) and hook.func in ours:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return swept
