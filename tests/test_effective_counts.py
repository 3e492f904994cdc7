"""What is known of a mask before training: its effective pairs, counted by hand, and measures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers as hf
from optuna.trial import BaseTrial
from page_text import page_of
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.cli.output import print_comparison, print_front
from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.evaluators.wrappers import Cached
from masksearch.masks.families import random_like
from masksearch.report.section import Section
from masksearch_decoders import kv_bytes

# -- pairs of a decoder and of padded rows -------------------------------------------------------
DECODER = Shape(16, 1, 1, causal=True)  # 16 x 17 / 2 = 136 pairs
PADDED = Shape(16, 1, 1, lengths={4: 2, 8: 1, 16: 1})  # 2 x 16 + 64 + 256 = 352 pairs

# Kept pairs by hand. window(2) keeps n + 2 (n - 1) + 2 (n - 2) of n x n cells, of a decoder's
# n + (n - 1) + (n - 2): of 16 positions 74 and 45, of 8 positions 34, of 4 positions 14.
CASES = {
    "decoder": (DECODER, {"dense": (136, 136), "window(2)": (45, 45), "window(0)": (16, 16)}, 136),
    "padded": (
        PADDED,
        {
            "dense": (352, 256),
            "window(2)": (2 * 14 + 34 + 74, 74),
            "window(0)": (2 * 4 + 8 + 16, 16),
        },
        352,
    ),
}  # kept of the pairs, kept of the 256 cells; pairs


@dataclass(frozen=True)
class CountingEvaluator(Evaluator):
    """Loss grows with the reach of a mask, whatever is counted."""

    shape: Shape
    objectives = (Objective("loss", "min", 10.0), Objective("effective_sparsity", "max", 0.0))
    protocol = "counting"

    def __call__(self, mask: masks.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        kept = mask.density(self.shape.length)
        yield Report(1, {"loss": (2 - kept) + 0.01 * (seed % 3) * len(str(mask)) / 10})


def space(trial: BaseTrial) -> masks.Mask:
    return masks.window(trial.suggest_categorical("reach", [0, 2]))


def rows_of(text: str) -> dict[str, list[str]]:
    """Rows of a printed table by each of their cells."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {cell: row for row in rows for cell in row}


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*had been trained before")
def test_search_and_comparison_print_what_was_counted(name, tmp_path, capsys):
    shape, kept, pairs = CASES[name]
    evaluator = CountingEvaluator(shape)
    share = {mask: 1 - of_pairs / pairs for mask, (of_pairs, _) in kept.items()}
    table = {mask: 1 - of_cells / 256 for mask, (_, of_cells) in kept.items()}

    study = ms.search(
        space, evaluator, run=tmp_path / "s", trials=3, seed=0, baselines={"dense": masks.full()}
    )
    assert {str(record.mask) for record in study.frontier()} >= {"window(0)"}
    for record in study.records():
        mask = "dense" if record.mask == masks.full() else str(record.mask)
        assert record.value("effective_sparsity") == pytest.approx(share[mask])
        assert record.measures["sparsity"] == pytest.approx(table[mask])
    capsys.readouterr()
    print_front(study, as_json=False)
    printed = capsys.readouterr().out
    row = rows_of(printed)["window(0)"]
    both = [f"{100 * share['window(0)']:.1f}%", f"{100 * table['window(0)']:.1f}%"]
    assert [cell for cell in row if "%" in cell] == both
    assert "share of the non-padding query-key pairs" in printed
    print_front(study, as_json=True)
    first = next(r for r in json.loads(capsys.readouterr().out) if r["mask"] == "window(0)")
    assert first["sparsity"] == pytest.approx(table["window(0)"])
    assert first["effective_sparsity"] == pytest.approx(share["window(0)"])
    assert study.best(sparsity=share["window(0)"]).mask == masks.window(0)
    with pytest.raises(ms.errors.SearchError, match=f"the sparsest has {share['window(0)']:.4f}"):
        study.best(sparsity=table["window(0)"])  # which only the table has
    front = page_of(Section({"s": study.records()}, study.objectives))["front"]
    (row,) = [row for row in front.rows if row[-1].text == "window(0)"]
    shown = dict(zip((cell.text for cell in front.head), (c.text for c in row), strict=True))
    assert shown["sparsity"] == f"{100 * share['window(0)']:.1f}%"
    assert shown["of the table"] == f"{100 * table['window(0)']:.1f}%"

    chosen = masks.window(2)
    comparison = ms.compare(
        {"dense": masks.full(), "mine": chosen, "drawn": random_like(chosen, shape, 1)},
        evaluator,
        run=tmp_path / "c",
        seeds=range(2),
        kinds={"drawn": "control"},
    )
    capsys.readouterr()
    print_comparison(comparison, as_json=False)
    printed = rows_of(capsys.readouterr().out)
    both = [f"{100 * share['window(2)']:.1f}%", f"{100 * table['window(2)']:.1f}%"]
    assert printed["mine"][2:4] == both
    assert printed["dense"][2:4] == ["0.0%", f"{100 * table['dense']:.1f}%"]
    assert float(printed["drawn"][2][:-1]) == pytest.approx(100 * share["window(2)"], abs=1)
    page = page_of(Section({}, comparison.objectives, {"c": comparison}))["comparisons"][0]
    cells = {row[0].text: [cell.text for cell in row] for row in page["table"].rows}
    assert cells["mine"][2] == f"{100 * share['window(2)']:.1f}%"
    assert cells["mine"][4] == f"{100 * (1 - share['window(2)']):.1f}%"  # density
    finding = {each.against: each for each in comparison.findings()}
    assert finding["drawn"].role == "scrambled control of equal sparsity"
    assert abs(finding["drawn"].gap) <= 0.01
    assert finding["dense"].gap == pytest.approx(share["window(2)"])
    assert f"{100 * share['window(2)']:.1f}% sparse" in comparison.verdict()
    frame = comparison.frame().set_index("mask")
    assert frame.loc["mine", "effective_sparsity"] == pytest.approx(share["window(2)"])
    assert frame.loc["mine", "sparsity"] == pytest.approx(table["window(2)"])


@pytest.mark.nightly
def test_decoders_find_random_controls_on_every_seed(tmp_path):
    """Random keys alone leave a decoder's first queries empty, whatever their seed."""
    chosen = masks.window(3)
    drawn = {f"drawn {seed}": random_like(chosen, DECODER, seed) for seed in range(5)}
    comparison = ms.compare(
        {"mine": chosen, **drawn},
        CountingEvaluator(DECODER),
        run=tmp_path,
        seeds=range(2),
        kinds=dict.fromkeys(drawn, "control"),
    )
    for entry in comparison.entries.values():
        assert entry.failed == 0
        assert entry.sparsity == pytest.approx(comparison.entries["mine"].sparsity, abs=0.01)


# -- measures of an evaluator's own --------------------------------------------------------------
CONFIG = hf.LlamaConfig(
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32
)


class DecoderToy(ToyEvaluator):
    """A toy of a decoder, whose cache is known."""

    shape = ms.Shape(16, 2, 4, causal=True)
    objectives = (Objective("loss", "min", 10.0), Objective("kv_bytes", "min", 1.0))
    measure_names = ("kv_bytes",)
    protocol = "decoder-toy"

    def measures_of(self, mask):
        return {"kv_bytes": kv_bytes(mask, CONFIG, self.shape.length).share}

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"loss": 1 + mask.sparsity(16)})


def windows(trial):
    return masks.columns(1) | masks.window(trial.suggest_int("reach", 0, 15))


@pytest.mark.slow
def test_records_carry_it_and_a_violating_mask_is_not_trained(tmp_path):
    told = {"trials": 12, "strategy": "random", "constraints": ("kv_bytes <= 0.5",)}
    records = ms.search(windows, DecoderToy(), run=tmp_path, progress=None, **told).records()
    for record in records:
        held = min(16, record.params["reach"] + 1)
        assert record.measures["kv_bytes"] == held / 16
        assert (record.status == "stopped") == (held > 8)
        if held > 8:
            assert not record.curve
            assert "violates kv_bytes <= 0.5" in record.error
    assert {record.status for record in records} >= {"done", "stopped"}


def test_wrappers_offer_it_exactly_where_the_inner_evaluator_does(tmp_path):
    wrapped = Cached(DecoderToy(), tmp_path)
    assert wrapped.measure_names == ("kv_bytes",)
    assert wrapped.measures_of(masks.window(4)) == {"kv_bytes": 4 / 16}
    assert Cached(ToyEvaluator(), tmp_path).measure_names == ()
