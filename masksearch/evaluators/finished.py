"""What a run keeps of its finished parts: the pre-trained weights, the scores of tasks."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from masksearch.contracts import Report
from masksearch.distributed import group

log = logging.getLogger(__name__)


class Scores:
    """Scores of finished fine-tuning runs, in a JSON file; those under another key are dropped.

    Args:
        path: The file.
        key: Hash of everything that the scores depend on.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.found: dict[str, dict[str, float]] = {}
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                if stored["key"] == key:
                    self.found = stored["scores"]
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s is damaged (%s); its tasks are fine-tuned again", path, error)

    def get(self, name: str) -> dict[str, float] | None:
        """The scores of that run, or None if it is not finished."""
        return self.found.get(name)

    def put(self, name: str, values: dict[str, float]) -> None:
        """Keeps the scores of a run, in one move."""
        self.found[name] = values
        if not group().first:
            return
        partial = self.path.with_suffix(".partial")
        text = json.dumps({"key": self.key, "scores": self.found}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path)


def save(model: nn.Module, path: Path, key: str, curve: list[Report]) -> None:
    """Keeps the pre-trained weights and their reports, in one move; several processes once."""
    if not group().first:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    text = json.dumps([[report.step, dict(report.values)] for report in curve])
    save_file(weights, partial, {"key": key, "curve": text})
    partial.replace(path)


def restore(model: nn.Module, path: Path, key: str, steps: int) -> list[Report] | None:
    """Loads weights that were kept under the same key; returns their reports, else None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        warnings.warn(f"{path} is corrupt ({error}); pre-training again", stacklevel=4)
        return None
    model.load_state_dict(weights)
    if "curve" not in metadata:  # written before reports were kept
        return [Report(steps, {"loss": float(metadata["loss"])})]
    return [Report(step, values) for step, values in json.loads(metadata["curve"])]
