"""Speed and memory of generation token by token: dense, MaskedCache, native sliding layers.

    python benchmarks/decode.py                  # contexts of 2k, 4k and 8k tokens
    python benchmarks/decode.py --table          # the table again, from the JSON
    python benchmarks/decode.py --smoke --out FOLDER

One whole Qwen3 with random weights (12 layers of 512, 8 heads, 2 KV heads), one text, float32 on
one thread of a CPU: seconds of the process. Every fourth layer is full, the others have a window.

dense     every layer full, transformers' DynamicCache
sinks     attached: 4 sinks and the last 251 keys in the local layers, MaskedCache
window    attached: the last 255 keys in the local layers, MaskedCache
native    the same windows as `layer_types` of the configuration, transformers' sliding layers

The caches are filled with random keys, because speed does not depend on them; so no prompt is
computed. A sample is some steps of one token, while the context grows by them. Sides take turns;
ratios are of two samples of one round, and a figure is the median of the rounds with the 10 and
90 % points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rounds import Side, faster, interleaved, machine, spread
from transformers import Cache, DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.masks import Mask
from masksearch_decoders import MaskedCache, kv_bytes

RESULTS = Path(__file__).parent / "results"
SPARE = 4096  # steps that a cache has room for beyond its context


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        lengths: Tokens in the cache.
        layers: Of the model; every `full`-th one is full.
        heads: Query heads of 64 numbers.
        kv_heads: Key-value heads.
        window: Keys that a local layer keeps, sinks included.
        sinks: Sinks of the side of that name.
        full: A layer in so many is full.
        rounds: Samples of each side.
        seconds: No round starts later than that, but three are made.
    """

    lengths: tuple[int, ...] = (2048, 4096, 8192)
    layers: int = 12
    heads: int = 8
    kv_heads: int = 2
    window: int = 255
    sinks: int = 4
    full: int = 4
    rounds: int = 21
    seconds: float = 60.0

    @property
    def types(self) -> list[str]:
        """Kinds of the layers, as a configuration writes them."""
        is_full = [(layer + 1) % self.full == 0 for layer in range(self.layers)]
        return ["full_attention" if one else "sliding_attention" for one in is_full]

    def config(self, native: bool) -> Qwen3Config:
        """Of the model, with its windows written in or not."""
        windows: dict[str, Any] = {
            "use_sliding_window": True,
            "sliding_window": self.window + 1,  # transformers counts the query's own key
            "layer_types": self.types,
        }
        return Qwen3Config(
            vocab_size=4096,
            hidden_size=64 * self.heads,
            intermediate_size=128 * self.heads,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=64,
            max_position_embeddings=max(self.lengths) + SPARE,
            attn_implementation="sdpa",
            **(windows if native else {}),
        )

    def mask(self, local: Mask) -> Mask:
        """Full layers, and others with that mask."""
        kinds = {"full_attention": masks.full(), "sliding_attention": local}
        return masks.per_layer([kinds[name] for name in self.types])


def models(setting: Setting) -> dict[str, tuple[PreTrainedModel, Mask]]:
    """Side -> a model with the same weights, and the mask that is attached to it or full."""
    torch.manual_seed(0)
    weights = Qwen3ForCausalLM(setting.config(native=False)).state_dict()

    def model(native: bool = False) -> PreTrainedModel:
        with torch.device("meta"):
            made = Qwen3ForCausalLM(setting.config(native))
        made.load_state_dict(weights, assign=True)
        made.model.rotary_emb = type(made.model.rotary_emb)(made.config)  # no weight: it is meta
        made.tie_weights()
        return made.eval()

    sinks = setting.mask(
        masks.columns(setting.sinks) | masks.window(setting.window - setting.sinks)
    )
    window = setting.mask(masks.window(setting.window))
    return {
        "dense": (model(), masks.full()),
        "sinks": (attach(model(), sinks), sinks),
        "window": (attach(model(), window), window),
        "native": (model(native=True), masks.full()),
    }


def filled(name: str, model: PreTrainedModel, length: int, setting: Setting) -> Cache:
    """A cache of the side with that many random keys and values in each layer."""
    cache: Cache = DynamicCache(config=model.config)
    if name in ("sinks", "window"):
        cache = MaskedCache(model)
    source = torch.Generator().manual_seed(length)
    for layer in range(setting.layers):
        shape = (1, setting.kv_heads, length, 64)
        cache.update(
            torch.randn(shape, generator=source), torch.randn(shape, generator=source), layer
        )
    return cache


def held_bytes(cache: Cache) -> int:
    """Of the keys and values in a cache."""
    found = [one for layer in cache.layers for one in (layer.keys, layer.values)]
    return sum(one.numel() * one.element_size() for one in found)


def measured(setting: Setting) -> Iterator[dict[str, Any]]:
    """One row a length: tokens a second and bytes of every side.

    Raises:
        ValueError: If a cache holds other than `kv_bytes` counts.
    """
    sides = models(setting)
    for length in setting.lengths:
        caches = {name: filled(name, model, length, setting) for name, (model, _) in sides.items()}
        counted = {name: kv_bytes(mask, model, length) for name, (model, mask) in sides.items()}
        held = {name: held_bytes(cache) for name, cache in caches.items()}
        for name, count in counted.items():
            if held[name] != count.bytes:
                raise ValueError(f"{name} holds {held[name]} bytes, counted {count.bytes}")

        def step(name: str, caches: dict[str, Cache] = caches) -> Side:
            token, model = torch.ones(1, 1, dtype=torch.int64), sides[name][0]

            def decode() -> object:
                with torch.inference_mode():
                    return model(token, past_key_values=caches[name]).logits

            return decode

        times = interleaved(
            {name: step(name) for name in sides},
            setting.rounds,
            setting.seconds,
            torch.device("cpu"),
        )
        yield {
            "length": length,
            "sides": {
                name: {
                    "tokens_a_second": spread([1 / one for one in times[name]]),
                    "faster": faster(times, "dense", name),
                    "bytes": held[name],
                    "share": counted[name].share,
                    "longest": caches[name].get_seq_length(),
                }
                for name in sides
            },
        }


def table(found: dict[str, Any]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| context | side | tokens/s | x dense (10 to 90 %) | cache, MB | share of dense |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        for name, side in row["sides"].items():
            ratio = side["faster"]
            lines.append(
                f"| {row['length']:,} | {name} | {side['tokens_a_second']['median']:.1f} | "
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | "
                f"{side['bytes'] / 1e6:.2f} | {side['share']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures every length, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(Setting.lengths))
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--smoke", action="store_true", help="tiny; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of decode.json")
    given = parser.parse_args()
    if given.smoke and given.out == RESULTS:
        parser.error("--smoke needs another --out: its figures must not mix with real ones")
    path = given.out / "decode.json"
    setting = Setting(lengths=tuple(given.lengths))
    if given.smoke:
        setting = Setting((48, 64), layers=3, heads=2, window=8, sinks=2, full=3, rounds=2)
    torch.set_num_threads(1)
    if not given.table:
        rows: list[dict[str, Any]] = []
        for row in measured(setting):
            rows.append(row)
            found = machine(torch.device("cpu")) | {"setting": asdict(setting), "rows": rows}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
