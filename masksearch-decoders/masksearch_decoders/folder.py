"""A folder that an engine serves: the model in its format, SERVING.md, and a check of its log.

    write_folder(Path("served"), native, target, tokenizer, facts, tokens, dtype)

| model.gguf, or config.json, model.safetensors and the tokenizer | what the engine opens |
| SERVING.md | its command, the bytes that it should hold, what the mask loses |
| check_serving.py, serving.json | says from the engine's own log whether it does; a copy of
masksearch_decoders/check_serving.py, with the engine's own `read_log` behind it |
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from masksearch.errors import NativeError
from masksearch.models.checkpoints import quiet
from masksearch.models.saving import copy_tokenizer
from masksearch_decoders import check_serving
from masksearch_decoders.decoders import copy_beside
from masksearch_decoders.engine import GGUF, SLIDING, Engine
from masksearch_decoders.engines import ENGINES
from masksearch_decoders.engines.gguf import to_gguf, try_gguf
from masksearch_decoders.native import from_native
from masksearch_decoders.plan import (
    describe_added,
    describe_loss,
    describe_rival,
    describe_rows,
    task_groups,
)

SERVED = "serving.json"
FORMAT = "masksearch-served-1"  # of that file; the next one has the next number
APART = 0.02  # nats a token between the model and its file in float16, at most
NOTICED = 0.02  # nats a token within the window, from which on SERVING.md warns
TRIED = 256  # tokens by which the folder is tried
RUN = 'if __name__ == "__main__":\n    main(read_log)\n'  # the end of check_serving.py


def write_folder(
    out: Path,
    model: Any,
    target: str,
    tokenizer: Path,
    facts: Mapping[str, Any],
    tokens: Tensor,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Writes the folder beside its place, opens it again, and then moves it there.

    Args:
        out: The folder; there is none yet.
        model: What `to_native` returned; it is not changed.
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
    engine, tokens = ENGINES[target], tokens[:TRIED]
    expected = nats(model, tokens)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        beside = Path(scratch) / out.name
        beside.mkdir()
        slides = [kind == SLIDING for kind in getattr(model.config, "layer_types", None) or ()]
        if engine.gguf:
            to_gguf(model, beside / GGUF, tokenizer=tokenizer, dtype=dtype)
        else:
            with quiet():
                copy_beside(
                    model, lambda weight: nn.Parameter(weight.detach().to("cpu", dtype), False)
                ).save_pretrained(beside)
            copy_tokenizer(tokenizer, beside)
        facts_written = {"format": FORMAT, **facts, "slides": slides} | {
            "tried": _try_folder(beside, model, engine, tokens, expected)
        }
        (beside / SERVED).write_text(json.dumps(facts_written, indent=1) + "\n", "utf-8")
        if engine.read_log is not None:
            parts = [inspect.getsource(each) for each in (check_serving, engine.read_log)]
            (beside / "check_serving.py").write_text("\n\n".join([*parts, RUN]), "utf-8")
        (beside / "SERVING.md").write_text(write_page(facts_written, out), "utf-8")
        beside.rename(out)
    return facts_written


def _try_folder(
    folder: Path, model: PreTrainedModel, engine: Engine, tokens: Tensor, expected: float
) -> dict[str, Any]:
    """Opens what was written, with what there is here, and compares.

    Raises:
        NativeError: If it is not the model that was meant.
    """
    if engine.gguf:
        by, loss = try_gguf(folder / GGUF, tokens, model.config)
        if loss is None:
            return {"by": by}
    else:
        with quiet():
            opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if from_native(opened) != from_native(model):
            raise NativeError(
                f"{type(opened).__name__} reads {from_native(opened)} from the folder, "
                f"{from_native(model)} was meant; nothing was left there"
            )
        by, loss = f"transformers {transformers.__version__}", nats(opened, tokens)
    if not abs(loss - expected) <= APART:
        raise NativeError(
            f"{by} loses {loss:.4f} nats a token on the file, the model {expected:.4f}; at most "
            f"{APART} are rounding. Nothing was left there"
        )
    return {"by": by, "tokens": len(tokens), "nats": loss, "expected": expected}


@torch.no_grad()
def nats(model: Any, tokens: Tensor) -> float:
    """Mean loss of each token but the first."""
    tokens = tokens.to(model.device)
    return float(model.eval()(tokens[None], labels=tokens[None], use_cache=False).loss)


def _nats_by_form(facts: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], str]:
    """The loss a token of each form, by text and groups of tasks, and the rows of a Markdown
    table of them; the head of its first column is missing."""
    losses, rival = facts["losses"], facts.get("rival") or {}
    tasks = losses.get("tasks", {})
    rows = [("dense", "dense attention", losses["dense"])]
    rows.append(("plan", "the mask, attached", losses["masked"]))
    rows.append(("served", f"as it is served: {facts['form']}", losses["served"]))
    if "rival" in rival:
        rows.append(("rival", "one window in every layer, attached", rival["rival"]))
    groups, nats_of = task_groups(tasks), dict[str, dict[str, float]]()
    heads = ["nats a token", *groups]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for form, title, loss in rows:
        nats_of[form] = {"text": loss} | {name: tasks[form][f"nll/{name}"] for name in groups}
        numbers = " | ".join(f"{each:.4f}" for each in nats_of[form].values())
        lines.append(f"| {title} | {numbers} |")
    return nats_of, "\n".join(lines)


def write_page(facts: Mapping[str, Any], out: Path) -> str:
    """SERVING.md.

    Args:
        facts: `engine`, `model`, `units`, `form`, `settings` (of `Serving`), `kv_bytes` and
            `dense_kv_bytes`, `losses` and `tried`.
        out: Where the folder will stand.
    """
    engine, settings, losses = ENGINES[facts["engine"]], facts["settings"], facts["losses"]
    if engine.command is None:
        serve = (
            "```python\nmodel = transformers.AutoModelForCausalLM.from_pretrained("
            f"{str(out)!r})\n```"
        )
    else:
        serve = f"```bash\n{engine.command(str(out), settings)}\n```"
    rival = facts.get("rival") or {}
    nats_of, table = _nats_by_form(facts)
    short, tried = losses["short"], facts["tried"]
    apart = short["served"] - short["dense"]
    warning = ""
    if apart > NOTICED:
        warning = (
            f"\n**Not for short prompts.** On the first {short['positions']} positions, where a "
            f"window alone is dense attention, the served form loses {apart:.3f} nats a token.\n"
        )
    last, row = engine.after, engine.readings.get(facts["form"].partition(",")[0])
    oldest = ""
    if row is not None and row.since:
        oldest = f"\n**Needs {row.since}**: older builds slide other layers, without a word.\n"
    opened = f"Opened again by {tried['by']}"
    if "nats" in tried:
        opened += f": {tried['nats']:.4f} nats a token on {tried['tokens']} tokens, "
        opened += f"{tried['expected']:.4f} expected"
    if rival:
        last = (
            f"\nWithin the same budget, `{rival['mask']}` in every layer, attached: "
            f"{describe_rival(rival)}.\n{last}"
        )
    if losses.get("tasks"):
        added = {name: nats_of["served"][name] - loss for name, loss in nats_of["dense"].items()}
        warning += f"\nTo dense attention the served form adds {describe_added(added)}.\n"
    share = facts["kv_bytes"] / facts["dense_kv_bytes"]
    return f"""# {facts["model"]}, for {engine.name}

Written by masksearch; settings as of {engine.release}. Mask: {facts["units"]}.

## Serve it

{serve}

## What it holds

| {settings["length"]:,} positions | bytes of keys and values |
|---|---|
| this folder | {facts["kv_bytes"]:,} ({share:.1%}) |
| dense | {facts["dense_kv_bytes"]:,} |

{engine.check}
{oldest}
## What it loses

{engine.before}| on {describe_rows(losses)} that the search has not seen {table}

Served minus dense: {describe_loss(losses)}, 95 % interval over them. {opened}.
{warning}{last}"""
