"""From the expression to tables, files, block layouts and block masks."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, any_mask, sized_trees
from safetensors.torch import save_file
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import (
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    MaskFormatError,
)
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.masks.text import load_mask, save_mask


# -- the gate ----------------------------------------------------------------------------------
@pytest.mark.slow
@given(sized_trees())
def test_lower_is_dense_or_empty_row_error(sized):
    length, mask = sized
    shape = Shape(length, LAYERS, HEADS)
    dense = mask.dense(length, LAYERS, HEADS)
    if dense.any(-1).all():
        assert torch.equal(lower(mask, shape), dense)
    else:
        with pytest.raises(EmptyRowError):
            lower(mask, shape)


def test_empty_row_error_names_layer_head_and_row():
    bits = torch.ones(3, 2, 5, 5, dtype=torch.bool)
    bits[1, 1, 3] = bits[2, 0, 0] = False
    message = r"layer 1, head 1, row 3 keeps no key \(1 of 5 rows are empty, 2 of 30.*window\(0\)"
    with pytest.raises(EmptyRowError, match=message):
        lower(masks.table(bits), Shape(5, 3, 2))
    lower(masks.table(bits) | masks.window(0), Shape(5, 3, 2))


def generated(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.7


# -- files -------------------------------------------------------------------------------------
@pytest.mark.slow
@settings(max_examples=20)
@given(any_mask())
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_save_and_load_round_trip(tmp_path_factory, suffix, mask):
    folder = tmp_path_factory.mktemp("masks")
    path = folder / "deep" / f"mask{suffix}"
    assert save_mask(mask, path) == path
    assert load_mask(path) == load_mask(str(path)) == mask
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_big_tables_are_tensors_in_safetensors(tmp_path):
    bits = generated(2, 64, 64)
    path = ms.save_mask(masks.table(bits) | masks.window(0), tmp_path / "mask.safetensors")
    assert path.stat().st_size > bits.numel()
    assert torch.equal(
        ms.load_mask(path).dense(64), (masks.table(bits) | masks.window(0)).dense(64)
    )


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ""])
def test_other_suffixes_are_refused(tmp_path, suffix):
    path = tmp_path / f"mask{suffix}"
    with pytest.raises(ValueError, match=r"saved as \.json or \.safetensors"):
        save_mask(masks.full(), path)
    with pytest.raises(MaskFormatError, match=r"ends in \.json or \.safetensors"):
        load_mask(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_missing_truncated_and_binary_files_are_refused(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"nowhere{suffix}"):
        load_mask(tmp_path / f"nowhere{suffix}")
    path = save_mask(masks.table(generated(8, 8)), tmp_path / f"mask{suffix}")
    whole = path.read_bytes()
    cut = [whole[:size] for size in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1)]
    for content in [*cut, b"\xff\xfe\x00"]:
        path.write_bytes(content)
        with pytest.raises(MaskFormatError, match=f"mask{suffix}"):
            load_mask(path)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_flipped_bytes_give_a_mask_or_mask_format_error(tmp_path_factory, suffix, data):
    content = masks.window(1) | ~masks.special_tokens(101) | masks.same_token([7])
    path = save_mask(
        masks.per_head([masks.table(generated(4, 4)), content]),
        tmp_path_factory.getbasetemp() / f"flipped{suffix}",
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    refused = path.name
    try:
        load_mask(path).to_json()
    except MaskFormatError as error:
        refused = str(error)
    assert path.name in refused


def foreign(path: Path, tree: object, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path, metadata={"masksearch_mask": json.dumps(tree)})
    return path


def test_foreign_and_edited_safetensors_are_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(MaskFormatError, match="holds no mask"):
        load_mask(path)
    table = {"kind": "table", "bits": {"tensor": "table0"}}
    eye = torch.eye(3, dtype=torch.uint8)
    assert load_mask(foreign(path, table, table0=eye)) == masks.table(eye.bool())
    for tree, tensors, message in [
        (table, {}, "table0"),
        (table, {"table0": eye.float()}, "torch.float32, not cells of 0 and 1"),
        (table, {"table0": eye * 2}, "torch.uint8, not cells of 0 and 1"),
        (table, {"table0": eye[:2].contiguous()}, r"got \[2, 3\]"),
        (table, {"table0": torch.zeros(0, 0, dtype=torch.uint8)}, r"has shape \[n, n\]"),
        ({"kind": "table", "bits": {"tensor": ["a"]}}, {"table0": eye}, r"no tensor \['a'\]"),
        ({"kind": "tabel", "bits": {"tensor": "table0"}}, {"table0": eye}, "did you mean"),
        ([], {}, "object with a 'kind'"),
    ]:
        with pytest.raises(MaskFormatError, match=f"mask.safetensors: .*{message}"):
            load_mask(foreign(path, tree, **tensors))
    save_file({}, path, metadata={"masksearch_mask": "{"})
    with pytest.raises(MaskFormatError, match="Expecting property name"):
        load_mask(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(MaskFormatError, match="not a readable safetensors file"):
        load_mask(path)


# -- block layouts ------------------------------------------------------------------------------
def test_block_layout_per_layer_and_head():
    bits = generated(2, 3, 4, 4)
    mask = masks.block_layout(bits, 4)
    assert (mask.layers, mask.heads, mask.length) == (2, 3, None)
    dense = mask.dense(15)
    wanted = bits.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :15, :15]
    assert torch.equal(dense, wanted)
    with pytest.raises(LayerCountError):
        mask.counts(3, 3)
    with pytest.raises(HeadCountError):
        mask.counts(2, 4)


def test_numpy_bools_are_taken():
    bits = generated(2, 4, 4).numpy()
    for made in (masks.table(bits), masks.table(np.asfortranarray(bits)), masks.table(bits[::-1])):
        assert torch.equal(made.dense(4)[0, 0], torch.tensor(made.bits[0].tolist()))
    assert masks.table(bits) == masks.table(torch.from_numpy(bits))
    assert masks.toeplitz(bits[0, 0]) == masks.toeplitz(torch.from_numpy(bits[0, 0]))
    assert masks.block_layout(bits, 2) == masks.block_layout(torch.from_numpy(bits), 2)
    kept = masks.table(bits)
    bits[:] = False
    assert kept.kept(4) > 0


# -- block masks for FlexAttention from tile counts ---------------------------------------------
def same_blocks(mask: masks.Mask, length: int, block: int) -> None:
    """Compares with what torch makes of the mask cell by cell, and the cells with the table."""
    cells = create_mask(mask.mask_mod(length), None, mask.heads, length, length, device="cpu")
    assert torch.equal(cells[0], mask.dense(length)[0])
    ours = flex_block_mask(mask, length, block)
    theirs = create_block_mask(
        mask.mask_mod(length), None, mask.heads, length, length, device="cpu", BLOCK_SIZE=block
    )
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        for each in (name, f"full_{name}"):
            assert torch.equal(getattr(ours, each), getattr(theirs, each)), each


@pytest.mark.parametrize("length", [32, 37])
@pytest.mark.parametrize(
    "mask",
    [
        masks.full(),
        masks.causal(),
        masks.window(9),
        masks.per_head([masks.window(2), masks.bigbird(1, 1, 2, seed=3), masks.causal()]),
        masks.blocks(8) | masks.blocks(16) - masks.shifts([1]),
        masks.cropped(masks.bigbird(1, 1, 2), 64) - masks.shifts([1]),
        masks.toeplitz(generated(2, 40)) | masks.window(0),
        masks.toeplitz(generated(79), signed=True) | masks.window(0),
        masks.shifts([-1, 0, 2]) | masks.global_tokens(positions=[3, 30]),
        *masks.FAMILIES.values(),
    ],
    ids=lambda mask: str(mask)[:30],
)
def test_equals_create_block_mask(mask, length):
    same_blocks(mask, length, 8)


def test_equals_create_block_mask_for_a_table():
    tiles = generated(3, 5, 5).repeat_interleave(8, 1).repeat_interleave(8, 2)
    same_blocks(masks.table(tiles) | masks.window(0), 40, 8)
    same_blocks(masks.table(generated(3, 40, 40)) | masks.window(0), 40, 8)


@pytest.mark.slow
@settings(max_examples=40)
@given(sized_trees(), st.integers(1, 5))
def test_empty_rows_are_refused_and_only_those(sized, block):
    length, mask = sized
    single = masks.layer_of(mask, 0)
    empty = ~single.dense(length)[0].any(-1)
    if not empty.any():
        same_blocks(single, length, block)
        return
    head, row = empty.nonzero()[0].tolist()
    with pytest.raises(EmptyRowError, match=f"head {head}, row {row} keeps no key.*window"):
        flex_block_mask(single, length, block)
