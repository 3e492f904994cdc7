"""A folder that an engine serves: the model in its format, SERVING.md, and a check of its log.

    write_folder(Path("served"), native, "llama.cpp", tokenizer, facts)

| model.gguf, or config.json, model.safetensors and the tokenizer | what the engine opens |
| SERVING.md | its command, the bytes that it should hold, what the mask loses |
| check_serving.py, serving.json | says from the engine's own log whether it does |
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from masksearch.errors import NativeError
from masksearch.models.checkpoints import quiet
from masksearch.models.plan import describe_loss, describe_rival, describe_rows
from masksearch.models.saving import copy_tokenizer
from masksearch.serving import check_serving
from masksearch.serving.engines import VERSIONS, Serving, Target
from masksearch.serving.gguf import to_gguf
from masksearch.serving.llama_cpp import LlamaCpp
from masksearch.serving.native import from_native

GGUF = "model.gguf"
FORMAT = "masksearch-served-1"  # of serving.json; the next one has the next number
APART = 0.02  # nats a token between the model in float32 and its file in float16, at most
NOTICED = 0.02  # nats a token within the window, from which on SERVING.md warns
TRIED = 256  # tokens by which the folder is tried


def write_folder(
    out: Path,
    model: Any,
    target: Target,
    tokenizer: Path,
    facts: Mapping[str, Any],
    tokens: Tensor,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Writes the folder beside its place, opens it again, and then moves it there.

    Args:
        out: The folder; there is none yet.
        model: What `to_native` returned; it is cast to `dtype`.
        target: The engine.
        tokenizer: Folder with the tokenizer's files.
        facts: What serving.json holds: see `write_page`.
        tokens: int64 `[positions]`, by which it is tried.
        dtype: Of the weights that are written.

    Returns:
        What was tried, and the nats a token by which the folder differed.

    Raises:
        NativeError: If the engine's format has no place for the model, or the folder computes
            something else. Then nothing is left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    tokens = tokens[:TRIED]
    expected = nats(model, tokens)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        beside = Path(place) / out.name
        beside.mkdir()
        if target == "llama.cpp":
            to_gguf(model, beside / GGUF, tokenizer=tokenizer, dtype=dtype)
        else:
            with quiet():
                model.to(dtype).save_pretrained(beside)
            copy_tokenizer(tokenizer, beside)
        found = {"format": FORMAT, **facts} | {
            "tried": try_folder(beside, model, target, tokens, expected)
        }
        (beside / "serving.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        shutil.copy(Path(check_serving.__file__), beside)
        (beside / "SERVING.md").write_text(write_page(found, out), "utf-8")
        beside.rename(out)
    return found


def try_folder(
    folder: Path, model: PreTrainedModel, target: Target, tokens: Tensor, expected: float
) -> dict[str, Any]:
    """Opens what was written, with what there is here, and compares.

    Raises:
        NativeError: If it is not the model that was meant.
    """
    if target == "llama.cpp" and find_spec("llama_cpp") is None:
        return {"by": "nothing: llama-cpp-python is not installed"}
    if target == "llama.cpp":
        with LlamaCpp(folder / GGUF, Serving(length=len(tokens), ubatch=64)) as engine:
            by, said = f"llama-cpp-python {engine.version}", float(engine.losses(tokens).mean())
    else:
        with quiet():
            opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if from_native(opened) != from_native(model):
            raise NativeError(
                f"{type(opened).__name__} reads {from_native(opened)} from the folder, "
                f"{from_native(model)} was meant; nothing was left there"
            )
        by, said = f"transformers {transformers.__version__}", nats(opened, tokens)
    if not abs(said - expected) <= APART:
        raise NativeError(
            f"{by} loses {said:.4f} nats a token on the file, the model {expected:.4f}; at most "
            f"{APART} are rounding. Nothing was left there"
        )
    return {"by": by, "tokens": len(tokens), "nats": said, "expected": expected}


@torch.no_grad()
def nats(model: Any, tokens: Tensor) -> float:
    """Mean loss of each token but the first."""
    return float(model.eval()(tokens[None], labels=tokens[None], use_cache=False).loss)


def command(target: Target, folder: str, serving: Mapping[str, Any]) -> str:
    """What starts the engine as it was planned."""
    name, length = shlex.quote(folder), serving["length"]
    if target == "vllm":
        batched = max(1, serving["in_flight"] // 2)  # two batches are in flight
        return (
            f"vllm serve {name} --max-model-len {length} --max-num-batched-tokens {batched} "
            f"--block-size {serving['block']} 2>&1 | tee server.log"
        )
    if target == "sglang":
        return (
            f"python -m sglang.launch_server --model-path {name} --context-length {length} "
            "2>&1 | tee server.log"
        )
    kind, cache = serving["cache_type"], ""
    if kind != "f16":
        cache = f" --cache-type-k {kind} --cache-type-v {kind} --flash-attn on"
    buffers = " --kv-unified" if serving["unified"] else ""
    return (
        f"llama-server -m {shlex.quote(f'{folder}/{GGUF}')} --ctx-size {length} --ubatch-size "
        f"{serving['ubatch']} --parallel {serving['sequences']}{buffers}{cache} "
        "2>&1 | tee server.log"
    )


def write_page(facts: Mapping[str, Any], out: Path) -> str:
    """SERVING.md.

    Args:
        facts: `engine`, `model`, `units`, `form`, `settings` (of `Serving`), `kv_bytes` and
            `dense_kv_bytes`, `losses` and `tried`.
        out: Where the folder will stand.
    """
    target, settings, losses = facts["engine"], facts["settings"], facts["losses"]
    if target == "transformers":
        serve = (
            "```python\nmodel = transformers.AutoModelForCausalLM.from_pretrained("
            f"{str(out)!r})\n```"
        )
        check = "transformers applies the configuration by itself; its cache holds these bytes."
    else:
        serve = f"```bash\n{command(target, str(out), settings)}\n```"
        check = (
            "`python check_serving.py server.log` reads the engine's log and says whether it "
            "serves this (exit code 0), something else (1), or does not say (2)."
        )
    rows = [("dense attention", losses["dense"]), ("the mask, attached", losses["masked"])]
    rows.append((f"as it is served: {facts['form']}", losses["served"]))
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in rows)
    short, tried = losses["short"], facts["tried"]
    apart = short["served"] - short["dense"]
    warning = ""
    if apart > NOTICED:
        warning = (
            f"\n**Not for short prompts.** On the first {short['positions']} positions, where a "
            f"window alone is dense attention, the served form loses {apart:.3f} nats a token.\n"
        )
    first = last = ""
    if target == "llama.cpp":
        last = "\nSmaller weights: `llama-quantize model.gguf model-q8_0.gguf q8_0`.\n"
        first = (
            "Compare first: a dense cache in q8_0 (`--cache-type-k q8_0 --cache-type-v q8_0`, "
            "53 % of the bytes; q4_0: 28 %) needs no mask, and goes with one.\n\n"
        )
    opened = f"Opened again by {tried['by']}"
    if "nats" in tried:
        opened += f": {tried['nats']:.4f} nats a token on {tried['tokens']} tokens, "
        opened += f"{tried['expected']:.4f} expected"
    if rival := facts.get("rival"):
        last = (
            f"\nWithin the same budget, `{rival['mask']}` in every layer, attached: "
            f"{describe_rival(rival)}.\n{last}"
        )
    share = facts["kv_bytes"] / facts["dense_kv_bytes"]
    return f"""# {facts["model"]}, for {target}

Written by masksearch; settings as of {VERSIONS[target]}. Mask: {facts["units"]}.

## Serve it

{serve}

## What it holds

| {settings["length"]:,} positions | bytes of keys and values |
|---|---|
| this folder | {facts["kv_bytes"]:,} ({share:.1%}) |
| dense | {facts["dense_kv_bytes"]:,} |

{check}

## What it loses

{first}| on {describe_rows(losses)} that the search has not seen | nats a token |
|---|---|
{table}

Served minus dense: {describe_loss(losses)}, 95 % interval over them. {opened}.
{warning}{last}"""
