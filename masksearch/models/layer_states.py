"""Hidden states of a decoder's lower layers, kept from one mask to the next.

The masks of a search often agree in their lowest layers: of those with one layer local the first
layers are dense, of those with one layer full they are local. What such layers compute need not be
computed again. Kept are the outputs of layers under the mask that was judged last, batch by batch;
a mask that shares its first k layers goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from masksearch.attention.attach import in_force
from masksearch.masks.core import Mask
from masksearch.models.decoders import NextTokenModel

KEPT_BYTES = 1 << 30  # of hidden states: of more tokens those of every second, third, .. layer


class LayerStates:
    """Outputs of the layers of one model with frozen weights, over one list of batches.

    Which batches they are must not change. The outputs are those of a run without reuse, bit for
    bit: a layer's output depends on its input and on its own mask, which is checked when this is
    made (a model whose layers hand each other more than that gets no reuse).

    Args:
        model: With a mask on it.
        tokens: Ids that all batches have together.
    """

    def __init__(self, model: NextTokenModel, tokens: int) -> None:
        self.layers = layers_of(model)
        self.masks: list[str] = []  # digests of the masks under which the outputs were made
        self.outputs: dict[tuple[int, int], Any] = {}  # batch, layer -> what the layer returned
        self.computed = 0  # layers that were run, over all batches, for those who count
        size = 4 * tokens * int(model.config.get_text_config().hidden_size)
        self.every = 1
        if not self.repeats(model):
            self.layers = []
        self.every = max(1, -(-size * len(self.layers) // KEPT_BYTES))
        self.outputs, self.computed = {}, 0

    @contextmanager
    def reused(self, model: NextTokenModel) -> Iterator[None]:
        """While it is open, the mask on the model is the one that is judged: `batch` may be used.
        Where the block ends in an error, what was made before stays."""
        attachment = in_force(model)
        mask = None if attachment is None else next(iter(attachment.what.values()))
        names: list[str] = []
        if isinstance(mask, Mask):
            names = [mask.of_layer(layer).digest for layer in range(len(self.layers))]
        shared = 0
        while shared < min(len(names), len(self.masks)) and names[shared] == self.masks[shared]:
            shared += 1
        self.masks = self.masks[:shared]
        self.outputs = {at: kept for at, kept in self.outputs.items() if at[1] < shared}
        yield
        self.masks = names

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """One forward pass of a batch: layers whose output is kept are passed over."""
        known = [layer for at, layer in self.outputs if at == number]
        first = 1 + max(known, default=-1)  # the lowest layer that is run
        hooks = []
        try:
            for place, layer in enumerate(self.layers):
                if place < first:
                    kept = self.outputs[number, first - 1]
                    layer.__dict__["forward"] = lambda *_, _kept=kept, **__: _kept
                else:
                    hooks.append(layer.register_forward_hook(self.keeper(number, place)))
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("forward", None)
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def repeats(self, model: NextTokenModel) -> bool:
        """Whether a layer's output is all that those above it need, tried on a few tokens."""
        tokens: Tensor = torch.arange(1, 5, device=next(model.parameters()).device)[None]
        with self.batch(0):
            wanted = model.features(tokens)
        kept = self.outputs
        for place in {0, len(self.layers) // 2 - 1, len(self.layers) - 2} & {at for _, at in kept}:
            self.outputs = {(0, place): kept[0, place]}
            try:
                with self.batch(0):
                    found = model.features(tokens)
            except (KeyError, AttributeError, TypeError, RuntimeError):
                return False  # an upper layer looks for what a lower one would have left
            if not torch.equal(found, wanted):
                return False
        return True

    def keeper(self, number: int, place: int) -> Any:
        """A forward hook that keeps a layer's output, of every so many layers."""

        def keep(layer: nn.Module, given: Any, output: Any) -> None:
            self.computed += 1
            if place + 1 < len(self.layers) and place % self.every == self.every - 1:
                self.outputs[number, place] = output

        return keep


def layers_of(model: NextTokenModel) -> list[nn.Module]:
    """The layers of a decoder, each with one of the attention modules that carry the mask, in
    order; empty where they are not found."""
    attachment = in_force(model)
    attentions = [] if attachment is None else attachment.modules
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) == len(attentions) > 1:
            inside = [[each for each in layer.modules() if each in attentions] for layer in stack]
            if inside == [[each] for each in attentions]:
                return list(stack)
    return []
