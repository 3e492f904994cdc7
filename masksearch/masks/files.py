"""Masks in files: JSON, or safetensors where they hold tables. Never pickle."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from masksearch.errors import MaskFormatError, TokensNeededError
from masksearch.files import write_in_one_move
from masksearch.masks.core import Mask


def save_mask(mask: Mask, path: Path | str) -> Path:
    """Writes a mask to `.json` (any mask) or `.safetensors` (its tables as tensors).

    The file is written beside its place and moved there, so that a crash leaves no half mask.

    Raises:
        ValueError: If the suffix is another.
    """
    path = Path(path)
    with write_in_one_move(path) as beside:
        if path.suffix == ".json":
            beside.write_text(mask.to_json(), encoding="utf-8")
        elif path.suffix == ".safetensors":
            from safetensors.torch import save_file

            tensors: dict[str, Tensor] = {}
            tree = json.dumps(mask.to_dict(tensors))
            save_file(tensors, beside, metadata={"masksearch_mask": tree})
        else:
            raise ValueError(f"a mask is saved as .json or .safetensors, got {path.name!r}")
    return path


def load_mask(path: Path | str, *, content: bool = True) -> Mask:
    """Reads what `save_mask` wrote. Never runs code from the file.

    Args:
        path: A `.json` or `.safetensors` file.
        content: Whether its cells may follow the tokens.

    Raises:
        FileNotFoundError: If there is no such file.
        MaskFormatError: If the file is truncated, foreign or edited.
        TokensNeededError: If its cells follow the tokens, and `content` is off.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    if path.suffix not in (".json", ".safetensors"):
        raise MaskFormatError(
            f"{path}: a mask file ends in .json or .safetensors; for an array of your own take "
            "masks.from_numpy(cells) or masks.from_block_layout(layout, block), for the mask of "
            "a run masks.parse('RUN#7')"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask file")
    if path.suffix == ".json":
        text: str | bytes | None = path.read_bytes()
    else:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("masksearch_mask")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise MaskFormatError(f"{path}: not a readable safetensors file: {error}") from error
    if text is None:
        raise MaskFormatError(f"{path}: holds no mask (no 'masksearch_mask' in its metadata)")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskFormatError(f"{path}: not JSON that can be read: {error}") from error
    try:
        mask = Mask.from_dict(data, tensors)
    except MaskFormatError as error:
        raise MaskFormatError(f"{path}: {error}") from error
    if not content and mask.needs_tokens:
        raise TokensNeededError(
            f"{path}: the cells of {mask} follow the tokens; put it on a model with "
            "masksearch.attach, or give a mask of positions here"
        )
    return mask
