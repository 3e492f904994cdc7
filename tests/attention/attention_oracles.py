"""What attention under a mask must give on those architectures, by other means than attach."""

from collections.abc import Callable
from typing import Any

import torch
from architectures import HEADS, Architecture
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from masksearch import masks
from masksearch.attention.call import AttentionCall
from masksearch.gates.gates import Gates
from tests.attention.own_attention import masked_by_hand


def lengths(architecture: Architecture, given: dict[str, Tensor]) -> tuple[int, int]:
    """Queries and keys of a call."""
    return tuple(architecture.visible(given).shape[1:])  # type: ignore[return-value]


def square(
    mask: masks.Mask, architecture: Architecture, given: dict[str, Tensor], layers: int = 1
) -> Tensor:
    """A mask at the length at which a call takes it: bool `[layers, heads, n, n]`.

    Where queries and keys come from two texts, that is the longer of both.
    """
    return mask.dense(max(lengths(architecture, given)), mask.layers or layers, HEADS)


def table(mask: masks.Mask, architecture: Architecture, given: dict[str, Tensor]) -> Tensor:
    """The cells of a mask that a call uses: bool `[layers, heads, queries, keys]`."""
    queries, keys = lengths(architecture, given)
    return square(mask, architecture, given)[:, :, :queries, :keys]


def written_out(tables: dict[nn.Module, Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Attention by its formula, for `AttentionInterface`: a softmax over visible, kept keys.

    Args:
        tables: Of attention modules, bool `[heads, queries, keys]`; others keep everything.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        position_bias: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        key, value = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if position_bias is not None:
            scores = scores + position_bias
        seen = torch.ones_like(scores, dtype=torch.bool)
        if attention_mask is not None:
            seen = seen & attention_mask
        elif getattr(module, "is_causal", False) or rest.get("is_causal"):
            seen = seen.tril()
        if module in tables:
            seen = seen & tables[module]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
        return (weights @ value).transpose(1, 2), None

    return attend


def formula(
    architecture: Architecture, model: nn.Module, mask: masks.Mask, given: dict[str, Tensor]
) -> Tensor:
    """What a model without a mask of its own gives when its attention is written out."""
    kept = table(mask, architecture, given)
    modules = architecture.layers(model)
    tables = {module: kept[layer if mask.layers else 0] for layer, module in enumerate(modules)}
    if architecture.own:
        with masked_by_hand(tables):
            return architecture.run(model, given)
    AttentionInterface.register("written_out", written_out(tables))
    AttentionMaskInterface.register("written_out", sdpa_mask)
    model.set_attn_implementation("written_out")
    try:
        return architecture.run(model, given)
    finally:
        model.set_attn_implementation("sdpa")


def crossings(
    architecture: Architecture, model: nn.Module, given: dict[str, Tensor], row: int = 0
) -> Tensor:
    """How much each query's output moves with each key's state: float `[queries, keys]`.

    The state is what enters the only attention layer, so nothing passes beside the attention.

    Args:
        architecture: Of the model.
        model: With one attention layer.
        given: Its inputs.
        row: The example of the inputs that is looked at.
    """
    (module,) = architecture.layers(model)
    leaves: list[Tensor] = []

    def opened(module: nn.Module, args: Any, rest: dict[str, Any]) -> Any:
        name = "key_value_states" if architecture.cross else "hidden_states"
        state = rest[name] if name in rest else args[0]
        leaves.append(state.detach().clone().requires_grad_())
        if name in rest:
            return args, {**rest, name: leaves[-1]}
        return (leaves[-1], *args[1:]), rest

    queries, _ = lengths(architecture, given)
    alike = {
        name: value[row : row + 1].expand(queries, *value.shape[1:])
        for name, value in given.items()
    }
    hook = module.register_forward_pre_hook(opened, with_kwargs=True)
    try:
        out = architecture.read(model(**alike))
    finally:
        hook.remove()
    direction = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(1))
    own = torch.arange(queries)
    (grad,) = torch.autograd.grad((out[own, own].float() @ direction).sum(), leaves[-1:])
    assert grad.isfinite().all()
    return grad.abs().amax(-1)


class StandIn(nn.Module):
    """Gates that are written out in full: weights of a known table, and a factor for each edge.

    Args:
        kept: bool `[layers, heads, n, n]`.
    """

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.layers, self.heads, self.length = kept.shape[:3]
        self.kept = kept
        self.factors = nn.Parameter(torch.ones(kept.shape))
        self.draws = 0

    def draw(self) -> None:
        self.draws += 1

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """A softmax over visible, kept keys, times the factors; queries are the last positions."""
        query, key, visible = call.query, call.key, call.visible
        assert key.shape == call.value.shape
        assert query.shape[:2] == key.shape[:2]
        queries, keys = query.shape[-2], key.shape[-2]
        at = layer, slice(None), slice(keys - queries, keys), slice(None, keys)
        scores = (query @ key.mT).float() * call.scaling
        if call.bias is not None:
            scores = scores + call.bias
        seen = self.kept[at] if visible is None else visible & self.kept[at]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
        return (weights * self.factors[at]).to(call.value.dtype) @ call.value


def gates_of(
    kept: Tensor, form: str = "flip", length: int | None = None, likely: float = 4.0
) -> Gates:
    """Gates that draw exactly a known table, bool `[layers, heads, n, n]`, without noise."""
    layers, heads, size, _ = kept.shape
    gates = Gates(length=length or size, heads=heads, layers=layers, form=form)
    gates.deterministic = True
    logits = torch.full((layers, heads, gates.length, gates.length), -likely)
    logits[:, :, :size, :size] = torch.where(kept, likely, -likely)
    with torch.no_grad():
        gates.logits.copy_(logits.flatten(2))
    return gates
