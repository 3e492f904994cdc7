"""What engines make of an exported configuration: every family against the table of readings."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

import masksearch as ms
from masksearch import masks
from masksearch_decoders import to_native
from masksearch_decoders.engines import ENGINES
from masksearch_decoders.native import from_native

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "layer_types": KINDS}
WINDOWED = SIZES | {"sliding_window": 64, "use_sliding_window": True}
CONFIGS = {
    "llama": hf.LlamaConfig(**SIZES | {"layer_types": None}),
    "qwen2": hf.Qwen2Config(**WINDOWED),
    "qwen3": hf.Qwen3Config(**WINDOWED),
    "smollm3": hf.SmolLM3Config(**WINDOWED),
    "olmo3": hf.Olmo3Config(**SIZES, sliding_window=64),
    "gemma3_text": hf.Gemma3TextConfig(**SIZES, sliding_window=64),
    "exaone4": hf.Exaone4Config(**SIZES, sliding_window=64),
    "cohere2": hf.Cohere2Config(**SIZES, sliding_window=64),
    "granite_swa": hf.GraniteSWAConfig(**SIZES, sliding_window=64),
    "modernbert": hf.ModernBertConfig(**SIZES, local_attention=64),
}
MIXED = masks.per_layer([masks.window(5), masks.full(), masks.window(5)])
# Which engines apply a mask of windows and full layers, and one of windows alone, as read in their
# source (releases and files: serving/engines/).
SERVED = {
    "llama": ({"vllm"}, {"vllm"}),  # as a SmolLM3
    "qwen2": (set(), {"vllm"}),
    "qwen3": (set(), {"vllm"}),
    "smollm3": ({"vllm"}, {"vllm"}),
    "olmo3": ({"vllm", "sglang", "llama.cpp"}, {"vllm", "sglang", "llama.cpp"}),
    "gemma3_text": (set(ENGINES), None),  # other angles: kinds are bound
    "exaone4": ({"vllm"}, None),  # llama.cpp: of 64 layers
    "cohere2": ({"llama.cpp", "tensorrt-llm"}, None),
    "granite_swa": ({"vllm", "sglang", "llama.cpp"}, {"vllm", "sglang", "llama.cpp"}),
    "modernbert": ({"vllm", "llama.cpp"}, None),
}


@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("family", CONFIGS)
def test_exports_are_served_as_written_or_refused(family, target, tmp_path):
    for mask, served in zip((MIXED, masks.window(5)), SERVED[family], strict=True):
        if served is None:
            continue
        if target not in served | {"transformers"}:
            with pytest.raises(ms.errors.NativeError, match=r"^of the windows of ") as refused:
                to_native(CONFIGS[family], mask, target=target)
            assert refused.value.nearest == (masks.causal() if family == "llama" else None)
            continue
        to_native(CONFIGS[family], mask, target=target).save_pretrained(tmp_path)
        opened = hf.AutoConfig.from_pretrained(tmp_path)  # what an engine reads
        own = {name for name, engine in ENGINES.items() if not engine.unserved(opened)}
        assert own == served | {"transformers"}
        assert opened.layer_types == (KINDS if mask is MIXED else KINDS[:1] * 3)
        assert opened.sliding_window == (5 if family == "modernbert" else 6)
        assert opened.model_type != "llama"  # whose masks stay full, while its caches drop keys
        assert getattr(opened, "max_window_layers", 0) == 0


def test_a_refusal_says_why_and_what_works():
    with pytest.raises(
        ms.errors.NativeError, match=r"vLLM 0\.33\.0 reads if all slide.*--model-impl"
    ):
        to_native(CONFIGS["qwen3"], MIXED, target="vllm")
    plain = hf.LlamaConfig(**SIZES | {"layer_types": None})
    with pytest.raises(
        ms.errors.NativeError, match=r"SGLang .* gemma3_text, granite_swa, olmo3; sinks= makes"
    ):
        to_native(plain, MIXED, target="sglang")
    to_native(plain, masks.full(), target="sglang")  # without windows all serve it
    deep = hf.Exaone4Config(num_hidden_layers=64, sliding_window=64)
    llama_cpp = ENGINES["llama.cpp"]
    assert not llama_cpp.unserved(deep)
    assert "exaone4 with 3 layers" in llama_cpp.unserved(CONFIGS["exaone4"])
    with pytest.raises(
        ms.errors.NativeError, match=r"drops keys \(.*_qwen3.py .* cohere2, gemma3_text"
    ):
        to_native(CONFIGS["qwen3"], MIXED, target="tensorrt-llm")


WORDS = {  # of a row on the page
    "reads": "yes",
    "reads if all slide": "if all layers slide, else it stops",
    "ignores": "dense: refused",
    "keeps one key more": "one key more: refused",
    "drops keys": "loses keys: refused",
}
TITLES = {
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "smollm3": "SmolLM3, and a Llama as one",
    "olmo3": "OLMo 3",
    "gemma3_text": "Gemma 3 (text)",
    "exaone4": "EXAONE 4",
    "cohere2": "Cohere 2",
    "granite_swa": "GraniteSWA",
    "modernbert": "ModernBERT",
}


def row_of(family: str) -> str:
    """What the page says of a family."""
    cells = [TITLES[family]]
    for engine in ENGINES.values():
        row = engine.readings.get(family)
        cells.append("no class reads them: refused" if row is None else WORDS[row.does])
        cells[-1] += f" of {row.layers} layers, else dense: refused" if row and row.layers else ""
        cells[-1] += "; yes with `--model-impl transformers`" if row and row.instead else ""
    return f"| {' | '.join(cells)} |"


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text("utf-8")
    head = f"| windows of | {' | '.join(engine.release for engine in ENGINES.values())} |"
    rule = "|---" * (1 + len(ENGINES)) + "|"
    assert "\n".join([head, rule, *map(row_of, TITLES)]) in page


def test_the_log_of_llama_cpp_says_which_layers_slide():
    engine = ENGINES["llama.cpp"]
    plan = {"settings": {"length": 96, "ubatch": 8, "sequences": 1}, "kv_bytes": 2**20}
    plan |= {"dense_kv_bytes": 2**21, "slides": [True, False, True]}

    def log(slides, prefix=""):
        lines = [f"{prefix}load_tensors: layer {at:3d} assigned to device CUDA0, is_swa = {each}"
                 for at, each in enumerate(slides)]  # fmt: skip
        return "\n".join([*lines, "llama_kv_cache: size =    1.00 MiB (..)"])

    for prefix in ("", "[47161] 0.01.057.554 D "):
        assert engine.read_log(log([1, 0, 1, 0], prefix), plan)[0] == 0  # the output is a layer
        code, said = engine.read_log(log([0, 1, 1, 0], prefix), plan)  # as many: equal bytes
        assert (code, said) == (1, ["layers 0, 1 slide and should not, or the other way round"])
    assert engine.read_log(log([1, 0]), plan)[0] == 2  # not of each layer
    assert engine.read_log(log([]), plan | {"slides": []})[0] == 0  # no layer could
    del plan["slides"]
    assert engine.read_log(log([]), plan)[0] == 0  # a folder of an earlier version


def test_readings_name_the_oldest_build_where_older_ones_are_silent():
    since = {family for family, row in ENGINES["llama.cpp"].readings.items() if row.since}
    assert since == set(ENGINES["llama.cpp"].readings) - {"granite_swa"}
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text("utf-8")
    assert "17 September 2026" in page
    assert "No older build was run" in page


def test_sglang_is_asked_to_free_keys():
    written = to_native(CONFIGS["olmo3"], MIXED, target="sglang")
    assert written.is_hybrid_swa
    assert written.hybrid_layer_pattern == [1, 0, 1]
    assert not hasattr(to_native(written, MIXED), "hybrid_layer_pattern")


def test_modernbert_names_its_period_where_it_has_one(tmp_path):
    angles = {kind: {"rope_theta": 7.0} for kind in KINDS}
    stale = {"layer_types": ["full_attention"] * 4, "global_attn_every_n_layers": 3}
    base = hf.ModernBertConfig(num_hidden_layers=4, rope_parameters=angles, **stale)
    full, window = masks.full(), masks.window(5)
    written = to_native(base, masks.per_layer([full, window, full, window]))
    written.save_pretrained(tmp_path)
    plain = written.to_dict()
    assert plain["global_attn_every_n_layers"] == 2
    assert plain["global_rope_theta"] == plain["local_rope_theta"] == 7.0
    assert from_native(hf.AutoConfig.from_pretrained(tmp_path)) == from_native(written)
    irregular = to_native(base, masks.per_layer([window, full, window, window]))
    assert "global_attn_every_n_layers" not in irregular.to_dict()  # of 3, which it was
