"""A checkpoint of twice as many positions, to be fine-tuned on rows of that length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
LENGTHS = {"config.json": "max_position_embeddings", "tokenizer_config.json": "model_max_length"}
COPIED = ("vocab.txt", "tokenizer.json", "special_tokens_map.json")


def stretch(start: Path, out: Path) -> Path:
    """Writes a BERT whose positions 2k and 2k + 1 both have the embedding that k had.

    Args:
        start: The folder of a checkpoint, with `model.safetensors`.
        out: Made here, unless it is there; and returned.
    """
    if out.is_dir():
        return out
    beside = out.with_name(f"{out.name}.part")
    beside.mkdir(parents=True, exist_ok=True)
    weights = load_file(start / WEIGHTS)
    (name,) = [each for each in weights if each.endswith("position_embeddings.weight")]
    weights[name] = weights[name].repeat_interleave(2, 0)
    kept = {name: each for name, each in weights.items() if not name.endswith("position_ids")}
    save_file(kept, beside / WEIGHTS, {"format": "pt"})
    for file, setting in LENGTHS.items():
        settings = json.loads((start / file).read_text()) if (start / file).is_file() else {}
        settings[setting] = len(weights[name])
        (beside / file).write_text(json.dumps(settings, indent=1) + "\n")
    for path in filter(Path.is_file, map(start.joinpath, COPIED)):
        shutil.copy(path, beside)
    return beside.rename(out)
