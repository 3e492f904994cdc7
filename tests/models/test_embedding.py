"""A SentenceTransformer and its mask in one folder."""

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_embedding
from toy_words import WORDS
from transformers import AutoModel, BertModel

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, DataError
from masksearch.models.embedding import open_embedding

library: Any = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
TEXTS = [" ".join([*WORDS[at : at + 4 + at % 9], WORDS[at]]) for at in range(20)]
MASK = masks.window(2) | masks.global_tokens(1)
WORDS_TOO = masks.window(1) | masks.same_token()
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


@pytest.mark.nightly  # another process imports the library
def test_the_library_alone_refuses_it(folder: Path, tmp_path: Path) -> None:
    ms.save_pretrained(ms.attach(open_embedding(folder), MASK), tmp_path)
    program = ALONE.format(str(tmp_path))
    done = run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode
    assert 'attn_implementation="masksearch"` is not supported' in done.stderr


@pytest.mark.slow
def test_other_modules_are_refused(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense

    model = library.SentenceTransformer(str(folder), device="cpu")
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"))
    with pytest.raises(DataError, match=r"modules.json names Transformer, .*, Dense, and masks"):
        open_embedding(tmp_path / "dense")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "os.path.Pooling"
    model.pop(-1)
    model.save_pretrained(str(tmp_path / "strange"))
    (tmp_path / "strange" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match=r"cannot be read: .* class .os\.path\.Pooling"):
        open_embedding(tmp_path / "strange")


def test_without_the_library_its_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=r"needs the package sentence-transformers: .*\[embed\]"):
        open_embedding(folder)


@pytest.mark.slow
def test_it_is_timed(folder: Path) -> None:
    model = ms.attach(open_embedding(folder), MASK)
    (speed,) = ms.measure_speed(model, 16, repeats=10, progress=False)
    assert speed.length == 16
