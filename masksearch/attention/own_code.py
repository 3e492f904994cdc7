"""Attention modules that do not use transformers' attention interface, led to it one by one.

An adapter lets a module make its own queries, keys, values and bias on the scores, and hands
them to the interface, where a mask can take part:

    own_modules   finds such modules in a model
    verify        refuses an adapter that computes otherwise than the module's own code
    adapt         puts adapters on: a module gets a subclass of its class. Copies, pickles,
                  replicas on other devices and compiled graphs carry that, and the class of
                  transformers, which other models have, stays as it is
    restore       takes them off
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from masksearch.attention.live_call import ARGUMENT, HANDED, LiveCall, cells, take
from masksearch.errors import AttachError

# What the saved configuration of such a model names as its attention. No function has that name,
# so transformers refuses the folder: the model's own code asks for none, and would be dense.
OWN_KEY = "masksearch.load_pretrained"
ELSEWHERE = ("query_states", "encoder_hidden_states", "cache", "past_key_values")


# -- adapters ----------------------------------------------------------------------------------
def _mpnet(
    self: Any, states: Tensor, mask: Any, position_bias: Any = None, *, live: Any, **_: Any
) -> tuple[Tensor]:
    """MPNet: a bias by distance, which its encoder makes for all layers."""
    query, key, value = (_by_head(self, made(states)) for made in (self.q, self.k, self.v))
    return (self.o(_attend(self, query, key, value, mask, live, position_bias)),)


def _deberta(
    self: Any,
    states: Tensor,
    mask: Any,
    *_: Any,
    relative_pos: Any,
    rel_embeddings: Any,
    live: Any,
) -> tuple[Tensor, None]:
    """DeBERTa: a bias by content and distance, made of scaled queries."""
    query, key, value = _by_head(self, self.in_proj(states)).chunk(3, dim=-1)
    value = value + _by_head(self, self.v_bias[None, None])
    factors, bias = 1 + len(self.pos_att_type), None
    scaling = (query.shape[-1] * factors) ** -0.5
    query = (query + _by_head(self, self.q_bias[None, None])) * scaling
    if self.relative_attention and self.pos_att_type:
        rel_embeddings = self.pos_dropout(rel_embeddings)
        bias = self.disentangled_att_bias(query, key, relative_pos, rel_embeddings, factors)
    return _attend_in_text(self, query, key, value, mask, live, bias, 1.0), None


def _deberta_v2(
    self: Any,
    states: Tensor,
    mask: Any,
    *_: Any,
    relative_pos: Any,
    rel_embeddings: Any,
    live: Any,
) -> tuple[Tensor, None]:
    """DeBERTa-v2 and v3: such a bias, scaled by itself, with batch and heads as one axis."""
    linear = self.query_proj, self.key_proj, self.value_proj
    query, key, value = (_by_head(self, made(states)) for made in linear)
    factors, bias = 1 + len({"c2p", "p2c"} & {*self.pos_att_type}), None
    if self.relative_attention and factors > 1:
        rel_embeddings = self.pos_dropout(rel_embeddings)
        sides = query, key
        if isinstance(live, LiveCall):
            if (texts := live.packing) is not None:
                sides = texts.spread(query, texts.queries), texts.spread(key, texts.keys)
            apart = cells(live, relative_pos[:, None])
            assert apart is not None
            relative_pos = apart.expand(*sides[0].shape[:2], -1, -1).flatten(0, 1)[None]
        flat = [each.flatten(0, 1) for each in sides]
        bias = self.disentangled_attention_bias(*flat, relative_pos, rel_embeddings, factors)
        bias = bias.view(*sides[0].shape[:3], -1)
    scaling = (query.shape[-1] * factors) ** -0.5
    return _attend_in_text(self, query, key, value, mask, live, bias, scaling), None


def _bert(
    self: Any, states: Tensor, mask: Any, sinusoidal_pos: Any = None, *, live: Any, **_: Any
) -> tuple[Tensor, None]:
    """Copies of BERT's; RoFormer rotates queries and keys, and values where it is asked to."""
    linear = self.query, self.key, self.value
    query, key, value = (_by_head(self, made(states)) for made in linear)
    if sinusoidal_pos is not None:
        turned = (query, key, value) if self.rotary_value else (query, key)
        query, key, *last = self.apply_rotary_position_embeddings(sinusoidal_pos, *turned)
        value = last[0] if last else value
    return _attend(self, query, key, value, mask, live), None


Adapter = Callable[..., tuple[Any, ...]]
EXACT, IN_FLOAT32 = 1e-9, 1e-5  # share of an output; DeBERTa takes its roots in float32
ADAPTERS: dict[str, tuple[Adapter, float]] = {  # by module in transformers.models, and name
    "mpnet.modeling_mpnet.MPNetSelfAttention": (_mpnet, EXACT),
    "deberta.modeling_deberta.DisentangledSelfAttention": (_deberta, IN_FLOAT32),
    "deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": (_deberta_v2, IN_FLOAT32),
    "megatron_bert.modeling_megatron_bert.MegatronBertSelfAttention": (_bert, EXACT),
    "rembert.modeling_rembert.RemBertSelfAttention": (_bert, EXACT),
    "roformer.modeling_roformer.RoFormerSelfAttention": (_bert, EXACT),
    "tapas.modeling_tapas.TapasSelfAttention": (_bert, EXACT),
}


def _by_head(module: Any, states: Tensor) -> Tensor:
    """`[batch, n, heads * size]` -> `[batch, heads, n, size]`."""
    return states.view(*states.shape[:-1], module.num_attention_heads, -1).transpose(1, 2)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    live: Any,
    bias: Tensor | None = None,
    scaling: float | None = None,
) -> Tensor:
    """Has the interface compute, `[batch, n, heads * size]`; see `_masked_attention`."""
    name = module.config._attn_implementation
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(name, sdpa_attention_forward)
    how: dict[str, Any] = {} if live is None else {ARGUMENT: live}
    how |= {"dropout": module.dropout.p if module.training else 0.0, "scaling": scaling}
    out: Tensor = compute(module, query, key, value, mask, position_bias=bias, **how)[0]
    return out.flatten(2)


def _attend_in_text(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    live: Any,
    bias: Tensor | None,
    scaling: float,
) -> Tensor:
    """The same under DeBERTa's mask, 1 or 0 `[batch, 1, n, n]`, where padding sees no key: all its
    scores are equal then, so that it weighs all keys alike."""
    visible = mask.bool()
    real = visible.any(-1, keepdim=True)
    visible = visible | ~real
    if isinstance(live, LiveCall):
        real = take(real[:, 0], live.queries)[:, None]
    bias = None if bias is None else bias.masked_fill(~real, 0)
    if isinstance(live, LiveCall):
        if (texts := live.packing) is not None:
            real = texts.pack(real.transpose(1, 2)).transpose(1, 2)
        live, bias = live._replace(bias=bias), None
    return _attend(module, query * real, key, value, visible, live, bias, scaling)


# -- on modules ----------------------------------------------------------------------------------
CLASSES: dict[type, type] = {}  # a class -> its subclass with the adapter


def _name(cls: type) -> str:
    """A class as `ADAPTERS` names it."""
    return f"{cls.__module__.removeprefix('transformers.models.')}.{cls.__qualname__}"


def _subclass(cls: type) -> type:
    """The class with its adapter in the place of its own forward."""
    if cls not in CLASSES:
        adapter, _ = ADAPTERS[_name(cls)]

        def forward(
            self: Any, hidden_states: Tensor, attention_mask: Any = None, *rest: Any, **named: Any
        ) -> Any:
            if other := [name for name in ELSEWHERE if named.pop(name, None) is not None]:
                raise AttachError(
                    f"{cls.__name__} is called with {other[0]}, and a mask is served in the "
                    "self-attention of an encoder alone; call the model without"
                )
            live, HANDED.call = HANDED.call, None
            return adapter(self, hidden_states, attention_mask, *rest, live=live, **named)

        def reduce(self: Any, protocol: Any) -> Any:
            return _rebuild, (cls,), vars(self)

        body = {"forward": forward, "is_causal": False, "__reduce_ex__": reduce}
        CLASSES[cls] = type(f"Masked{cls.__name__}", (cls,), {**body, "__module__": __name__})
    return CLASSES[cls]


def _rebuild(cls: type) -> Any:
    """An empty module with an adapter, for copies and pickles."""
    return object.__new__(_subclass(cls))


def has_own_code(module: nn.Module) -> bool:
    """Whether a module needs an adapter, or carries one."""
    return type(module) in CLASSES.values() or _name(type(module)) in ADAPTERS


def has_adapter(config: Any) -> bool:
    """Whether the models of a configuration need adapters: their own code adds masks to scores."""
    kind = f"{getattr(config, 'model_type', '')}.".replace("-", "_")
    return any(name.startswith(kind) for name in ADAPTERS)


def own_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those that an adapter can be put on: none where one is a decoder's."""
    mine = [each for each in modules if _name(type(each)) in ADAPTERS]
    return [] if any(getattr(each, "is_decoder", False) for each in mine) else mine


def adapt(modules: Iterable[nn.Module], owners: Mapping[nn.Module, PreTrainedModel]) -> None:
    """Puts adapters on.

    Args:
        modules: `own_modules`.
        owners: The model of each, whose configuration names the function that is to compute.
    """
    for module in modules:
        module.__dict__["config"] = owners[module].config
        module.__class__ = _subclass(type(module))


def restore(modules: Iterable[nn.Module]) -> None:
    """Takes adapters off, where there are any."""
    for module in modules:
        if type(module) in CLASSES.values():
            module.__class__ = type(module).__mro__[1]
            del module.__dict__["config"]


def verify(
    modules: Iterable[nn.Module],
    owners: Mapping[nn.Module, PreTrainedModel],
    run: Callable[[], Any],
) -> None:
    """Compares adapters with own code, in a float64 copy of a module of each class, on the CPU.

    Args:
        modules: `own_modules`.
        owners: The model of each.
        run: A forward pass by own code, of texts with padding.

    Raises:
        AttachError: If outputs differ by more than rounding, or no copy can be made.
    """
    calls: dict[Any, Any] = {}

    def note(module: nn.Module, *call: Any) -> None:
        calls.setdefault(type(module), (module, call))

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for cls, (module, call) in calls.items():
        _, exact = ADAPTERS[_name(cls)]
        try:
            twin = deepcopy(module).to("cpu", torch.float64)
            states = [_widened(each) for each in call[0]]
            named = {name: _widened(each) for name, each in call[1].items()}
            with torch.autocast("cpu", enabled=False):
                own: Tensor = cls.forward(twin, *states, **named)[0]
                adapt([twin], {twin: owners[module]})
                off = (twin.forward(*states, **named)[0] - own).abs().max() / own.abs().max()
            problem = "" if off <= exact else f"an output would be off by {float(off):.1e}"
        except (RuntimeError, TypeError, ValueError) as error:  # quantised, or kept elsewhere
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        if problem:
            raise AttachError(
                f"{cls.__name__} of {type(owners[module]).__name__} does not use transformers' "
                "attention interface, and what masksearch has in its place is not shown to "
                f"compute the same: {problem}; take weights of plain floating point, all on "
                "their devices, and the class as transformers builds it"
            )


def _widened(value: Any) -> Any:
    """The same; of a tensor on the CPU, real numbers in float64."""
    if not isinstance(value, Tensor):
        return value
    return value.to("cpu", torch.float64 if value.is_floating_point() else value.dtype)
