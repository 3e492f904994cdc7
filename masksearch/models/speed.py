"""Times a whole model under its mask against itself without it, and under many masks in turns."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from statistics import median, quantiles
from typing import Any

import torch
from torch.utils.benchmark import timer
from transformers import DynamicCache

from masksearch.attention.attach import attached, detach
from masksearch.attention.explain import explain, wrapped
from masksearch.attention.probe import opened, pretrained_models, unwrapped
from masksearch.errors import AttachError, UnknownNameError
from masksearch.files import wait_for_hang_up
from masksearch.masks.checks import at_least
from masksearch.models.checkpoints import check_positions
from masksearch.models.pretrained import count_positions
from masksearch.neighbours import load_part

Batches = Sequence[Mapping[str, Any]]
Change = Callable[[torch.nn.Module], torch.nn.Module]


@dataclass(frozen=True)
class Speed:
    """How fast a whole model is, dense and masked; `str()` says it."""

    work: str  # "forward pass" without a cache, or "generation" of single tokens with one
    length: int  # tokens of a sequence
    times_as_fast: list[float]  # the mask, over pairs of runs: lower quartile, median, upper
    rates: list[float]  # tokens a second: dense, in the median, and that times the ratio's median
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
    model = opened(model) or model
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
    timed = partial(
        _race, at_least("repeats", repeats, 10), f"{length} tokens" if progress else ""
    )
    with torch.inference_mode():
        runs = [partial(side, **given) for side in sides]
        times, rates = timed(batch * length, runs)
        peaks = [peak_bytes(run, root.device) for run in runs if root.device.type == "cuda"]
        results = [Speed("forward pass", length, times, rates, peaks)]
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
        speeds, rates = timed(batch, steps)
    kv = load_part("parts", "kv_bytes", "count")(mask, root, length)
    return [*results, Speed("generation", length, speeds, rates, [kv.dense_bytes, kv.bytes])]


def _race(repeats: int, say: str, tokens: int, runs: list[Any]) -> Any:
    """`Speed.times_as_fast` and `Speed.rates` of two runs, dense and masked."""
    dense, masked = take_turns([[run] for run in runs], repeats, 2, say)
    times, rate = quarters(dense, masked), tokens / median(dense)
    return times, [rate, rate * times[1]]


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most memory that a run holds on a card."""
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def quarters(dense: Sequence[float], masked: Sequence[float]) -> list[float]:
    """How many times as fast, over pairs of runs: lower quartile, median, upper quartile."""
    return quantiles(map(float.__truediv__, dense, masked), n=4, method="inclusive")


def take_turns(
    runs: Sequence[Sequence[Callable[[], Any]]], repeats: int, warm: int = 1, say: str = ""
) -> list[list[float]]:
    """Seconds of each run in each of so many turns.

    Args:
        runs: Calls, in their order. In a turn all runs make their first call, then their second
            one, and so on, every other time backwards; the device is synchronised.
        repeats: Turns.
        warm: How many more there are beforehand, untimed.
        say: Begins the line that says on standard error how long it takes; none = no line.
    """
    times: list[list[float]] = [[] for _ in runs]
    order = [*range(len(runs))]
    for turn in range(-warm, repeats):
        spent = [0.0 for _ in runs]
        for calls in zip_longest(*runs):
            for side in order:
                if (call := calls[side]) is not None:
                    start = timer()
                    call()
                    spent[side] += timer() - start
            order.reverse()
        if turn == -1 and say:
            print(f"{say}: about {repeats * sum(spent):.0f} s", file=sys.stderr, flush=True)
        if turn >= 0:
            for each, seconds in zip(times, spent, strict=True):
                each.append(seconds)
    return times


def time_variants(
    model: torch.nn.Module,
    batches: Batches,
    variants: Mapping[str, tuple[Change, Batches]],
    repeats: int,
    device: torch.device,
    say: str = "",
) -> dict[str, list[float]]:
    """How many times as fast a model is in each variant, beside itself as it is, in a process of
    its own: name -> lower quartile, median and upper quartile over passes through all batches.

    Args:
        model: It stays as it is.
        batches: Arguments of its forward passes; tensors on the CPU.
        variants: Name -> what changes a copy that shares the weights, and that one's batches.
        repeats: As of `take_turns`.
        device: Where to.
        say: As of `take_turns`.
    """
    work = model, batches, dict(variants), repeats, device, say, torch.get_num_threads()
    paths = os.pathsep.join(filter(None, sys.path))
    made = subprocess.run(
        [sys.executable, "-c", "from masksearch.models.speed import serve; serve()"],
        input=pickle.dumps(work),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
    )
    dense, *others = json.loads(made.stdout.splitlines()[-1])
    return {name: quarters(dense, own) for name, own in zip(variants, others, strict=True)}


def serve() -> None:
    """The other end of `time_variants`: work on standard input, seconds on standard output."""
    threading.Thread(target=_end_unread, daemon=True).start()
    model, batches, variants, repeats, device, say, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    model = model.to(device).eval()
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    sides = [(model, batches)]
    sides += [(change(deepcopy(model, dict(shared))), own) for change, own in variants.values()]
    runs = [
        [partial(side, **{name: part.to(device) for name, part in each.items()}) for each in own]
        for side, own in sides
    ]
    with torch.inference_mode():
        print(json.dumps(take_turns(runs, repeats, say=say)))


def _end_unread() -> None:
    """Ends this process when nobody is left to read its answer, for it would disturb the timings
    that are made in its place."""
    wait_for_hang_up(sys.stdout.fileno())
    os._exit(1)
