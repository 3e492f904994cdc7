"""Models and masks in one folder: what comes back, what a crash leaves, what is refused."""

import errno
import gc
import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, EVERY
from mask_trees import HEADS, LAYERS
from record_fixtures import files_of_at_most
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_encoders import seeded
from torch import Tensor, nn

from masksearch import attach, attached, detach, load_pretrained, masks, save_pretrained
from masksearch.errors import (
    AttachError,
    DataError,
    HeadCountError,
    LayerCountError,
    MaskFormatError,
)
from masksearch.gates.gates import Gates
from masksearch.masks.text import load_mask, save_mask
from masksearch.models.checkpoints import saved_masks
from masksearch.models.saving import copy_tokenizer

VOCABULARY, LENGTH, WIDTH = 30, 12, 8
SIZES = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": WIDTH}
TABLE = masks.table(torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5)
MIXED = masks.per_head([masks.window(1), TABLE | masks.window(0)])
LARGE = masks.table(torch.rand(900, 900, generator=torch.Generator().manual_seed(0)) < 0.5)
STAR = masks.star()


def bert(layers: int = LAYERS, cls: type = hf.BertModel, seed: int = 0, **other: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers, "initializer_range": 0.3}
    settings = {name: other.pop(name) for name in ("add_pooling_layer",) if name in other}
    config = hf.BertConfig(**sizes | SIZES | other, max_position_embeddings=LENGTH)
    return seeded(lambda: cls(config, **settings), seed)


def tokens(length: int = LENGTH, seed: int = 1, rows: int = 2) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=drawn)


def output(model: nn.Module, length: int = LENGTH, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(length), **more)[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(model: nn.Module, again: nn.Module) -> None:
    """The same modules, and tensors equal bit for bit."""
    assert type(again) is type(model)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    assert [(name, type(module)) for name, module in again.named_modules()] == modules
    own, other = model.state_dict(), again.state_dict()
    assert list(own) == list(other)
    for name, tensor in own.items():
        assert other[name].dtype == tensor.dtype, name
        assert torch.equal(other[name], tensor), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of three layers with a mask."""
    return save_pretrained(attach(bert(), MIXED), tmp_path / "model")


# -- what comes back ---------------------------------------------------------------------------
@pytest.mark.parametrize("mask", [MIXED, STAR], ids=["table", "star"])
def test_model_and_mask_come_back_bit_for_bit(tmp_path, mask):
    model = attach(bert(), mask)
    expected = output(model)
    folder = save_pretrained(model, tmp_path / "a" / "b")
    assert torch.equal(output(model), expected)  # the mask is still on
    again = load_pretrained(str(folder))
    assert not again.training
    assert attached(again) == {"self": mask} == saved_masks(folder)
    assert torch.equal(output(again), expected)
    assert torch.equal(output(detach(again)), output(bert()))
    assert names(folder) == [
        "README.md", "config.json", "mask.json", "mask.png", "masksearch.json", "model.safetensors"
    ]  # fmt: skip
    manifest = json.loads((folder / "masksearch.json").read_text())
    assert (manifest["format"], manifest["model_class"]) == (1, "BertModel")
    assert manifest["versions"]["transformers"] == hf.__version__
    assert manifest["masks"] == {"self": {"file": "mask.json", "digest": mask.digest}}


def test_a_saved_folder_stands_for_its_mask(tmp_path):
    saved = save_pretrained(attach(bert(), MIXED), tmp_path / "one")
    assert load_mask(saved) == masks.parse(str(saved)) == MIXED
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": WIDTH, "num_layers": 1, "num_heads": HEADS}
    t5 = hf.T5Model(hf.T5Config(vocab_size=VOCABULARY, **sizes))
    parts = {"encoder": masks.window(2), "decoder": masks.window(3)}
    several = save_pretrained(attach(t5, parts), tmp_path / "several")
    with pytest.raises(MaskFormatError, match="names 2 masks; give the file of one"):
        load_mask(several)
    manifest = json.loads((tmp_path / "one" / "masksearch.json").read_text())
    manifest["masks"][next(iter(manifest["masks"]))]["file"] = "../several/mask.json"
    (tmp_path / "one" / "masksearch.json").write_text(json.dumps(manifest))
    with pytest.raises(MaskFormatError, match="outside of itself"):
        load_mask(tmp_path / "one")


def test_transformers_does_not_open_the_model_without_its_mask(folder):
    """In a process that knows our attention; one that does not is in test_adapters.py."""
    expected = output(attach(bert(), MIXED))
    assert json.loads((folder / "config.json").read_text())["attn_implementation"] == "masksearch"
    plain = hf.AutoModel.from_pretrained(folder).eval()
    with pytest.raises(AttachError, match=rf"by ms\.load_pretrained\('{folder}'\), or give"):
        output(plain)
    with pytest.raises(AttachError, match="opened it without"):
        output(hf.AutoModelForMaskedLM.from_pretrained(folder))
    assert torch.equal(output(attach(plain, saved_masks(folder))), expected)
    assert torch.equal(output(detach(plain)), output(bert()))
    plain.save_pretrained(folder.parent / "dense")
    dense = hf.AutoModel.from_pretrained(folder, attn_implementation="sdpa")  # a person's own word
    for model in (dense, hf.AutoModel.from_pretrained(folder.parent / "dense")):
        assert torch.equal(output(model), output(bert()))


OWN = [each for each in ARCHITECTURES.values() if each.own]


@pytest.mark.parametrize("each", OWN, ids=lambda each: each.name)
def test_a_model_of_its_own_attention_is_never_opened_dense_in_silence(tmp_path, each):
    """Its code asks for no attention of ours: its configuration names one that does not exist."""
    model, given = attach(each.made(), STAR), each.inputs(3)
    save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")  # transformers' own call
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        for kind in (hf.AutoModel, hf.AutoModelForMaskedLM, type(model)):
            with pytest.raises(ValueError, match=r'search\.load_pretrained"` is not supported'):
                kind.from_pretrained(folder)
    again = load_pretrained(tmp_path / "ours")
    assert torch.equal(each.run(again, given), each.run(model, given))
    dense = hf.AutoModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert torch.equal(each.run(dense, given), each.run(detach(model), given))  # a person's word
    detach(again).save_pretrained(tmp_path / "dense")
    dense = hf.AutoModel.from_pretrained(tmp_path / "dense").eval()
    assert torch.equal(each.run(dense, given), each.run(model, given))


def test_a_tower_with_a_mask_is_not_opened_alone(tmp_path):
    each = ARCHITECTURES["clip-text"]
    save_pretrained(attach(each.made(), STAR, part=each.part), tmp_path)
    text = hf.CLIPTextModel.from_pretrained(tmp_path)
    with pytest.raises(AttachError, match="CLIPAttention belongs to a model that was saved with"):
        output(text)
    images = hf.CLIPVisionModel.from_pretrained(tmp_path)
    assert images.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.name)
def test_every_architecture_comes_back_bit_for_bit(tmp_path, each):
    mask, model = masks.window(2) | masks.global_tokens(1), each.made()
    attach(model, mask, part=each.part)
    inputs = each.inputs()
    folder = save_pretrained(model, tmp_path)
    before = torch.random.get_rng_state()
    again = load_pretrained(folder)
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn
    assert_same(model, again)
    assert attached(again) == attached(model) == saved_masks(folder)
    assert torch.equal(each.run(again, inputs), each.run(model, inputs))
    assert not torch.equal(each.run(again, inputs), each.run(each.made(), inputs))


@pytest.mark.slow
def test_every_part_has_a_file_of_its_own(tmp_path):
    model, each = ARCHITECTURES["bart-encoder"].made(), ARCHITECTURES["bart-encoder"]
    parts = {"encoder": masks.window(2), "decoder": STAR, "cross": masks.global_tokens(2) | STAR}
    attach(model, parts)
    save_pretrained(model, tmp_path)
    files = {"mask.cross.json", "mask.decoder.json", "mask.encoder.json"}
    assert files <= set(names(tmp_path))
    again = load_pretrained(tmp_path)
    assert attached(again) == parts
    inputs = each.inputs()
    assert torch.equal(each.run(again, inputs), each.run(model, inputs))
    one = save_pretrained(attach(each.made(), masks.window(2), part="encoder"), tmp_path)
    assert list(saved_masks(one)) == ["encoder"]
    assert files & set(names(one)) == {"mask.encoder.json"}


@pytest.mark.parametrize(
    "parts",
    [
        {"self": MIXED | masks.special_tokens(5, 7)},
        {"self": MIXED | masks.same_token([5, 7])},
        {"encoder.layer.0": STAR, "encoder.layer.2": MIXED},
    ],
    ids=["tokens", "equal", "submodules"],
)
def test_masks_of_tokens_and_of_submodules_come_back(tmp_path, parts):
    model = attach(bert(), parts)
    again = load_pretrained(save_pretrained(model, tmp_path))
    assert attached(again) == parts
    assert torch.equal(output(again), output(model))


def test_a_large_mask_is_a_safetensors_file(tmp_path):
    each = ARCHITECTURES["bert"]
    with pytest.warns(UserWarning, match="its upper left corner is used"):
        save_pretrained(attach(each.made(), LARGE), tmp_path)
    assert "mask.safetensors" in names(tmp_path)
    assert saved_masks(tmp_path) == {"self": LARGE}


def test_the_encoder_inside_a_model_comes_back_without_a_pooler(tmp_path):
    whole = bert(cls=hf.BertForMaskedLM)
    save_pretrained(attach(whole.bert, STAR), tmp_path)
    again = load_pretrained(tmp_path)
    assert again.pooler is None
    assert_same(whole.bert, again)
    assert load_pretrained(tmp_path, model_class=hf.BertModel).pooler is None
    other = load_pretrained(tmp_path, model_class=hf.BertForSequenceClassification)
    assert other.bert.pooler is not None


def test_stored_type_and_backend_are_kept(tmp_path):
    model = attach(bert().to(torch.bfloat16), STAR, backend="sdpa")
    again = load_pretrained(save_pretrained(model, tmp_path))
    assert torch.equal(output(again), output(model))
    assert json.loads((tmp_path / "masksearch.json").read_text())["backend"] == "sdpa"
    save_pretrained(load_pretrained(tmp_path, backend="gather"), tmp_path)
    assert json.loads((tmp_path / "masksearch.json").read_text())["backend"] == "gather"


@pytest.mark.parametrize("auto", [hf.BertForSequenceClassification, hf.AutoModelForMaskedLM])
def test_another_class_gets_a_new_head(folder, auto):
    model = load_pretrained(folder, model_class=auto)
    assert attached(model) == {"self": MIXED}
    assert torch.equal(output(model.bert), output(attach(bert(), MIXED)))


@pytest.mark.slow
def test_options_go_to_from_pretrained(folder):
    auto = hf.AutoModelForSequenceClassification
    model = load_pretrained(folder, model_class=auto, num_labels=3, hidden_dropout_prob=0.25)
    assert model.classifier.weight.shape[0] == 3
    assert model.bert.embeddings.dropout.p == 0.25
    narrow = load_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    with pytest.raises(DataError, match="unexpected keyword argument 'num_label'"):
        load_pretrained(folder, num_label=3)


class Own(hf.BertModel):
    """A class of the user, with a module of its own."""

    def __init__(self, config: Any, extra: bool = False) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.extra = nn.Linear(config.hidden_size, 3) if extra else None
        self.post_init()


def test_a_class_of_the_user_is_given(tmp_path):
    model = Own(bert(1).config).eval()
    save_pretrained(attach(model, STAR), tmp_path)
    assert_same(model, load_pretrained(tmp_path, model_class=Own))
    with pytest.raises(AttachError, match=r"names the class 'Own', .* give your own class"):
        load_pretrained(tmp_path)
    wide = Own(bert(1).config, extra=True).eval()
    with pytest.raises(AttachError, match=r"2 differ, such as extra\.bias; .*configuration alone"):
        save_pretrained(attach(wide, STAR), tmp_path)


def test_a_head_of_another_size_is_drawn_anew(tmp_path):
    cls = hf.BertForSequenceClassification
    save_pretrained(attach(bert(cls=cls), STAR), tmp_path)
    model = load_pretrained(tmp_path, model_class=cls, num_labels=5)
    assert model.classifier.weight.shape[0] == 5
    assert torch.equal(output(model.bert), output(attach(bert(cls=cls), STAR).bert))
    with pytest.raises(DataError, match=r"classifier\.bias \(stored \[2\], expected \[5\]\)"):
        load_pretrained(tmp_path, num_labels=5)


@pytest.mark.slow
def test_sharded_weights_are_read_and_replaced(folder):
    save_pretrained(attach(bert(), MIXED), folder, max_shard_size="2KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert "model.safetensors" not in names(folder)
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))
    (folder / "tokenizer.json").write_text("{}")
    save_pretrained(attach(bert(seed=1), STAR), folder)
    assert names(folder) == [
        "README.md", "config.json", "mask.json", "mask.png", "masksearch.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(seed=1), STAR)))


def test_masks_alone_are_read_where_the_model_is_gone(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    assert saved_masks(folder) == {"self": MIXED}


# -- crashes -----------------------------------------------------------------------------------
class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("moves", range(9))
def test_a_killed_save_leaves_the_old_model_or_none_or_the_new(folder, monkeypatch, moves):
    old, new = output(attach(bert(), MIXED)), output(attach(bert(2, seed=1), STAR))
    calls = iter(range(100))

    def counted(real: Any) -> Any:
        def call(path: Path, *arguments: Any, **named: Any) -> Any:
            ours = path.parent == folder or path.parent.parent == folder
            if ours and path.suffix != ".part" and next(calls) == moves:
                raise Killed
            return real(path, *arguments, **named)

        return call

    model = attach(bert(2, seed=1), STAR)
    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        try:
            save_pretrained(model, folder)
        except Killed:
            pass
        else:
            assert moves > 4, "every move is tried"
    try:
        again = load_pretrained(folder)
    except FileNotFoundError as error:
        assert "or the save was interrupted" in str(error)  # noqa: PT017
    else:
        assert any(torch.equal(output(again), each) for each in (old, new))
        assert (moves == 0) is torch.equal(output(again), old)
    assert torch.equal(output(load_pretrained(save_pretrained(model, folder))), new)


def test_what_a_killed_save_has_left_is_removed(folder):
    (folder / ".saving").mkdir()
    (folder / ".saving" / "model.safetensors").write_bytes(b"half")
    load_pretrained(folder)
    save_pretrained(attach(bert(), STAR), folder)
    assert not [name for name in names(folder) if name.startswith(".")]


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


def test_a_tokenizer_that_a_full_disk_has_cut_is_copied_again(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / "tokenizer.json").write_text("{}" * 90)
    with files_of_at_most(100), pytest.raises(OSError, match="too large"):
        copy_tokenizer(source, out)
    copy_tokenizer(source, out)
    assert (out / "tokenizer.json").read_text() == "{}" * 90


def test_a_mask_that_lies_there_is_kept_under_another_name(tmp_path):
    own = save_mask(masks.star(), tmp_path / "mask.json")
    with pytest.warns(UserWarning, match=r"mask\.json held another mask, which is mask\.\w{8}\.j"):
        save_pretrained(attach(bert(), MIXED), tmp_path)
    [kept] = {*tmp_path.glob("mask.*.json")} - {own}
    assert load_mask(kept) == masks.star()
    save_pretrained(attach(bert(), masks.window(1)), tmp_path)  # over one of its own
    assert len([*tmp_path.glob("mask.*json")]) == 2


def test_every_file_of_a_tokenizer_is_copied(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    names = {"vocab.txt", "added_tokens.json", "sentencepiece.bpe.model", "bpe.codes"}
    names |= {"chat_template.jinja", "additional_chat_templates/tool.jinja"}
    (source / "additional_chat_templates").mkdir()
    for name in (*names, "model.safetensors", "config.json"):
        (source / name).write_text("{}")
    copy_tokenizer(source, out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == names


def test_a_disk_that_is_really_full(small_disk):
    folder = save_pretrained(attach(bert(), MIXED), small_disk / "model")
    large = attach(bert(vocab_size=300_000), STAR)  # 9 MB
    with pytest.raises(OSError, match="cannot write the model") as error:
        save_pretrained(large, folder)
    assert error.value.errno == errno.ENOSPC
    assert torch.equal(output(load_pretrained(folder)), output(attach(bert(), MIXED)))


# -- models that are not saved -----------------------------------------------------------------
class Around(nn.Module):
    """A model inside a module that transformers cannot load."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert(1)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.inner(input_ids)[0]


def cut_layers() -> Any:
    model = bert()
    model.encoder.layer = model.encoder.layer[:1]
    return attach(model, STAR)


def wide_head() -> Any:
    model = bert(cls=hf.BertForSequenceClassification)
    model.classifier = nn.Linear(WIDTH, 5)
    return attach(model, STAR)


class Packed(Tensor):
    """A weight as torchao has it: a class of its own, which knows few operations."""

    __module__ = "torchao.quantization"

    @classmethod
    def __torch_function__(cls, function: Any, *call: Any, **rest: Any) -> Any:
        if function in (Tensor.isfinite, Tensor.abs):
            raise NotImplementedError("Packed dispatch")
        return super().__torch_function__(function, *call, **rest)


def packed(model: Any) -> Any:
    weight = model.encoder.layer[0].output.dense.weight
    model.encoder.layer[0].output.dense.weight = nn.Parameter(weight.data.as_subclass(Packed))
    return model


class Quantised(hf.BertModel):
    @classmethod
    def from_pretrained(cls, *call: Any, **rest: Any) -> Any:
        model, report = super().from_pretrained(*call, **rest)
        return packed(model), report


def test_a_quantised_model_is_opened(folder):
    again = load_pretrained(folder, model_class=Quantised)
    assert isinstance(again.encoder.layer[0].output.dense.weight, Packed)
    assert torch.allclose(output(again), output(load_pretrained(folder)), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (bert, r"no mask is attached to this BertModel; attach a mask .* or save the weights"),
        (lambda: attach(bert(), Gates(length=LENGTH, heads=HEADS, layers=LAYERS)),
         r"gates are attached to this BertModel; .*of gates: result\.mask\(sparsity=0\.9\)"),
        (Around,
         r"Around is no Hugging Face .*; ms\.attach\(model\.get_submodule\(.inner.\), mask"),
        (lambda: attach(Around(), STAR),
         r"ms\.detach\(model, missing_ok=True\); ms\.attach\(model\.get_sub"),
        (lambda: attach(Around(), STAR).inner, "no mask is attached to this BertModel"),
        (lambda: nn.Linear(2, 2), "Linear is no Hugging Face model"),
        (lambda: masks.window(1), "Window is no Hugging Face model"),
        (cut_layers, r"nothing could load it again: 3. differ, such as encoder\.layer\.1\."),
        (lambda: attach(torch.ao.quantization.quantize_dynamic(bert(), {nn.Linear}), STAR),
         r"BertModel was quantised in memory, .* quantise what ms\.load_pretrained\(folder\)"),
        (lambda: attach(packed(bert()), STAR), r"this BertModel was quantised in memory"),
        (wide_head, r"nothing could load it again: 2 differ, such as classifier\.bias; change"),
    ],
    ids=["nothing", "gates", "around", "around-masked", "inside", "linear", "mask", "cut",
         "dynamic", "packed", "wide"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_models_that_are_not_saved(tmp_path, model, message):
    with pytest.raises(AttachError, match=message):
        save_pretrained(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- folders that are not read -----------------------------------------------------------------
BOMB = struct.pack("<Q", 1 << 40) + b"{" * 64  # a header of a terabyte
DEEP = b'{"kind":"not","of":' * 20_000


def edited(folder: Path, file: str = "masksearch.json", **changed: Any) -> None:
    """Other values in the manifest, or in another file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def sole_mask(folder: Path, name: str, text: bytes = b"x") -> None:
    """The manifest names that file instead, with its true digest where it holds a mask."""
    if Path(name).name == name:
        (folder / name).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    reconfigured(masksearch=None)(folder)
    edited(folder, masks={"self": {"file": name, "digest": digest}})


def cut(file: str, left: int = 40) -> Any:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:left])


def put(file: str, text: bytes) -> Any:
    return lambda folder: (folder / file).write_bytes(text)


def absent(file: str) -> Any:
    return lambda folder: (folder / file).unlink()


def one_bit(folder: Path) -> None:
    data = bytearray((folder / "mask.json").read_bytes())
    data[-3] ^= 1
    (folder / "mask.json").write_bytes(data)


def wrong_weights(folder: Path) -> None:
    bert(2).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)


def lost_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.LayerNorm.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigured(**changed: Any) -> Any:
    return lambda folder: edited(folder, "config.json", **changed)


def masked(mask: masks.Mask) -> Any:
    return lambda folder: sole_mask(folder, "mask.json", mask.to_json().encode())


MANIFESTS: dict[str, tuple[Any, type[Exception], str]] = {
    "no manifest": (absent("masksearch.json"), FileNotFoundError,
        r"no masksearch\.json lies there:|holds no masksearch\.json"),
    "cut manifest": (cut("masksearch.json"), MaskFormatError, "masksearch.json cannot be used"),
    "foreign manifest": (put("masksearch.json", b"[1]"), MaskFormatError, "cannot be used"),
    "deep manifest": (put("masksearch.json", b"[" * 10**5), MaskFormatError, "cannot be used"),
    "binary manifest": (put("masksearch.json", b"\xff\xfe"), MaskFormatError, "cannot be used"),
    "no masks": (lambda f: edited(f, masks={}), MaskFormatError, "it names no mask"),
    "odd build": (lambda f: edited(f, weights=[1]), MaskFormatError, "cannot be used"),
    "odd options": (lambda f: edited(f, options={"add_pooling_layer": "no"}), MaskFormatError,
        r"builds the model with \{'add_pooling_layer': 'no'\}"),
    "odd masks": (lambda f: edited(f, masks=["self"]), MaskFormatError, "cannot be used"),
    "newer": (lambda f: edited(f, format=2), MaskFormatError, r"format 2, .* reads 1; it was"),
    "up": (lambda f: sole_mask(f, "../mask.json"), MaskFormatError, "names '../mask.json', which"),
    "absolute": (lambda f: sole_mask(f, "/etc/passwd"), MaskFormatError, "not a file of that"),
    "no mask": (absent("mask.json"), FileNotFoundError, "names this mask file, it is missing"),
    "cut mask": (cut("mask.json"), MaskFormatError, "mask.json: not JSON that can be read"),
    "one bit": (one_bit, MaskFormatError, r"mask\.json"),
    "other mask": (put("mask.json", STAR.to_json().encode()), MaskFormatError,
        r"mask\.json was changed since it was saved: star\(\) has another digest"),
    "bomb": (lambda f: sole_mask(f, "m.safetensors", BOMB), MaskFormatError, "not a readable"),
    "deep mask": (lambda f: sole_mask(f, "m.json", DEEP), MaskFormatError, "m.json: not JSON"),
    "foreign": (lambda f: sole_mask(f, "m.json", b"{}"), MaskFormatError, "m.json: a mask is an"),
    "pickled": (lambda f: sole_mask(f, "m.pt", b"\x80."), MaskFormatError, "ends in .json or"),
}  # fmt: skip
MODELS: dict[str, tuple[Any, type[Exception], str]] = {
    "no folder": (shutil.rmtree, FileNotFoundError,
        r"model is no folder, or holds no masksearch\.json: no mask was"),
    "no config": (absent("config.json"), DataError, "holds no config.json"),
    "cut config": (cut("config.json"), DataError, "config.json cannot be read"),
    "foreign config": (put("config.json", b"[]"), DataError, "cannot be read: it holds no object"),
    "bad config": (reconfigured(hidden_size="x"), DataError, "cannot be read as BertModel"),
    "no class": (reconfigured(architectures=None), AttachError, "names the class None, which"),
    "own class": (reconfigured(architectures=["Mine"]), AttachError, "'Mine', which is not a"),
    "a function": (reconfigured(architectures=["pipeline"]), AttachError, "'pipeline', which is"),
    "Auto": (reconfigured(architectures=["AutoModel"]), AttachError, "'AutoModel', which is not"),
    "other class": (reconfigured(architectures=["GPT2Model"]), DataError, "GPT2Model"),
    "own weights": (reconfigured(transformers_weights="adapter_model.bin"), DataError,
        "transformers_weights"),
    "no weights": (absent("model.safetensors"), DataError, "holds no model.safetensors"),
    "cut weights": (cut("model.safetensors", 900), DataError, "cannot be read as BertModel"),
    "weight bomb": (put("model.safetensors", BOMB), DataError, "cannot be read as BertModel"),
    "few weights": (wrong_weights, DataError,
        r"do not fit BertModel in 16 tensors, such as encoder.* \(missing\)"),
    "one lost": (lost_weight, DataError,
        r"in 1 tensors, .*embeddings\.LayerNorm\.bias \(missing\); take"),
    "wide": (reconfigured(hidden_size=16), DataError, r"stored \[8\], expected \[16\]"),
    "heads": (masked(masks.per_head([STAR] * 3)), HeadCountError, "the mask has 3 heads"),
    "layers": (masked(masks.per_layer([STAR] * 2)), LayerCountError, "the mask has 2 layers"),
    "backend": (lambda f: edited(f, backend="magic"), ValueError, "unknown backend 'magic'"),
    "adapter": (put("adapter_config.json", b"{}"), DataError, r"holds adapter_config\.json, for"),
    "odd option": (lambda f: edited(f, options={"allow_all_kernels": True}), MaskFormatError,
        r"builds the model with \{'allow_all_kernels': True\}"),
}  # fmt: skip


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
    for read in (saved_masks, load_pretrained):
        with pytest.raises(error, match=message):
            read(folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_damaged_and_foreign_models_are_refused(folder, case):
    change, error, message = MODELS[case]
    change(folder)
    with pytest.raises(error, match=message):
        load_pretrained(folder)


def test_another_class_does_not_hide_lost_weights(folder):
    lost_weight(folder)
    with pytest.raises(DataError, match=MODELS["one lost"][2]):
        load_pretrained(folder, model_class=hf.BertForSequenceClassification)


def test_a_class_must_be_one_of_models(folder):
    for other in ("BertModel", 3):
        with pytest.raises(TypeError, match=r"a class such as transformers\.BertModel, got"):
            load_pretrained(folder, model_class=other)
    for other in (hf.DistilBertModel, hf.GPT2Model, hf.AutoTokenizer, int):
        with pytest.raises(DataError, match=r"the weights do not fit|cannot be read as"):
            load_pretrained(folder, model_class=other)


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
    with pytest.raises(DataError, match=r"holds no model\.safetensors; .* can run any code"):
        load_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoModel": "modeling.BertModel", "AutoConfig": "modeling.BertConfig"}
    reconfigured(auto_map=auto_map)(folder)
    load_pretrained(folder)
    load_pretrained(folder, model_class=hf.AutoModel)
    with pytest.raises(ValueError, match=r"no trust_remote_code: code .* is never run \(write"):
        load_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="chosen by backend="):
        load_pretrained(folder, attn_implementation="eager")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_configuration_names_is_not_fetched(folder, key):
    reconfigured(**{key: "someone/kernel"})(folder)
    model = load_pretrained(folder)
    assert torch.equal(output(model), output(attach(bert(), MIXED)))
    assert detach(model).config._attn_implementation == "sdpa"
