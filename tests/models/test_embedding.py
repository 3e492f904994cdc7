"""A SentenceTransformer and its mask in one folder."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_embedding
from toy_words import WORDS
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Qwen3Config,
    Qwen3Model,
)

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, DataError
from masksearch.evaluators.embedding import embeds_texts
from masksearch.models.embedding import holds_embedding, open_embedding
from masksearch.models.saving import open_model
from masksearch.tasks.glue.columns import Columns

library: Any = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
TEXTS = [" ".join([*WORDS[at : at + 4 + at % 9], WORDS[at]]) for at in range(20)]
MASK = masks.window(2) | masks.global_tokens(1)
WORDS_TOO = masks.window(1) | masks.same_token()
SMALL = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2}
ALONE = "from sentence_transformers import SentenceTransformer as S; S({!r})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding(tmp_path_factory.mktemp("models") / "embedder", list(WORDS))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [MASK, WORDS_TOO])
def test_attach_takes_the_whole_model_and_detach_gives_it_back(folder: Path, mask: Any) -> None:
    model = library.SentenceTransformer(str(folder), device="cpu")
    dense = model.encode(TEXTS)
    assert ms.attach(model, mask) is model
    assert ms.attached(model) == ms.attached(model[0].model) == {"self": mask}
    inner = ms.attach(BertModel.from_pretrained(folder).eval(), mask)
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, there = inner(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
    means = (states * there).sum(1) / there.sum(1)
    wanted = torch.nn.functional.normalize(means).numpy()
    assert model.encode(TEXTS) == pytest.approx(wanted, abs=1e-5)
    assert mask.needs_tokens or "window(2)" in str(ms.explain(model, 16))
    ms.detach(model)
    assert model.encode(TEXTS) == pytest.approx(dense, abs=1e-6)
    assert np.abs(dense - wanted).max() > 0.01


@pytest.mark.slow
def test_a_saved_model_embeds_as_before(folder: Path, tmp_path: Path) -> None:
    model, out = library.SentenceTransformer(str(folder), device="cpu"), tmp_path / "out"
    table = masks.table(MASK.dense(12))
    with pytest.raises(AttachError, match="no mask is attached"):
        ms.save_pretrained(model, out)
    ms.attach(model, table)
    model.max_seq_length = 12
    masked = model.encode(TEXTS)
    for _ in range(2):  # over itself, too
        assert ms.save_pretrained(model, out) == out
    again: Any = ms.load_pretrained(out)
    assert type(again) is library.SentenceTransformer
    assert ms.attached(again) == {"self": table}
    assert again.max_seq_length == 12
    assert (again.encode(TEXTS) == masked).all()
    assert not hasattr(ms.detach(again)[0].model.config, "masksearch")
    assert type(ms.load_pretrained(out, model_class=AutoModel)) is BertModel
    ms.save_pretrained(ms.attach(BertModel.from_pretrained(folder), MASK), out)
    assert type(ms.load_pretrained(out)) is BertModel  # no modules.json of the earlier one


@pytest.mark.slow
def test_a_decoder_that_embeds_pads_on_the_right_beside_a_mask(folder, tmp_path):
    parts = library.sentence_transformer.modules
    start, out = tmp_path / "start", tmp_path / "out"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
        decoder = Qwen3Model(Qwen3Config(vocab_size=5 + len(WORDS), **small)).eval()
        for weight in decoder.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.4)
    decoder.save_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(start)
    modules = [parts.Transformer(str(start)), parts.Pooling(32, pooling_mode="lasttoken")]
    model = library.SentenceTransformer(modules=modules, device="cpu")
    ms.save_pretrained(ms.attach(model, MASK), out)
    alone = []
    with torch.no_grad():
        for text in TEXTS:  # the last token of a row without padding
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            alone.append(ms.attach(decoder, MASK)(ids).last_hidden_state[0, -1])
    again: Any = ms.load_pretrained(out)
    assert again.encode(TEXTS) == pytest.approx(torch.stack(alone).numpy(), abs=1e-4)


@pytest.mark.nightly  # another process imports the library
def test_the_library_alone_refuses_it(folder: Path, tmp_path: Path) -> None:
    ms.save_pretrained(ms.attach(open_embedding(folder), MASK), tmp_path)
    program = ALONE.format(str(tmp_path))
    done = run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode
    assert 'attn_implementation="masksearch"` is not supported' in done.stderr


# -- what is taken -----------------------------------------------------------------------------
INNER = [r'model\.get_submodule\("0\.model"\)']
QUERIES, DOCUMENTS = (rf'"0\.sub_modules\.{side}\.0\.model"' for side in ("query", "document"))
BOTH = rf"model\.get_submodule\({QUERIES}\) or model\.get_submodule\({DOCUMENTS}\)"
ONE = rf"model\.get_submodule\({QUERIES}\)"
OTHERS = {  # how they are named; how the models inside are
    "reranker": ("a CrossEncoder of Transformer", INNER[0]),
    "sparse": ("a SparseEncoder of Transformer, SpladePooling", INNER[0]),
    "vectors": ("a MultiVectorEncoder of Transformer, Dense, .*, Normalize", INNER[0]),
    "dense": ("a SentenceTransformer of Transformer, Pooling, Dense", INNER[0]),
    "two routes": ("a SentenceTransformer of Router", BOTH),
    "shared": ("a SentenceTransformer of Router", ONE),
    "routed": ("a SentenceTransformer of Transformer, Pooling, Router", INNER[0]),
}


def make_other(name: str, start: Path) -> Any:
    """A model of that library which is no SentenceTransformer of the three modules."""
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Pooling,
        Router,
        Transformer,
    )

    kinds = {
        "reranker": partial(library.CrossEncoder, num_labels=1),
        "sparse": library.SparseEncoder,
        "vectors": library.MultiVectorEncoder,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in kinds:
            return kinds[name](str(start), device="cpu")
        one, two = (Transformer(str(start)) for _ in range(2))
        modules = {
            "dense": [one, Pooling(32), Dense(32, 8)],
            "two routes": [Router.for_query_document([one, Pooling(32)], [two, Pooling(32)])],
            "shared": [Router.for_query_document([one, Pooling(32)], [one, Pooling(32)])],
            "routed": [
                *(one, Pooling(32)),
                Router.for_query_document([Dense(32, 8)], [Dense(32, 8)]),
            ],
        }
        return library.SentenceTransformer(modules=modules[name], device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_refused_in_memory(folder: Path, tmp_path: Path, name: str) -> None:
    """By all that would put a mask on one, or save it; the model inside takes it, and is saved."""
    model = make_other(name, folder.with_name(f"{folder.name}-start"))
    kind, inside = OTHERS[name]
    named = f"not on {kind}; attach to the model inside, and save that: {inside}$"
    for door in (lambda: ms.attach(model, MASK), lambda: ms.explain(model, 16)):
        with pytest.raises(AttachError, match=named):
            door()
    assert not any(hasattr(each, "masksearch_attachment") for each in model.modules())
    path = re.findall(r'get_submodule\("(.+?)"\)', inside.replace("\\", ""))[-1]
    inner = ms.attach(model.get_submodule(path), MASK)
    with pytest.raises(AttachError, match=named):
        ms.save_pretrained(model, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    again: Any = ms.load_pretrained(ms.save_pretrained(inner, tmp_path / "inner"))
    assert type(again) is type(inner)
    assert ms.attached(again) == {"self": MASK}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "reranker"])
def test_folders_of_other_kinds_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    make_other(name, folder.with_name(f"{folder.name}-start")).save_pretrained(str(tmp_path))
    for read in (open_model, open_embedding, partial(embeds_texts, task=None)):
        with pytest.raises(DataError, match=f"not on {OTHERS[name][0]}; open .* by its own libr"):
            read(tmp_path)
    assert not embeds_texts(tmp_path, Columns(("one",), "label"))  # its encoder is fine-tuned


@pytest.mark.slow
def test_a_reranker_on_disk_is_a_classifier(folder: Path, tmp_path: Path) -> None:
    reranker = make_other("reranker", folder.with_name(f"{folder.name}-start"))
    reranker.save_pretrained(str(tmp_path))
    model: Any = open_model(tmp_path)
    assert type(model) is BertForSequenceClassification
    assert not embeds_texts(tmp_path, Columns(("one", "two")))
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    tokens = reranker.tokenizer(pairs, padding=True, return_tensors="pt")
    wanted = reranker.predict(pairs, batch_size=len(pairs))
    with torch.no_grad():
        assert model(**tokens).logits[:, 0].sigmoid().numpy() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(DataError, match=r"holds no SentenceTransformer \(modules\.json\)"):
        open_embedding(tmp_path)
    settings = tmp_path / "config_sentence_transformers.json"
    more = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([*more, {"type": "a.Dense"}]))
    with pytest.raises(DataError, match="not on a CrossEncoder of Transformer, Dense; open"):
        open_model(tmp_path)  # whose head is not transformers'
    settings.write_text("[]")
    with pytest.raises(DataError, match="cannot be read: it holds no object"):
        open_model(tmp_path)
    settings.unlink()
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(DataError, match=r"modules\.json cannot be read: it holds no list"):
        open_model(tmp_path)


def test_an_encoder_is_no_embedding_model(folder: Path) -> None:
    """That library would pool what it embeds, in silence."""
    start = folder.with_name(f"{folder.name}-start")
    assert not holds_embedding(start)
    with pytest.raises(DataError, match="holds no SentenceTransformer"):
        open_embedding(start)


@pytest.mark.slow
def test_a_module_of_ones_own_with_such_an_attribute_is_none_of_that_library() -> None:
    """What that library calls its model inside is a name that others may have."""
    whole = torch.nn.Module()
    whole.transformers_model = BertModel(BertConfig(**SMALL)).eval()
    whole.forward = lambda input_ids: whole.transformers_model(input_ids)  # type: ignore[method-assign]
    ms.attach(whole, MASK)
    assert ms.attached(whole.transformers_model) == {}
    assert ms.attached(whole) == {"self": MASK}


@pytest.mark.slow
def test_encode_notices_other_attention_and_draws_gates(folder: Path) -> None:
    """That library calls the forward of the model inside, past the hooks on it."""
    model = ms.attach(library.SentenceTransformer(str(folder), device="cpu"), MASK)
    model[0].model.set_attn_implementation("sdpa")
    with pytest.raises(AttachError, match="computes its attention by 'sdpa' now, which passes"):
        model.encode(TEXTS)
    ms.detach(model)
    gates = ms.Gates(layers=2, heads=2, length=24)
    assert model.encode(TEXTS).shape == ms.attach(model, gates).encode(TEXTS).shape


@pytest.mark.nightly  # another process imports the library
def test_a_script_that_imports_both_attaches(folder: Path) -> None:
    """And masksearch does not load that library by itself."""
    program = f"""
import sys
import masksearch as ms
from transformers import BertModel

mask = ms.masks.window(2)
ms.attach(BertModel.from_pretrained({str(folder)!r}), mask)
assert "sentence_transformers" not in sys.modules
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({str(folder)!r}, device="cpu")
assert ms.attached(ms.attach(model, mask)[0].model) == {{"self": mask}}
"""
    done = run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_module_of_another_library_is_refused(folder: Path, tmp_path: Path) -> None:
    model = library.SentenceTransformer(str(folder), device="cpu")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "os.path.Pooling"
    model.save_pretrained(str(tmp_path / "strange"))
    (tmp_path / "strange" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match=r"cannot be read: .* class .os\.path\.Pooling"):
        open_embedding(tmp_path / "strange")


def test_without_the_library_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=r"needs the package sentence-transformers: .*\[embed\]"):
        open_embedding(folder)


@pytest.mark.slow
def test_it_is_timed(folder: Path) -> None:
    model = ms.attach(open_embedding(folder), MASK)
    (speed,) = ms.measure_speed(model, 16, repeats=10, progress=False)
    assert speed.length == 16
