"""Leaves out tokens that no one will look at again, while a mask is on an encoder.

A token that no query looks at from a layer on, and that the head does not read, needs no query, no
attention and no FFN there (`masks.live_tokens`). A pass in which they are left out:

    arm        the model whose head reads its first rows alone is called: until its end tokens may
               be left out, elsewhere (the encoder called by itself) all are computed
    enter      before a layer: of the states at hand those that are needed after it go on; those
               that are looked at and no more go beside them, in an argument that the layer hands
               on to its attention (`LiveCall`), so that gradient checkpoints compute it again;
               a layer that hands nothing on has an adapter below it, which finds it (`HANDED`)
    join       in attention: keys and values of these, by the module's own projections
    cells      .. the mask's rows and columns of the tokens that are there
    leave      after a layer whose projections cannot be used (rotary keys, a norm before them):
               all that is needed before it has gone through it, and what is not after it goes

All texts of a batch have the same positions, or, padded or under a mask that follows the tokens,
each its own: the batch is then one sequence of all of them without padding (`Packing`), from the
first layer on, and attention alone sees the texts side by side.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from masksearch.attention.kernels.choose import NUMBERS, SOURCES
from masksearch.attention.layer import LayerState, fixed, graph_function
from masksearch.attention.live_call import ARGUMENT, HANDED, LiveCall
from masksearch.attention.live_tokens import LayerTokens, cuts
from masksearch.attention.probe import (
    FAILURES,
    SELF,
    TRIAL,
    Call,
    Part,
    Probe,
    example_inputs,
    example_texts,
    keeping_modes,
    names_of,
    pretrained_models,
)
from masksearch.errors import ran_out_of_memory
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Columns
from masksearch.masks.live import live_by_layer, needed_before
from masksearch.masks.tables import PerLayer

FIRST_ROW = (  # model types whose heads below read the first row, [CLS], as BERT's do
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert"),
    *("mpnet", "deberta-v2"),
)
READ_FIRST = (  # .. and more of them, of which no density counts that row alone
    *(*FIRST_ROW, "data2vec-text", "deberta", "ernie", "esm", "esmc", "gte"),
    *("jina_embeddings_v3", "nomic_bert", "roberta-prelayernorm", "roc_bert"),
    *("ultrabert", "xlm-roberta-xl"),
)
HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
OTHERS = ("ModernBertForMultipleChoice",)  # it reads the first row that is no padding
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}  # share of an output; else IN_HALF
IN_HALF = 0.05
CPU = torch.device("cpu")


# -- around layers -----------------------------------------------------------------------------
class LivePass(threading.local):
    """The pass that a thread is in.

    Attributes:
        armed: Whether tokens may be left out.
        length: Positions of the input.
        real: Which tokens are no padding, bool `[batch, n]`; None = all, or it is not known.
        cuts: The tokens of each layer.
    """

    def __init__(self) -> None:
        self.armed, self.length = False, 0
        self.real: Tensor | None = None
        self.cuts: Sequence[LayerTokens | None] = ()


@dataclass(eq=False)
class Dropping:
    """Leaves tokens out of a model with a mask, or says why all are computed.

    Args:
        asked: As `attach` was given it: True, or leading rows that are read.
        read: Leading rows of the last layer that the model's head reads.
        layers: What holds one attention module each, in order.
        states: Of these modules.
        aside: Whether the call goes to attention beside its layer (`HANDED`), not through it.
        projections: Names, below each attention module, of what makes its keys and values of the
            states that its layer is given; empty where none can be used.
        padding: Whether padding is left out, where the model is told of it by `attention_mask`.
        problem: Why all tokens are computed, or empty.
    """

    asked: bool | int
    read: int = 0
    layers: list[nn.Module] = field(default_factory=list)
    states: list[LayerState] = field(default_factory=list)
    aside: bool = False
    projections: tuple[str, ...] = ()
    padding: bool = True
    problem: str = ""

    def __post_init__(self) -> None:
        self.running = LivePass()
        self.by_length: dict[tuple[int, torch.device], tuple[Tensor, Any]] = {}
        key = str(next(NUMBERS))
        SOURCES[key], self.in_graph = self, graph_function(key)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def put_on(self, model: nn.Module) -> list[Any]:
        """Hooks the model and its layers; returns the handles."""
        if self.problem:
            return []
        hooks: list[Any] = [
            model.register_forward_pre_hook(self.arm, with_kwargs=True),
            model.register_forward_hook(self.disarm, always_call=True),
        ]
        for number, layer in enumerate(self.layers):
            enter = partial(self.enter, number)
            hooks.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(layer.register_forward_hook(partial(self.leave, number)))
        return hooks

    def arm(self, model: nn.Module, positional: Any, named: Mapping[str, Any]) -> None:
        """Pre-forward hook of the model: from now on its layers may leave tokens out."""
        asked = named.get("output_hidden_states")
        config: Any = getattr(model, "config", None)
        shows = getattr(config, "output_hidden_states", False) if asked is None else asked
        graph = torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
        if torch.compiler.is_compiling():  # widths that follow the tokens are of no graph
            follows = any(state.token_mask is not None for state in self.states)
            graph = graph or self.aside or follows
        calls_again = _is_checkpointed if self.aside else is_reentrant
        again = torch.is_grad_enabled() and any(map(calls_again, self.layers))
        self.running.armed = not (shows or graph or again or Probe.calls is not None)
        if self.running.armed and self.padding and not torch.compiler.is_compiling():
            self.running.real = self.told_of_padding(model, positional, named)

    def told_of_padding(
        self, model: nn.Module, positional: Sequence[Any], named: Mapping[str, Any]
    ) -> Tensor | None:
        """Which tokens are no padding, bool `[batch, n]`; None = all, or of what is read some."""
        if len(positional) > 1:
            names = inspect.signature(model.forward).parameters
            named = {**dict(zip(names, positional, strict=False)), **named}
        mask = named.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.ndim not in (2, 3):
            return None
        real = mask.flatten(0, -2).bool()
        return real if real[:, : self.read].all() and not real.all() else None

    def disarm(self, *call: Any) -> None:
        """Forward hook of the same model, called after a failure too."""
        self.running.armed, self.running.real, self.running.cuts = False, None, ()

    def lower(self, length: int, device: torch.device) -> None:
        """Finds the tokens of each layer over inputs of that length, if they are not known."""
        if (length, device) not in self.by_length:
            masks = [state.lowered.mask for state in self.states if state.lowered is not None]
            live = live_by_layer(masks, length, self.read)
            by_layer = live[None].to(device)
            self.by_length[length, device] = by_layer, cuts(by_layer, not self.projections)

    def plan(self, length: int, device: torch.device) -> Sequence[LayerTokens | None]:
        """The tokens of each layer in the running pass, over inputs of that length."""
        real, whole = self.running.real, not self.projections
        token_masks = [state.token_mask for state in self.states if state.token_mask is not None]
        if not token_masks:
            graph = torch.compiler.is_compiling()
            lower = partial(self.in_graph, "lower") if graph else self.lower
            lower(fixed(length), device)
            by_layer, made = self.by_length[length, device]
            if real is None or real.shape[1] != length:
                found: Sequence[LayerTokens | None] = made
                return found
            return cuts(by_layer & real.to(device)[:, None], whole)
        live = [torch.arange(length, device=device)[None] < self.read]
        for each in reversed(token_masks):
            if each.table is None or each.table.shape[-1] != length:  # attention says so
                return [None] * len(self.states)
            before = needed_before(each.table, live[-1])
            live.append(before if real is None else before & real)
        texts = max(map(len, live))
        return cuts(torch.stack([each.expand(texts, -1) for each in live[::-1]], 1), whole)

    def explain(self, lengths: Iterable[int]) -> Iterator[str]:
        """Sentences on what is left out of inputs of some lengths."""
        if self.problem:
            yield f"All tokens are computed: {self.problem}."
            return
        if self.padding:
            yield "Padding is left out, where the model is told of it and reads none."
        if any(state.token_mask is not None for state in self.states):
            yield "Tokens that no one will look at again are left out, each row's own."
        else:
            for length in lengths:
                kept = [length if cut is None else cut.asks for cut in self.plan(length, CPU)]
                yield (
                    f"Of {length} tokens the layers compute {', '.join(map(str, kept))}; no one "
                    "looks at the others again."
                )

    def enter(
        self, number: int, layer: nn.Module, positional: Any, named: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Pre-forward hook of a layer: takes what it needs from the hidden states at hand."""
        running = self.running
        if not running.armed:
            return None
        states: Tensor = positional[0] if positional else named["hidden_states"]
        if number == 0:
            running.length = states.shape[1]
            running.cuts = self.plan(running.length, states.device)
        cut = running.cuts[number]
        if cut is None:
            return None
        if cut.packing is not None and number == 0:
            states = states.flatten(0, 1)[None]
        asks = cut.asks if self.projections else len(cut.places)
        others = None
        if cut.order is not None:
            if len(cut.order) > asks:
                others = states.index_select(1, cut.order[asks:])
            states = states.index_select(1, cut.order[:asks])
        call = LiveCall(
            running.length, cut.queries, cut.keys, others, self.projections, cut.packing
        )
        if self.aside:
            HANDED.call = call
        else:
            named = {**named, ARGUMENT: call}
        if rotary := named.get("position_embeddings"):
            named["position_embeddings"] = tuple(_at(each, cut, asks) for each in rotary)
        if positional:
            return (states, *positional[1:]), named
        return (), {**named, "hidden_states": states}

    def leave(self, number: int, layer: nn.Module, positional: Any, output: Any) -> Any:
        """Forward hook of a layer: what has gone through it and is not needed after it goes, and
        behind the last one the texts are side by side again."""
        cut = self.running.cuts[number] if self.running.armed else None
        if cut is None:
            return None
        states = output[0] if isinstance(output, tuple) else output
        left = states[:, : cut.asks]
        if cut.packing is not None and number == len(self.layers) - 1:
            texts, read = len(cut.packing.keys), min(self.read, self.running.length)
            left = left[:, : texts * read].reshape(texts, read, -1)
        if left.shape == states.shape:
            return None
        return (left, *output[1:]) if isinstance(output, tuple) else left


def _at(rotary: Tensor, cut: LayerTokens, asks: int) -> Tensor:
    """Rotations `[batch | 1, n, width]` of a layer's tokens alone."""
    places = cut.places[:asks]
    if cut.packing is None:
        return rotary.index_select(1, places)
    if len(rotary) == 1:
        return rotary.index_select(1, places % rotary.shape[1])
    return rotary.flatten(0, 1).index_select(0, places)[None]


def _is_checkpointed(layer: nn.Module) -> bool:
    """Whether a layer is computed again on the way back."""
    known = isinstance(layer, GradientCheckpointingLayer)
    return known and layer.training and bool(layer.gradient_checkpointing)


def is_reentrant(layer: nn.Module) -> bool:
    """Whether a layer's checkpoints go backward by a call of their own, torch's default."""
    function = getattr(layer, "_gradient_checkpointing_func", None)
    if not _is_checkpointed(layer) or not isinstance(function, partial):
        return False
    return function.keywords.get("use_reentrant", function.func is checkpoint) is not False


# -- whether it can be done --------------------------------------------------------------------
class Watch:
    """Finds what makes keys and values, handed to attention in the place of a `LiveCall`.

    Args:
        states: The hidden states that the layer is given.
    """

    def __init__(self, states: Tensor) -> None:
        self.states, self.names = states, ("", "")

    def note(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Looks below an attention module for what makes these of the states."""
        self.names = self._find(module, key), self._find(module, value)

    def _find(self, module: nn.Module, made: Tensor) -> str:
        """The name of what makes `[batch, heads, n, head_dim]`; empty where nothing does."""
        for name, part in module.named_modules():
            if not isinstance(getattr(part, "weight", None), Tensor):
                continue
            with suppress(*FAILURES):
                out = part(self.states).unflatten(-1, (made.shape[1], -1)).transpose(1, 2)
                if out.shape == made.shape and torch.equal(out, made):
                    return str(name)
        return ""


def _rows_of_head(model: nn.Module) -> int:
    """How many leading rows of the last hidden states a model's head reads; 0 = not known."""
    config, name = cast(Any, getattr(model, "config", None)), type(model).__name__
    known = type(model).__module__.startswith("transformers.") and name not in OTHERS
    pooling = (
        getattr(config, "classifier_pooling", "cls"),
        getattr(config, "summary_type", "first"),
    )
    if not known or not name.endswith(HEADS) or pooling != ("cls", "first"):
        return 0
    return int(getattr(config, "model_type", None) in READ_FIRST)


def _layers_around(model: nn.Module, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The member of a list of layers that holds each attention module; None twice is no layer."""
    names = names_of(model)
    listed = [name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    found = []
    for module in modules:
        around = [name for name in listed if names[module].startswith(f"{name}.")]
        if not around:
            return []
        depth = max(name.count(".") + 1 if name else 0 for name in around)
        found.append(model.get_submodule(".".join(names[module].split(".")[: depth + 1])))
    return found if len({*map(id, found)}) == len(found) else []


def prepare(
    model: nn.Module,
    part: Part,
    calls: Sequence[Call],
    asked: bool | int,
    inputs: Mapping[str, Any] | None,
    aside: bool,
    put_on: Callable[[Mask], Iterable[LayerState]],
) -> Dropping:
    """How tokens are left out of a model, tried on a few tokens, or why all are computed.

    Args:
        model: What `attach` was given, without wrappers.
        part: The attention layers that get the mask.
        calls: Those of the probe.
        asked: As `attach` was given it.
        inputs: Keyword arguments of a forward pass; None = made-up ones.
        aside: Whether adapters are on its attention; see `own_code`.
        put_on: Attaches a mask to that part and returns the states of its layers.
    """
    title, modules = type(model).__name__, [call.module for call in part.calls]
    read = _rows_of_head(model) if asked is True else int(asked)
    layers = _layers_around(model, modules)
    if not read:
        problem = (
            f"which rows the head of {title} reads is not known; if it is the first alone, "
            "drop_tokens=1 says so"
        )
    elif part.name != SELF or any(call.causal or call.queries != call.keys for call in part.calls):
        problem = f"{title} is not one encoder"
    elif not layers or len(calls) != len(modules):
        problem = f"{title} is no list of layers that attend once each"
    else:
        problem = ""
    if problem:
        return Dropping(asked, problem=problem)
    example, length = dict(inputs or {}), part.calls[0].queries
    if inputs is None:
        whom = model, pretrained_models(model)[0], next(model.parameters()).device
        example = example_inputs(*whom)
        if "input_ids" in example:
            example, length = example_texts(*whom), TRIAL
    thin = [max(read, length - (n + 1) * length // (len(layers) + 1)) for n in range(len(layers))]
    states = [*put_on(PerLayer(tuple(map(Columns, thin))))]
    whole, names = _outputs(model, example), _watched(model, layers, aside, example)
    problem = ""
    for projections in dict.fromkeys((names, ())):
        for padding in (False, True):  # texts side by side, and as one sequence without padding
            how: Any = {"aside": aside, "projections": projections, "padding": padding}
            tried = Dropping(asked, read, layers, states, **how)
            if problem := _problem_with(tried, model, example, whole):
                break
        if not problem:  # a new one: the tried one knows the trial's tokens at its length
            how["padding"] = tried.told_of_padding(model, (), example) is not None
            return Dropping(asked, read, layers, **how)
    return Dropping(asked, problem=f"{title} computes otherwise without some tokens: {problem}")


def _problem_with(
    dropping: Dropping, model: nn.Module, example: Mapping[str, Any], whole: list[Tensor]
) -> str:
    """Why tokens can't be left out this way; empty where outputs are those of all tokens."""
    hooks = dropping.put_on(model)
    try:
        return _difference(whole, _outputs(model, example))
    except FAILURES as error:
        if ran_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(model: nn.Module, example: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model returns, in evaluation mode and without gradient."""
    eager = torch.compiler.set_stance("force_eager")
    with torch.no_grad(), eager, keeping_modes(model):
        out = model.eval()(**example)
    several = (out,) if isinstance(out, Tensor) else getattr(out, "to_tuple", lambda: out)()
    return [each for each in several if isinstance(each, Tensor)]


def _watched(
    model: nn.Module, layers: Sequence[nn.Module], aside: bool, example: Mapping[str, Any]
) -> tuple[str, ...]:
    """Names of what makes keys and values, if they are the same in all layers; empty if not."""
    watches: list[Watch] = []

    def watch(layer: nn.Module, positional: Any, named: dict[str, Any]) -> Any:
        watches.append(Watch(positional[0] if positional else named["hidden_states"]))
        if aside:
            HANDED.call = watches[-1]
            return None
        return positional, {**named, ARGUMENT: watches[-1]}

    hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    try:
        _outputs(model, example)
    except FAILURES as error:  # a layer that takes no other arguments
        if ran_out_of_memory(error):
            raise
        return ()
    finally:
        for hook in hooks:
            hook.remove()
    names = {each.names for each in watches}
    return names.pop() if len(names) == 1 and all(all(each) for each in names) else ()


def _difference(whole: list[Tensor], left: list[Tensor]) -> str:
    """How outputs differ by more than rounding; empty where they do not."""
    if [each.shape for each in whole] != [each.shape for each in left]:
        return f"outputs {[list(each.shape) for each in left]}"
    for one, other in zip(whole, left, strict=True):
        allowed = ROUNDING.get(one.dtype, IN_HALF) * float(one.abs().max())
        off = float((one - other).abs().max())
        if not off <= allowed:
            return f"an output is off by {off:.1e}"
    return ""
