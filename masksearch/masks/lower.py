"""Lowering: from the expression to what a kernel reads. The one gate that forbids empty rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, Protocol, cast, overload

import torch
from torch import Tensor

from masksearch.errors import EmptyRowError, MaskFormatError
from masksearch.masks.content import ContentMask
from masksearch.masks.core import SHORT, DenseMask, Mask, grid
from masksearch.masks.flex_layout import flex_block_mask as flex_block_mask  # of this name too
from masksearch.masks.tiles import tile_view


class HasShape(Protocol):
    """Anything with a length, layers and heads (`masksearch.contracts.Shape`)."""

    @property
    def length(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...


def lower(mask: Mask, shape: HasShape) -> DenseMask:
    """The mask as the table that a model with that shape uses.

    Args:
        mask: Any mask.
        shape: Length in positions, layers, heads.

    Returns:
        bool `[layers, heads, n, n]`, True = may attend.

    Raises:
        EmptyRowError: If a query keeps no key; names layer, head and row.
        LayerCountError, HeadCountError, LengthError: If the mask has another shape.
    """
    mask.counts(shape.layers, shape.heads)
    table = mask.dense(shape.length, shape.layers, shape.heads)
    no_empty_rows(table)
    return table


def no_empty_rows(table: DenseMask) -> None:
    """Refuses a table `[layers, heads, n, n]` in which a query keeps no key."""
    empty = ~table.any(-1)
    if empty.any():
        layer, head, row = (int(index) for index in empty.nonzero()[0])
        raise EmptyRowError(
            f"layer {layer}, head {head}, row {row} keeps no key ({int(empty.sum())} empty rows "
            f"of {empty.numel()}); a row without keys has no attention: add for example "
            "masks.window(0), the diagonal"
        )


def block_view(mask: Mask, length: int, block: int) -> Tensor:
    """Which blocks of a square tiling hold a kept cell; no n x n tensor is made.

    Args:
        mask: Any mask.
        length: Positions; the last block may be ragged.
        block: Positions of a block's side (>= 1).

    Returns:
        bool `[layers, heads, ceil(n / block), ceil(n / block)]`; layers and heads are those
        that the mask tells apart.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
    if length > SHORT:
        return tile_view(mask, length, block)
    count = -(-length // block)
    query, key = grid(length)
    planes = (mask.layers or 1) * (mask.heads or 1)
    view = torch.zeros(planes, count, count, dtype=torch.bool)
    padded = torch.zeros(block, count * block, dtype=torch.bool)
    for row, rows in enumerate(torch.split(query, block)):
        for plane, cells in enumerate(mask.planes(length, rows, key)):
            padded.zero_()
            padded[: cells.shape[0], :length] = cells
            view[plane, row] = padded.view(block, count, block).any(2).any(0)
    return view.view(mask.layers or 1, mask.heads or 1, count, count)


def save_mask(mask: Mask | ContentMask, path: Path | str) -> Path:
    """Writes a mask to `.json` (any mask) or `.safetensors` (its tables as tensors).

    The file is written beside its place and moved there, so that a crash leaves no half mask.

    Raises:
        ValueError: If the suffix is another.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    if path.suffix == ".json":
        partial.write_text(mask.to_json(), encoding="utf-8")
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        tree = json.dumps(taken_out(mask, tensors))
        save_file(tensors, partial, metadata={"masksearch_mask": tree})
    else:
        raise ValueError(f"a mask is saved as .json or .safetensors, got {path.name!r}")
    partial.replace(path)
    return path


@overload
def load_mask(path: Path | str, *, content: Literal[False]) -> Mask: ...
@overload
def load_mask(path: Path | str, *, content: bool = True) -> Mask | ContentMask: ...
def load_mask(path: Path | str, *, content: bool = True) -> Mask | ContentMask:
    """Reads what `save_mask` wrote. Never runs code from the file.

    Args:
        path: A `.json` or `.safetensors` file.
        content: Whether a content mask may be in it.

    Raises:
        FileNotFoundError: If there is no such file.
        MaskFormatError: If the file is truncated, foreign or edited.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    if path.suffix == ".json":
        text: str | bytes | None = path.read_bytes()
    elif path.suffix != ".safetensors":
        raise MaskFormatError(f"{path}: a mask file ends in .json or .safetensors")
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask file")
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
        mask = from_plain(put_back(data, tensors))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MaskFormatError(f"{path}: {error}") from error
    if isinstance(mask, ContentMask) and not content:
        raise MaskFormatError(
            f"{path}: {mask} is a content mask, which depends on the tokens; put it on a model "
            "with masksearch.attach, or give a mask of positions here"
        )
    return mask


def from_plain(data: Any) -> Mask | ContentMask:
    """A mask of either type from its plain form.

    Raises:
        MaskFormatError: If the data is not the plain form of a mask.
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind in ContentMask.kinds:
        return ContentMask.from_dict(data)
    return Mask.from_dict(data)


def taken_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data with every bool tensor replaced by its name in `tensors`."""
    if isinstance(value, Tensor):
        tensors[f"table{len(tensors)}"] = value.to(torch.uint8).contiguous()
        return {"tensor": f"table{len(tensors) - 1}"}
    if isinstance(value, tuple):
        return [taken_out(item, tensors) for item in value]
    if isinstance(value, Mask | ContentMask):
        fields = {name: taken_out(getattr(value, name), tensors) for name in fields_of(value)}
        return {"kind": value.kind, **fields}
    return value


def fields_of(mask: Mask | ContentMask) -> list[str]:
    """Names of a mask's dataclass fields."""
    return [field.name for field in dataclasses.fields(cast(Any, mask))]


def put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `taken_out`, up to the plain form that `Mask.from_dict` reads."""
    from masksearch.masks.core import plain

    if isinstance(value, list):
        return [put_back(item, tensors) for item in value]
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            cells = tensors[value["tensor"]]
            if cells.dtype != torch.uint8 or (cells > 1).any():
                raise MaskFormatError(
                    f"{value['tensor']} holds {cells.dtype}, not cells of 0 and 1"
                )
            return plain(cells.bool())
        return {name: put_back(item, tensors) for name, item in value.items()}
    return value
