"""What judging a mask on a trained decoder costs, over forward passes of the same tokens.

    python benchmarks/judging.py --weights CHECKPOINT --text FOLDER [--sequences 4] [--length 512]
    python benchmarks/judging.py --table         # the table again, from the JSON

One thread of a CPU: seconds of the process. The base is one forward pass of transformers' own
model, without a mask, that says the loss of the held-out tokens, a sequence at a time. Against it:

one mask      `CausalEvaluator(adapt="none")` of a mask that shares no layer with the one before
leave one out every layer in turn local, the others full: passes of the base for all of them
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rounds import interleaved, machine, ratios, spread

import masksearch as ms
from masksearch import masks
from masksearch_decoders import CausalEvaluator

RESULTS = Path(__file__).parent / "results"
LOCAL = masks.columns(4) | masks.window(27)


def measured(judge: CausalEvaluator, rounds: int) -> dict[str, Any]:
    """Shares of the base's passes, of every round: the spread over rounds."""
    layers, scratch = judge.shape.layers, Path(tempfile.mkdtemp())
    plain = judge.dense(0).model.eval()

    def judged(chosen: Sequence[ms.Mask]) -> None:
        for mask in chosen:
            for _ in judge(mask, seed=0, workdir=scratch):
                pass

    def forward() -> None:
        half = judge.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for row in judge.rows.tokens.split(1):
                plain(row, labels=row, use_cache=False).loss.item()

    left_out = [
        masks.per_layer([LOCAL if at == layer else masks.full() for at in range(layers)])
        for layer in range(layers)
    ]
    alternating = [masks.window(30), masks.window(31)]  # no layer as before, each time
    sides = {
        "forward": forward,
        "one mask": lambda: judged(alternating),
        "leave one out": lambda: judged(left_out),
    }
    times = interleaved(sides, rounds, 600.0, torch.device("cpu"))
    passes = {"one mask": len(alternating), "leave one out": layers}
    return {
        "layers": layers,
        "tokens": judge.rows.tokens.numel(),
        "forward_seconds": spread(times["forward"]),
        "share": {
            name: spread([1 / (count * ratio) for ratio in ratios(times, "forward", name)])
            for name, count in passes.items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| what | forward passes for each mask (10 to 90 %) |", "|---|---|"]
    for name, share in found["share"].items():
        ends = f"{share['low']:.2f} to {share['high']:.2f}"
        lines.append(f"| {name} | {share['median']:.2f} ({ends}) |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a decoder: folder, Hub name or GGUF file")
    parser.add_argument("--text", help="file or folder of texts")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of judging.json")
    given = parser.parse_args()
    path = given.out / "judging.json"
    torch.set_num_threads(1)
    if not given.table:
        if not (given.weights and given.text):
            parser.error("what is judged needs --weights and --text")
        judge = CausalEvaluator(
            given.text,
            weights=given.weights,
            length=given.length,
            held_out_sequences=given.sequences,
            split="all",
            cost="kv_bytes",
            precision=given.precision,
        )
        found = machine(torch.device("cpu")) | {"model": Path(given.weights).name}
        found |= {"length": given.length, "precision": given.precision}
        found |= measured(judge, given.rounds)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
