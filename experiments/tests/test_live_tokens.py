"""25_live_tokens: plain ways and their work, words by shares, tokens with most attention, the
planned contrasts of made-up lines, its stages at a toy size."""

import base64
import itertools
import json
from collections import Counter
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from experiment_scripts import load_script
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toy_classes import deep_checkpoint, write_two_classes
from toy_sentences import write_lines
from transformers import BertConfig, BertForSequenceClassification

import masksearch as ms
from masksearch import masks
from masksearch.masks.schedules import THINNED
from masksearch.tasks.text.rows import RowLayout, TokenRows

ways = load_script("25_live_tokens/ways.py")
contrasts = load_script("25_live_tokens/contrasts.py")
SIZES = {"hidden_size": 16, "intermediate_size": 32}
LAYOUT = RowLayout.bert({"cls": 1, "sep": 2, "pad": 0}, 64)
LENGTHS = Counter({4: 3, 9: 2, 12: 1})


def shape_of(layers: int = 4, **more: Any) -> ms.Shape:
    return ms.Shape(12, layers, 2, read=1, lengths=LENGTHS, **SIZES, **more)


def head_of(layers: int = 4) -> Any:
    """A toy of transformers' class, in a wrapper with `.whole`, as evaluators have it."""
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": layers, "num_attention_heads": 2}
    config = BertConfig(vocab_size=40, max_position_embeddings=32, **sizes)
    module = torch.nn.Module()
    module.whole = BertForSequenceClassification(config)
    return module.eval()


def batch() -> dict[str, torch.Tensor]:
    real = torch.arange(12) < torch.tensor([[4], [9], [12]])
    ids = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(1)) * real
    return {"input_ids": ids, "attention_mask": real.long(), "token_type_ids": 0 * ids}


# -- ways --------------------------------------------------------------------------------------
def test_a_way_without_layers_is_the_model_of_those_that_are_left():
    head, inputs = head_of(), batch()
    left = ways.Way(layers=(0, 2)).on(head)
    head.whole.bert.encoder.layer = torch.nn.ModuleList(
        [head.whole.bert.encoder.layer[at] for at in (0, 2)]
    )
    torch.testing.assert_close(left.whole(**inputs).logits, head.whole(**inputs).logits)


def test_work_of_layers_fewer_and_of_cut_inputs():
    shape = shape_of()
    h, f = SIZES["hidden_size"], SIZES["intermediate_size"]

    def layer(before: int, after: int) -> float:
        return after * (h + f) + before * h + after * before

    def of(lengths: Counter[int], layers: int) -> float:
        return sum(c * ((layers - 1) * layer(n, n) + layer(n, 1)) for n, c in lengths.items())

    dense = sum(c * 4 * layer(n, n) for n, c in LENGTHS.items())
    assert ways.Way().work(shape) == pytest.approx(of(LENGTHS, 4) / dense)
    assert ways.limit_of(2, shape) == pytest.approx(of(LENGTHS, 2) / dense)
    cut = Counter({4: 3, 6: 3})
    assert ways.Way(cut=6).work(shape) == pytest.approx(of(cut, 4) / dense)
    assert ways.Way(layers=(0, 1, 3), cut=6).work(shape) == pytest.approx(of(cut, 3) / dense)
    limit = ways.limit_of(1, shape)
    most = ways.cut_within(limit, shape)
    assert ways.Way(cut=most).work(shape) <= limit < ways.Way(cut=most + 1).work(shape)


@given(
    st.lists(st.integers(5, 30), min_size=1, max_size=9),
    st.lists(st.integers(5, 30), max_size=9),
    st.integers(5, 20),
    st.sampled_from(["head", "tail"]),
)
def test_cut_rows_keep_one_side_of_the_longer_text(first, second, most, side):
    ids = [1, *first, 2, *([*second, 2] if second else [])]
    rows = TokenRows.of([(ids, len(first) + 2)], [1], LAYOUT)
    cut = ways.cut_rows(rows, most, side)
    (row,) = [[int(each) for each in cut.ids[0]]]
    assert len(row) == min(len(ids), most)
    ends = [at for at, each in enumerate(row) if each == 2]
    texts = [row[1 : ends[0]], *([row[ends[0] + 1 : ends[1]]] if second else [])]
    assert int(cut.firsts[0]) == ends[0] + 1
    assert cut.labels.tolist() == [1]
    for whole, part in zip([first, second], texts, strict=False):
        kept = whole[: len(part)] if side == "head" else whole[len(whole) - len(part) :]
        assert part == kept
        if len(part) < len(whole):  # a text gives tokens only while it is the longer one
            assert max(map(len, texts)) <= len(part) + 1


def test_words_by_shares_are_nested_within_the_limit_and_the_best_of_each_layer():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.where(batch()["attention_mask"].bool(), batch()["input_ids"], -1)
    tokens[:, 0] = 1
    shape, effects = shape_of(tokens=tokens), torch.rand(4, 40, generator=draw)
    for how, limit in itertools.product(THINNED, (0.55, 0.8)):
        kept = ways.words_by_shares(limit, effects, shape, how)
        assert kept[:, 1].all()
        assert not (kept[1:] & ~kept[:-1]).any()
        assert masks.work(ways.mask_of_words(kept), shape) <= limit * (1 + 1e-9)
        worth = effects.cummin(0).values
        seen = torch.unique(tokens[tokens > 1])
        for layer in range(4):
            ranked = kept[layer, seen][worth[layer, seen].argsort(descending=True)].tolist()
            assert layer or ranked == sorted(ranked, reverse=True)
    assert ways.words_by_shares(1.0, effects, shape, "late").all()


# -- most attention ----------------------------------------------------------------------------
def test_all_tokens_kept_are_the_dense_model():
    whole, inputs = head_of().whole, batch()
    kept = ways.MostAttended(whole, [1.0] * 4, shape_of()).eval()
    torch.testing.assert_close(kept(**inputs).logits, whole(**inputs).logits)


def test_most_attended_hides_what_has_left_and_counts_the_rest():
    whole, inputs, shape = head_of(2).whole, batch(), shape_of(2)
    whole.set_attn_implementation("eager")
    kept = ways.MostAttended(whole, [1.0, 0.5], shape).eval()
    found = kept(**inputs).logits
    weights = whole(**inputs, output_attentions=True).attentions[0]
    spent = 0.0
    for row, length in enumerate((4, 9, 12)):
        got = weights[row, :, :length].sum((0, 1))[:length]
        got[0] = torch.inf
        after = got.topk(-(-length // 2)).indices.sort().values
        mask = torch.zeros(2, 12, 12, dtype=torch.bool)
        mask[0], mask[1, :, after] = True, True
        masked = ms.attach(head_of(2).whole, masks.per_layer([masks.table(m) for m in mask]))
        alone = {name: each[row : row + 1] for name, each in inputs.items()}
        torch.testing.assert_close(masked(**alone).logits, found[row : row + 1])
        h, f, left = *SIZES.values(), len(after)
        for before, then in ((length, left), (left, 1)):
            spent += 1.5 * h * before + (0.5 * h + f) * then + (before + then) * before / 2
    assert kept.spent == pytest.approx(spent)
    for how in THINNED:
        shares = ways.attended_shares(0.7, shape_of(), how)
        fitted = ways.MostAttended(head_of().whole, shares, shape_of()).eval()
        fitted(**batch())
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)


# -- contrasts ---------------------------------------------------------------------------------
TASKS, SEEDS, ROWS = ("SST-2", "QNLI"), range(3), 400
RIGHT = {  # name -> rows that are right of those that choose, and of those that judge
    "effects 2: found": (300, 310),
    "tpe 2: found": (290, 330),
    "random 2: found": (280, 270),
    "hand 2: a": (270, 260),
    "hand 2: b": (275, 250),
    "layers 2: 2 fewer": (280, 300),
    "cut 2: head": (200, 210),
    "cut 2: tail": (210, 190),
    "together 2: words": (0, 320),
    "attended 2: late": (0, 290),
    "dense": (340, 340),
}


def made_up() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Task and seed -> lines as the run writes them."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for task, seed in itertools.product(TASKS, SEEDS):
        own = lines[task, seed] = []
        for name, rights in RIGHT.items():
            for rows, right in zip(("choice", "judge"), rights, strict=True):
                if not right or (rows == "judge" and name in ("hand 2: a", "cut 2: head")):
                    continue
                right += seed * (name == "effects 2: found" and rows == "judge")
                bits = np.packbits(np.arange(ROWS) < right)
                own.append(
                    {"stage": "score", "rows": rows, "name": name, "score": right / ROWS,
                     "constant": 0.5, "work": 0.5, "work_judged": 0.52, "seconds": 1.0,
                     "each": f"{ROWS}b{base64.b85encode(bits.tobytes()).decode()}"}
                )  # fmt: skip
        own.append({"stage": "ended", "fewer": 2, "limit": 0.53})
    return lines


def test_contrasts_are_those_of_the_plan():
    lines = made_up()
    found = contrasts.primary(lines).set_index("task")
    gaps = [(310 + seed - 300) / ROWS for seed in SEEDS]
    assert found["difference"].tolist() == pytest.approx([fmean(gaps)] * 2)
    assert found["models"].tolist() == [3, 3]
    assert found["adjusted_p"].tolist() == pytest.approx([2 * p for p in found["p"]])
    assert not found["shown"].any() or (found["adjusted_p"] < 0.05).all()
    others = contrasts.differences(lines).set_index(["task", "fewer", "contrast"])["difference"]
    assert others["SST-2", 2, "effects - tpe"] == pytest.approx(fmean(gaps) - 30 / ROWS)
    assert others["QNLI", 2, "effects - hand"] == pytest.approx(fmean(gaps) + 50 / ROWS)
    assert others["QNLI", 2, "cut - dense"] == pytest.approx(-150 / ROWS)
    assert others["SST-2", 2, "together - mask"] == pytest.approx((320 - 311) / ROWS)
    scores = contrasts.scores(lines).set_index(["task", "arm"])
    assert scores.loc[("SST-2", "mask"), "score"] == pytest.approx(311 / ROWS)
    assert scores.loc[("SST-2", "mask"), ["low", "high"]].tolist() == pytest.approx(
        [311 / ROWS - (half := stats.t.ppf(0.975, 2) / ROWS / 3**0.5), 311 / ROWS + half]
    )
    assert contrasts.models(lines)["plain"].tolist() == ["layers 2: 2 fewer"] * 6


def test_models_that_have_not_ended_are_not_compared():
    lines = made_up()
    lines["SST-2", 1].pop()
    assert contrasts.primary(lines).set_index("task")["models"].tolist() == [2, 3]


def test_recovered_scores_stand_beside_those_before():
    lines = made_up()
    for name, after in (("dense", 0.9), ("effects 2: found", 0.85), ("layers 2: 2 fewer", 0.8)):
        line = next(x for x in lines["QNLI", 0] if x["name"] == name and x["rows"] == "judge")
        lines["QNLI", 0].append(line | {"name": f"recovered {name}", "score": after})
    found = contrasts.recovered(lines)
    assert found["group"].tolist() == ["dense", "mask", "plain"]
    assert found["after"].tolist() == [0.9, 0.85, 0.8]
    assert found["before"].tolist() == [340 / ROWS, 310 / ROWS, 300 / ROWS]


@pytest.mark.slow
def test_the_picture_is_that_of_the_lines(tmp_path):
    figures = load_script("25_live_tokens/figures.py")
    for (task, seed), own in made_up().items():
        write_lines(tmp_path / f"{task}_{seed}.jsonl", list(map(json.dumps, own)))
    figures.write(tmp_path)
    assert (tmp_path / "live_tokens.png").stat().st_size > 5_000


# -- the run -----------------------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.filterwarnings("default")
def test_live_tokens_smoke(tmp_path, monkeypatch):
    live = load_script("25_live_tokens/live.py")
    write_two_classes(tmp_path / "data" / "glue" / "SST-2")
    monkeypatch.setitem(live.PLAN["smoke"], "dense", {"epochs": 8, "finetune_lr": 3e-3})
    monkeypatch.setitem(live.run.PLAN["rows"], "held_out", 200)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    start = deep_checkpoint(tmp_path / "start")
    words = ["--data", tmp_path / "data", "--weights", start, "--smoke", "--models", "1"]
    words += ["--tasks", "SST-2", "--limits", "1", "--runs", tmp_path / "runs"]
    words += ["--results", tmp_path / "results"]
    for _ in range(2):  # the second call finds every line
        monkeypatch.setattr("sys.argv", ["live.py", *map(str, words)])
        live.main()
    lines = contrasts.all_lines(tmp_path / "results")
    ((_, own),) = lines.items()
    known = [tuple(line.get(key) for key in ("stage", "rows", "name", "arm")) for line in own]
    assert len({*known}) == len(known)
    limit = own[-1]["limit"]
    assert all(line["work"] <= limit + 1e-5 for line in own if line["stage"] == "score"
               and "work" in line and line["name"] != "dense")  # fmt: skip
    assert contrasts.models(lines)["fewer"].tolist() == [1]
