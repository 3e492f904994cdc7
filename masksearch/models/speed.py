"""Times a whole model under its mask against itself without it."""

from __future__ import annotations

import inspect
import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch.utils.benchmark import timer
from transformers import DynamicCache

from masksearch.attention.attach import attached, detach
from masksearch.attention.explain import explain, wrapped
from masksearch.attention.probe import pretrained_models, unwrapped
from masksearch.errors import AttachError, UnknownNameError
from masksearch.masks.checks import at_least
from masksearch.models.checkpoints import check_positions
from masksearch.models.embedding import transformer_of
from masksearch.models.pretrained import count_positions
from masksearch.neighbours import load_part


@dataclass(frozen=True)
class Speed:
    """How fast a whole model is, dense and masked; `str()` says it."""

    work: str  # "forward pass" without a cache, or "generation" of single tokens with one
    length: int  # tokens of a sequence
    times_as_fast: list[float]  # the mask, over pairs of runs: lower quartile, median, upper
    rates: list[float]  # tokens a second, dense and masked
    bytes: list[int]  # likewise: a pass's peak on CUDA, else none; a sequence's cache

    def __str__(self) -> str:
        low, ratio, high = self.times_as_fast
        gain = "" if low > 1 else "slower, " if high < 1 else "no clear gain, "
        text = f"{self.work} at {self.length} tokens: {gain}{ratio:.2f} times as fast (quartiles "
        text += f"{low:.2f} to {high:.2f}); tokens a second: dense {{:,.1f}}, masked {{:,.1f}}; "
        text += "cache: " if self.work == "generation" else "peak memory: "
        text += "dense {:,}, masked {:,} bytes" if self.bytes else "not measured on this device"
        return wrapped(text.format(*self.rates, *self.bytes))


def measure_speed(
    model: torch.nn.Module, length: int, batch: int = 1, repeats: int = 20, progress: bool = True
) -> list[Speed]:
    """Times a whole model under its mask against itself without it; of a decoder generation too.

    Copies that share the weights take turns on made-up tokens in evaluation mode, after two runs
    each. Times are wall time, the device synchronised. It has not been run on CUDA.

    Args:
        model: As `attach` was given it; it stays as it is.
        length: Tokens of a sequence; the last `repeats` + 2 are generated.
        batch: Sequences of a run.
        repeats: Pairs of runs (>= 10); the masked one begins every other pair.
        progress: Whether to say on standard error how long it takes.

    Raises:
        AttachError, LengthError: If nothing is attached; if model or mask have fewer positions.
        ValueError: If the model takes no token ids, or a number is out of range.
    """
    model = transformer_of(model)
    explain(model, length)  # refuses a model without a mask of that length
    root, (mask, *others) = pretrained_models(model)[0], attached(model).values()
    names = inspect.signature(unwrapped(model).forward).parameters
    if "input_ids" not in names:
        raise ValueError(f"{type(model).__name__} takes no input_ids, and only texts are timed")
    check_positions(type(root).__name__, count_positions(root)[0], length)
    ids = torch.arange(at_least("batch", batch, 1) * length, device=root.device)
    ids = ids.remainder(root.get_input_embeddings().weight.shape[0]).view(batch, length)
    given = {"input_ids": ids, "decoder_input_ids": ids, "logits_to_keep": 1, "use_cache": False}
    given = {name: value for name, value in given.items() if name in names}
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    sides = [deepcopy(model, dict(shared)).eval() for _ in ("dense", "masked")]
    detach(sides[0])
    timed = partial(race, at_least("repeats", repeats, 10), f"{length} tokens" if progress else "")
    with torch.inference_mode():
        found = timed(root.device, batch * length, [partial(side, **given) for side in sides])
        results = [Speed("forward pass", length, *found)]
        if not root.can_generate() or length <= repeats + 2 or others:
            return results
        try:
            until = min(2 * length, getattr(mask, "longest", None) or 2 * length)
            made = load_part("parts", "MaskedCache", "cache")(sides[1], until)
        except (AttachError, UnknownNameError) as error:
            warnings.warn(f"generation is not timed: {error}", stacklevel=2)
            return results
        steps, caches = [], [DynamicCache(config=root.config), made]
        for side, cache in zip(sides, caches, strict=True):
            given |= {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}
            side(**given | {"input_ids": ids[:, : -repeats - 2]})
            steps.append(partial(side, **given | {"input_ids": ids[:, -1:]}))
        speeds, rates, _ = timed(root.device, batch, steps)
    kv = load_part("parts", "kv_bytes", "count")(mask, root, length)
    return [*results, Speed("generation", length, speeds, rates, [kv.dense_bytes, kv.bytes])]


def race(repeats: int, say: str, device: torch.device, tokens: int, runs: list[Any]) -> Any:
    """The figures of `Speed` from two runs, dense and masked, without its work and length."""
    cuda, peaks = device.type == "cuda", []
    times: list[list[float]] = [[], []]
    for side in [0, 1, 0, 1, *([0, 1, 1, 0] * repeats)[: 2 * repeats]]:  # four to warm up
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        start = timer()
        runs[side]()
        times[side].append(timer() - start)
        peaks += [torch.cuda.max_memory_allocated(device)] if cuda else []
        if say and len(times[0]) == len(times[1]) == 2:
            print(f"{say}: about {repeats * (times[0][1] + times[1][1]):.0f} s", file=sys.stderr)
    dense, masked = (spent[2:] for spent in times)
    quarters = quantiles(map(float.__truediv__, dense, masked), n=4, method="inclusive")
    return quarters, [tokens / median(dense), tokens / median(masked)], peaks[:2]
