"""From the expression to tables and files."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, any_mask, sized_trees
from safetensors.torch import save_file

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import EmptyRowError, MaskFormatError, TokensNeededError
from masksearch.masks.lower import lower
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
    if mask.needs_tokens:
        with pytest.raises(TokensNeededError, match=f"mask{suffix}: .* follow the tokens"):
            load_mask(path, content=False)


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
    content = masks.window(1) | ~masks.special_tokens(101)
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
        (
            {"kind": "table", "bits": {"tensor": ["table0"]}},
            {"table0": eye},
            r"no tensor \['table0'\]",
        ),
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
