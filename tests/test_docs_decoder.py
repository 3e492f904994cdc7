"""docs/decoder.md: its Python runs, on a toy, and is as short as it says."""

import re
from pathlib import Path

import pytest
from tiny_decoder import tiny_decoder, written_text
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import masksearch as ms

PAGE = Path(__file__).parents[1] / "docs" / "decoder.md"
WORDS = ["Once", "upon", "a", "time", *(f"w{number}" for number in range(8))]
SMALL = {"1024": "24", "window(127)": "window(3)", "budget=0.4": "budget=0.5"}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:the strategy has no more masks")
def test_a_decoder_is_loaded_searched_checked_exported_and_served(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    narrow = {"num_hidden_layers": 3, "initializer_range": 0.05}
    tiny_decoder(tmp_path / "my-llama", [*WORDS, "="], **narrow)
    written_text(tmp_path / "my-llama", tmp_path / "books", [*WORDS, "="])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file="my-llama/tokenizer.json")
    tokenizer.save_pretrained("my-llama")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    for said, small in SMALL.items():
        assert said in code
        code = code.replace(said, small)
    found: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), found)
    shown = capsys.readouterr().out
    assert "'documents': " in shown
    assert "Once upon a time" in shown
    native = AutoModelForCausalLM.from_pretrained("runs/native")
    assert native.config.layer_types.count("full_attention") <= 1  # of three, within the budget
    assert native.config.sliding_window == 4
    inputs, masked = found["inputs"], found["model"]
    tokens = [
        native.generate(**inputs, max_new_tokens=20)[0],
        masked.generate(**inputs, max_new_tokens=20, past_key_values=ms.MaskedCache(masked))[0],
    ]
    assert tokens[0].tolist() == tokens[1].tolist()
