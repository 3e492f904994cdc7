"""Models and masks in one folder: what comes back, what a crash leaves, what is refused."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from mask_trees import HEADS, LAYERS, sized_trees
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach, attached, detach
from masksearch.errors import (
    AttachError,
    DataError,
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    MaskFormatError,
)
from masksearch.gates.gates import Gates
from masksearch.models.encoders import Size, encoder
from masksearch.models.export import with_their_epsilon
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.manifest import saved_masks
from masksearch.models.saved import load_pretrained, save_pretrained

VOCABULARY, LENGTH, WIDTH = 30, 12, 8
SIZES = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": WIDTH}
TABLE = masks.table(torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5)
MIXED = masks.per_head([masks.window(1), TABLE | masks.window(0)])
STAR = masks.star()


def bert(layers: int = LAYERS, cls: type = hf.BertModel, seed: int = 0, **other: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers, "initializer_range": 0.3}
    config = hf.BertConfig(**sizes | SIZES | other, max_position_embeddings=LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config).eval()


def gpt2() -> Any:
    sizes = {"n_embd": WIDTH, "n_head": HEADS, "n_layer": 2, "n_positions": 24}
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, initializer_range=0.3, bos_token_id=0, eos_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.GPT2LMHeadModel(config).eval()


def bart() -> Any:
    sizes = {"d_model": WIDTH, "max_position_embeddings": 2 * LENGTH}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": HEADS, f"{side}_ffn_dim": WIDTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.BartModel(hf.BartConfig(vocab_size=VOCABULARY, init_std=0.3, **sizes)).eval()


def tokens(length: int = LENGTH, seed: int = 1, rows: int = 2) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=drawn)


def output(model: nn.Module, length: int = LENGTH, **more: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens(length), **more)[0]
        return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edited(folder: Path, **changed: Any) -> None:
    """Other values in the manifest."""
    path = folder / "masksearch.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def signed(folder: Path) -> Path:
    """The manifest with the SHA-256 of the model's files as they are now."""
    stored = json.loads((folder / "masksearch.json").read_text())["model"]
    files = [folder / name for name in stored if (folder / name).is_file()]
    edited(folder, model={f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of three layers with a mask that holds a table."""
    return save_pretrained(attach(bert(), MIXED), tmp_path / "model")


# -- what comes back ---------------------------------------------------------------------------
@pytest.mark.parametrize("mask", [MIXED, STAR], ids=["table", "star"])
def test_model_and_mask_come_back_bit_for_bit(tmp_path, mask):
    model = attach(bert(), mask)
    expected = output(model)
    folder = save_pretrained(model, tmp_path / "a" / "b")
    assert torch.equal(output(model), expected)  # the mask is still on
    again = load_pretrained(str(folder))
    assert type(again) is hf.BertModel
    assert not again.training
    assert attached(again) == {"self": mask} == saved_masks(folder)
    assert torch.equal(output(again), expected)
    assert torch.equal(output(detach(again)), output(bert()))
    file = "mask.safetensors" if mask is MIXED else "mask.json"
    weights = ["config.json", file, "masksearch.json", "model.safetensors"]
    assert names(folder) == weights
    manifest = json.loads((folder / "masksearch.json").read_text())
    assert manifest["files"] == [name for name in weights if name != "masksearch.json"]
    assert (manifest["format"], manifest["model_class"]) == (1, "BertModel")
    assert manifest["versions"]["transformers"] == hf.__version__
    assert manifest["build"] == {}
    assert manifest["model"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }


def test_attach_alone_restores_the_mask(folder):
    model = hf.BertModel.from_pretrained(folder)
    assert torch.equal(output(model), output(bert()))
    assert torch.equal(output(attach(model, folder)), output(attach(bert(), MIXED)))
    assert torch.equal(output(attach(bert(), str(folder))), output(model))


MODEL = bert()


@settings(max_examples=12)
@given(sized_trees(5))
def test_random_masks_come_back_bit_for_bit(tmp_path_factory, drawn):
    length, mask = drawn
    folder = tmp_path_factory.mktemp("tree")
    save_pretrained(attach(MODEL, mask), folder)
    try:
        expected = output(MODEL, length)
    except EmptyRowError:
        with pytest.raises(EmptyRowError):
            output(load_pretrained(folder), length)
    else:
        assert torch.equal(output(load_pretrained(folder), length), expected)
    assert saved_masks(folder) == {"self": mask}
    shutil.rmtree(folder)


def test_parts_of_an_encoder_decoder_come_back(tmp_path):
    parts = {"encoder": masks.window(2), "decoder": MIXED, "cross": masks.global_tokens(2) | STAR}
    model = attach(bart(), parts)
    target = {"decoder_input_ids": tokens(seed=2)}
    expected = output(model, 9, **target)
    save_pretrained(model, tmp_path)
    assert {"mask.cross.json", "mask.decoder.safetensors", "mask.encoder.json"} <= {
        *names(tmp_path)
    }
    again = load_pretrained(tmp_path)
    assert attached(again) == parts
    assert torch.equal(output(again, 9, **target), expected)
    one = save_pretrained(attach(bart(), masks.window(2), part="encoder"), tmp_path)
    assert list(saved_masks(one)) == ["encoder"]
    assert [name for name in names(one) if name.startswith("mask.")] == ["mask.encoder.json"]


def test_content_masks_come_back(tmp_path):
    mask = MIXED | masks.special_tokens(5, 7)
    model = attach(bert(), mask)
    expected = output(model)
    assert not torch.equal(expected, output(attach(bert(), MIXED)))
    again = load_pretrained(save_pretrained(model, tmp_path))
    assert attached(again) == {"self": mask}
    assert torch.equal(output(again), expected)
    assert "mask.safetensors" in names(tmp_path)


def test_submodules_are_parts(tmp_path):
    model = bert()
    attach(model, {"encoder.layer.0": STAR, "encoder.layer.2": MIXED})
    again = load_pretrained(save_pretrained(model, tmp_path))
    assert torch.equal(output(again), output(model))
    assert list(attached(again)) == ["encoder.layer.0", "encoder.layer.2"]


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_goes_on_after_loading(tmp_path, cache):
    model = attach(gpt2(), masks.window(2))
    again = load_pretrained(save_pretrained(model, tmp_path))
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
    prompt = {"input_ids": tokens(6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    expected = model.generate(**prompt, use_cache=False, **how)
    found = again.generate(**prompt, **how, **({"cache_implementation": cache} if cache else {}))
    assert torch.equal(found, expected)


def test_another_class_gets_a_new_head(folder):
    model = load_pretrained(folder, model_class=hf.BertForSequenceClassification)
    assert model.classifier.weight.shape == (2, WIDTH)
    assert torch.equal(output(model.bert), output(attach(bert(), MIXED)))
    unpooled = save_pretrained(attach(bert(cls=hf.BertForMaskedLM), STAR), folder)
    pooled = load_pretrained(unpooled, model_class=hf.BertForSequenceClassification)
    assert torch.equal(
        output(attach(bert(cls=hf.BertForMaskedLM).bert, STAR)), output(pooled.bert)
    )
    narrow = load_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert output(narrow).dtype == torch.bfloat16


def test_another_class_does_not_hide_lost_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.LayerNorm.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    signed(folder)
    for cls in (hf.BertForSequenceClassification, hf.BertModel, None):
        with pytest.raises(DataError, match=r"lack 1 tensors .*embeddings\.LayerNorm\.bias; take"):
            load_pretrained(folder, model_class=cls)


def test_stored_type_and_backend_are_kept(tmp_path):
    model = attach(bert().to(torch.bfloat16), STAR, backend="sdpa")
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert torch.equal(output(again), output(model))
    assert json.loads((tmp_path / "masksearch.json").read_text())["backend"] == "sdpa"
    for backend in (None, "gather"):
        again = load_pretrained(tmp_path, backend=backend)
        slots = {id(s): s for m in again.modules() if (s := m.__dict__.get("masksearch_slot"))}
        assert {slot.backend for slot in slots.values()} == {backend or "sdpa"}


def test_our_own_model_is_written_as_transformers_class(tmp_path):
    body = encoder(Size(2, 16, 2), VOCABULARY, LENGTH, seed=0)
    model = with_their_epsilon(MaskedLanguageModel(body, seed=0)).eval()
    attach(model, STAR)
    expected = model(tokens()).logits
    again = load_pretrained(save_pretrained(model, tmp_path))
    assert type(again) is hf.BertForMaskedLM
    assert torch.allclose(output(again).flatten(0, 1), expected, atol=1e-5)
    assert torch.equal(model(tokens()).logits, expected)


def sharded(folder: Path, model: Any) -> Path:
    """Saves a model in several files of weights."""
    model.save_pretrained = partial(type(model).save_pretrained, model, max_shard_size="2KB")
    return save_pretrained(model, folder)


def test_sharded_weights_are_read_and_replaced(folder):
    sharded(folder, attach(bert(), MIXED))
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert "model.safetensors" not in names(folder)
    recorded = json.loads((folder / "masksearch.json").read_text())["model"]
    assert sorted(recorded) == ["config.json", *shards, "model.safetensors.index.json"]
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))
    (folder / "tokenizer.json").write_text("{}")
    save_pretrained(attach(bert(seed=1), STAR), folder)
    assert names(folder) == [
        "config.json", "mask.json", "masksearch.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(seed=1), STAR)))


def test_a_snapshot_of_the_hub_cache_opens(folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert torch.equal(output(load_pretrained(snapshot)), output(attach(bert(), MIXED)))


# -- crashes -----------------------------------------------------------------------------------
class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize("moves", range(9))
def test_a_killed_save_leaves_the_old_state_or_the_new(folder, monkeypatch, moves):
    old, new = output(attach(bert(), MIXED)), output(attach(bert(2, seed=1), STAR))
    calls = iter(range(100))

    def counted(real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if next(calls) == moves:
                raise Killed
            return real(*given, **named)

        return call

    model = attach(bert(2, seed=1), STAR)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted(os.replace))
        patched.setattr(os, "rename", counted(os.rename))
        patched.setattr(Path, "unlink", counted(Path.unlink))
        try:
            save_pretrained(model, folder)
        except Killed:
            pass
        else:
            assert moves == 8, "every move is tried"
    again = load_pretrained(folder)
    assert any(torch.equal(output(again), each) for each in (old, new))
    assert not (folder / ".saved").exists()
    assert torch.equal(output(load_pretrained(save_pretrained(model, folder))), new)
    assert "mask.safetensors" not in names(folder)


def test_what_killed_saves_have_left_is_removed_after_a_day(folder):
    for name, age in ((".saving-old", 25), (".saving-new", 1)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - 3600 * age,) * 2)
    save_pretrained(attach(bert(), STAR), folder)
    assert [name for name in names(folder) if name.startswith(".")] == [".saving-new"]


def test_a_full_disk_leaves_the_old_state(folder, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("IoError: No space left on device (os error 28)")

    before = names(folder)
    with monkeypatch.context() as patched:
        patched.setattr(hf.BertModel, "save_pretrained", full)
        with pytest.raises(OSError, match="cannot write the model") as error:
            save_pretrained(attach(bert(seed=1), STAR), folder)
    assert error.value.errno == errno.ENOSPC
    assert names(folder) == before
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))


def test_a_disk_that_is_really_full(small_disk):
    folder = save_pretrained(attach(bert(), MIXED), small_disk / "model")
    large = attach(bert(vocab_size=300_000), STAR)  # 9 MB
    with pytest.raises(OSError, match="cannot write the model") as error:
        save_pretrained(large, folder)
    assert error.value.errno == errno.ENOSPC
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))


def test_what_an_interrupted_save_has_left_is_checked(folder):
    (folder / ".saved").mkdir()
    (folder / ".saved" / "link").symlink_to("/etc/passwd")
    with pytest.raises(MaskFormatError, match="link is no plain file; remove"):
        saved_masks(folder)
    (folder / ".saved" / "link").unlink()
    (folder / ".saved" / "model.safetensors").write_bytes(b"")
    (folder / ".saved" / "masksearch.json").write_text("{")
    with pytest.raises(MaskFormatError, match=r"does not list what is there; remove"):
        load_pretrained(folder)
    shutil.rmtree(folder / ".saved")
    load_pretrained(folder)


# -- models that are not saved -----------------------------------------------------------------
class Around(nn.Module):
    """A model inside a module that transformers cannot load."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert(1)

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.inner(input_ids)[0]
        return out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (bert, r"no mask is attached to this BertModel; attach one first, or save the weights"),
        (
            lambda: attach(bert(), Gates(length=LENGTH, heads=HEADS, layers=LAYERS)),
            r"gates are attached to 'self' .*cut a mask .*result\.mask\(sparsity=0\.9\)",
        ),
        (
            Around,
            r"Around is no Hugging Face .* BertModel inside: ms\.save_pretrained\(model\.inn",
        ),
        (
            lambda: attach(Around(), STAR),
            r"ms\.detach\(model\); ms\.attach\(model\.inner, mask\); ms\.save_pretrained\(model\.",
        ),
        (lambda: attach(Around(), STAR).inner, "attached through another module; attach it to"),
        (lambda: nn.Linear(2, 2), "Linear contains no Hugging Face model"),
    ],
    ids=["nothing", "gates", "around", "around-masked", "inside", "linear"],
)
def test_models_that_are_not_saved(tmp_path, model, message):
    with pytest.raises(AttachError, match=message):
        save_pretrained(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_models_are_saved(tmp_path):
    with pytest.raises(TypeError, match="save_pretrained takes a model, got Window"):
        save_pretrained(masks.window(1), tmp_path)


def test_an_adapter_alone_is_not_saved(tmp_path, monkeypatch):
    model = attach(bert(), STAR)
    monkeypatch.setattr(model, "save_pretrained", lambda folder: None)
    with pytest.raises(AttachError, match=r"wrote no whole model .*merge the adapter"):
        save_pretrained(model, tmp_path)
    assert names(tmp_path) == []


# -- files that were changed after the save ------------------------------------------------------
def one_bit(file: Path) -> None:
    """Flips the last bit."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


CHANGED = (
    r"{} is not the file that masksearch saved together with this mask .*transformers, which "
    r"leaves the earlier mask there\. Save .*: ms\.save_pretrained\(model, folder\); where .*{}"
)
LOADING = CHANGED.format("{}", r"load_pretrained\(folder, verify=False\) opens it")
ATTACHING = CHANGED.format(r"config\.json", r"ms\.saved_masks\(folder, verify=False\)\)")


def test_a_flipped_bit_of_the_weights_is_refused(folder):
    one_bit(folder / "model.safetensors")
    with pytest.raises(DataError, match=LOADING.format(r"model\.safetensors")):
        load_pretrained(folder)
    again = load_pretrained(folder, verify=False)
    assert attached(again) == saved_masks(folder) == {"self": MIXED}
    different = [
        not torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), bert().state_dict().values(), strict=True)
    ]
    assert sum(different) == 1
    assert attached(attach(bert(), folder)) == {"self": MIXED}  # weights are not read for it


def test_every_sharded_file_is_checked(folder):
    sharded(folder, attach(bert(), MIXED))
    whole = {path: path.read_bytes() for path in folder.glob("model*")}
    assert len(whole) > 3
    for path, data in whole.items():
        path.write_bytes(data + b" ")
        with pytest.raises(DataError, match=LOADING.format(path.name)):
            load_pretrained(folder)
        path.write_bytes(data)
    load_pretrained(folder)
    save_file(load_file(min(whole)), folder / "model.safetensors")  # is read before the index
    with pytest.raises(DataError, match=LOADING.format(r"model\.safetensors")):
        load_pretrained(folder)


def test_weights_of_another_model_are_refused(folder):
    bert(seed=1).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)
    with pytest.raises(DataError, match=LOADING.format(r"model\.safetensors")):
        load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    sharded(folder.parent / "other", attach(bert(), MIXED))
    for path in (folder.parent / "other").glob("model-*"):
        shutil.copy(path, folder)
    shutil.copy(folder.parent / "other" / "model.safetensors.index.json", folder)
    with pytest.raises(DataError, match="is not the file that masksearch saved"):
        load_pretrained(folder)


@pytest.mark.parametrize("trained", [True, False], ids=["other weights", "same weights"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
def test_a_later_save_by_transformers_does_not_bring_the_old_mask_back(folder, trained, ours):
    model = load_pretrained(folder) if ours else hf.BertModel.from_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()
    if trained:
        nn.init.normal_(model.embeddings.word_embeddings.weight)
    attach(model, STAR).save_pretrained(folder)
    assert ((folder / "model.safetensors").read_bytes() == before) is not trained
    with pytest.raises(DataError, match=LOADING.format(r"config\.json")):
        load_pretrained(folder)
    with pytest.raises(DataError, match=ATTACHING):
        saved_masks(folder)
    with pytest.raises(DataError, match=ATTACHING):
        attach(hf.BertModel.from_pretrained(folder), folder)
    attach(model, saved_masks(folder, verify=False))
    assert torch.equal(output(load_pretrained(folder, verify=False)), output(model))
    save_pretrained(attach(model, STAR), folder)
    assert attached(load_pretrained(folder)) == saved_masks(folder) == {"self": STAR}


def test_masks_alone_are_read_where_the_model_is_gone(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    assert saved_masks(folder) == {"self": MIXED}


def test_a_changed_mask_is_refused_even_without_verification(folder):
    one_bit(folder / "mask.safetensors")
    for read in (saved_masks, load_pretrained):
        with pytest.raises(MaskFormatError, match="was changed or damaged since it was saved"):
            read(folder, verify=False)


def test_folders_of_earlier_versions_load(folder):
    path = folder / "masksearch.json"
    manifest = json.loads(path.read_text())
    for name in ("model", "build"):
        del manifest[name]
    path.write_text(json.dumps(manifest))
    one_bit(folder / "model.safetensors")
    reconfigured(hidden_dropout_prob=0.2)(folder)
    assert attached(load_pretrained(folder)) == saved_masks(folder) == {"self": MIXED}


# -- folders that are not read -----------------------------------------------------------------
BOMB = struct.pack("<Q", 1 << 40) + b"{" * 64  # a header of a terabyte


def sole_mask(folder: Path, name: str, text: bytes = b"") -> None:
    """The manifest names that file instead, with its true digest."""
    if text:
        (folder / name).write_bytes(text)
    digest = hashlib.sha256(text or (folder / "mask.safetensors").read_bytes()).hexdigest()
    edited(folder, masks={"self": {"file": name, "sha256": digest}})


def linked_out(folder: Path) -> None:
    (folder / "mask.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "mask.safetensors").symlink_to(folder.parent / "outside.safetensors")


def cut(file: str, left: int = 40) -> Any:
    def change(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:left])

    return change


def put(file: str, text: bytes) -> Any:
    return lambda folder: (folder / file).write_bytes(text)


def absent(file: str) -> Any:
    return lambda folder: (folder / file).unlink()


def wrong_weights(folder: Path) -> None:
    bert(2).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)


def reconfigured(**changed: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def masked(mask: masks.Mask) -> Any:
    def change(folder: Path) -> None:
        sole_mask(folder, "mask.json", mask.to_json().encode())

    return change


DEEP = b'{"kind":"not","of":' * 20_000
MANIFESTS: dict[str, tuple[Any, type[Exception], str]] = {
    "no manifest": (absent("masksearch.json"), FileNotFoundError, "holds no masksearch.json, so"),
    "cut manifest": (cut("masksearch.json"), MaskFormatError, "masksearch.json cannot be used"),
    "foreign manifest": (put("masksearch.json", b"[1]"), MaskFormatError, "cannot be used"),
    "deep manifest": (put("masksearch.json", b"[" * 10**5), MaskFormatError, "cannot be used"),
    "binary manifest": (put("masksearch.json", b"\xff\xfe"), MaskFormatError, "cannot be used"),
    "huge manifest": (put("masksearch.json", b" " * 2**21), MaskFormatError, "more than 1048576"),
    "no masks": (lambda f: edited(f, masks={}), MaskFormatError, "it names no mask"),
    "odd build": (lambda f: edited(f, build=[1]), MaskFormatError, "'build' is not readable"),
    "odd options": (
        lambda f: edited(f, build={"options": {"add_pooling_layer": "no"}}),
        MaskFormatError,
        "an option is no bool",
    ),
    "odd type": (
        lambda f: edited(f, build={"dtype": "Tensor", "dtypes": {}}),
        MaskFormatError,
        "'Tensor' is no floating type of torch such as 'bfloat16'",
    ),
    "unknown build": (lambda f: edited(f, build={"x": {}}), MaskFormatError, "argument 'x'"),
    "odd files": (lambda f: edited(f, model=["x"]), MaskFormatError, "cannot be used"),
    "odd masks": (lambda f: edited(f, masks=["self"]), MaskFormatError, "cannot be used"),
    "no format": (lambda f: edited(f, format="1"), MaskFormatError, "format is '1', not a number"),
    "newer": (
        lambda f: edited(f, format=2),
        MaskFormatError,
        r"format 2, this .* up to 1; it was",
    ),
    "up": (lambda f: sole_mask(f, "../mask.json"), MaskFormatError, "names '../mask.json', which"),
    "absolute": (lambda f: sole_mask(f, "/etc/passwd"), MaskFormatError, "not a file of that"),
    "link": (linked_out, MaskFormatError, "is a link to .*outside.safetensors, outside its"),
    "no mask": (absent("mask.safetensors"), FileNotFoundError, "mask file, but it is missing"),
    "cut mask": (cut("mask.safetensors"), MaskFormatError, "mask.safetensors was changed or dam"),
    "other mask": (put("mask.safetensors", BOMB), MaskFormatError, "its SHA-256 is not the one"),
    "bomb": (lambda f: sole_mask(f, "mask.safetensors", BOMB), MaskFormatError, "not a readable"),
    "deep mask": (lambda f: sole_mask(f, "m.json", DEEP), MaskFormatError, "m.json: not JSON"),
    "foreign": (lambda f: sole_mask(f, "m.json", b"{}"), MaskFormatError, "m.json: a mask is an"),
    "pickled": (lambda f: sole_mask(f, "m.pt", b"\x80."), MaskFormatError, "ends in .json or"),
}
MODELS: dict[str, tuple[Any, type[Exception], str]] = {
    "no config": (absent("config.json"), DataError, "holds no config.json"),
    "cut config": (cut("config.json"), DataError, "config.json cannot be read"),
    "foreign config": (put("config.json", b"[]"), DataError, "cannot be read: it holds no object"),
    "bad config": (reconfigured(hidden_size="x"), DataError, "cannot be read as BertModel"),
    "no class": (reconfigured(architectures=None), DataError, "names no class in 'architect"),
    "own class": (reconfigured(architectures=["Mine"]), AttachError, "'Mine', which is not a"),
    "a function": (reconfigured(architectures=["pipeline"]), AttachError, "'pipeline', which is"),
    "Auto": (reconfigured(architectures=["AutoModel"]), AttachError, "'AutoModel', which is not"),
    "other class": (reconfigured(architectures=["GPT2Model"]), DataError, "GPT2Model"),
    "own weights": (
        reconfigured(transformers_weights="adapter_model.bin"),
        DataError,
        "transformers_weights",
    ),
    "no weights": (absent("model.safetensors"), DataError, "holds no model.safetensors"),
    "cut weights": (cut("model.safetensors", 900), DataError, "cannot be read as BertModel"),
    "weight bomb": (put("model.safetensors", BOMB), DataError, "cannot be read as BertModel"),
    "few weights": (wrong_weights, DataError, r"lack \d+ tensors of BertModel, such as encoder"),
    "wide": (reconfigured(hidden_size=16), DataError, "cannot be read as BertModel"),
    "heads": (masked(masks.per_head([STAR] * 3)), HeadCountError, "model: the mask has 3 heads"),
    "layers": (masked(masks.per_layer([STAR] * 2)), LayerCountError, "the mask has 2 layers"),
    "backend": (lambda f: edited(f, backend="magic"), ValueError, "unknown backend 'magic'"),
    "adapter": (put("adapter_config.json", b"{}"), DataError, r"holds adapter_config\.json, for"),
    "shards": (
        put("shard-00001-model-00001-of-00001.safetensors", b""),
        DataError,
        "holds shard-00001.* other weights than those of model.safetensors",
    ),
    "odd option": (
        lambda f: edited(f, build={"options": {"allow_all_kernels": True}}),
        DataError,
        "BertModel takes no 'allow_all_kernels', with which the model was built; open it with",
    ),
}


@pytest.fixture
def no_collection(case: str) -> Iterator[None]:
    """Finalisers that the collector runs at the recursion limit fail."""
    if "deep" in case:
        gc.collect()
        gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("case", MANIFESTS)
def test_damaged_and_foreign_masks_are_refused(folder, case):
    change, error, message = MANIFESTS[case]
    change(folder)
    with pytest.raises(error, match=message):
        saved_masks(folder)
    with pytest.raises(error, match=message):
        attach(bert(), folder)
    with pytest.raises(error, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("case", MODELS)
def test_damaged_and_foreign_models_are_refused(folder, case):
    change, error, message = MODELS[case]
    change(folder)
    signed(folder)
    with pytest.raises(error, match=message):
        load_pretrained(folder)


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; give one that save_pretrained"):
        load_pretrained(tmp_path / "nowhere")


class Code:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a_pickle_is_never_read(folder, tmp_path):
    for name in ("pytorch_model.bin", "adapter_model.bin", "mask.pt"):
        (folder / name).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"as a pickle \(adapter_model\.bin\), which can run"):
        load_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoModel": "modeling.BertModel", "AutoConfig": "modeling.BertConfig"}
    reconfigured(auto_map=auto_map)(folder)
    signed(folder)
    load_pretrained(folder)
    load_pretrained(folder, model_class=hf.AutoModel)
    with pytest.raises(ValueError, match=r"never run, got trust_remote_code=True; install or"):
        load_pretrained(folder, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_configuration_names_is_not_fetched(folder, key):
    reconfigured(**{key: "someone/kernel"})(folder)
    model = load_pretrained(signed(folder))
    assert torch.equal(output(model), output(attach(bert(), MIXED)))
    assert detach(model).config._attn_implementation == "sdpa"


def test_a_class_must_be_one_of_models(folder):
    with pytest.raises(TypeError, match="model_class is a class of Hugging Face models such as"):
        load_pretrained(folder, model_class=hf.AutoTokenizer)
    for other in (hf.DistilBertModel, hf.DistilBertForMaskedLM, hf.GPT2Model):
        with pytest.raises(DataError, match=r"the weights lack .* from the same save$"):
            load_pretrained(folder, model_class=other)
