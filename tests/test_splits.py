"""Searches and comparisons by splits of the rows, and how masks were found."""

from dataclasses import dataclass, replace

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.errors import EvaluatorError, ResumeError, UnknownNameError

FRESH = range(50, 53)


@dataclass(frozen=True)
class SplitToy(ToyEvaluator):
    """A toy whose rows are split; on all of them it has the protocol of earlier versions."""

    split: str = "validation"

    @property
    def protocol(self):
        return self.name if self.split == "all" else f"{self.name} {self.split}"

    def on(self, split):
        return replace(self, split=split)

    def final(self):
        return self.on("holdout")


@dataclass(frozen=True)
class Indifferent(SplitToy):
    """One whose rows were never both: `all` is the search split, as in the planted process."""

    @property
    def protocol(self):
        return self.name if self.split in ("all", "validation") else f"{self.name} {self.split}"


def compare(evaluator, run, **given):
    given = {"seeds": FRESH, "progress": None} | given
    return ms.compare(given.pop("candidates", ms.masks.FAMILIES), evaluator, run=run, **given)


def search(evaluator, run, **given):
    given = {"trials": 3, "strategy": "random", "progress": None} | given
    return ms.search(space, evaluator, run=run, **given)


def protocols(comparison):
    return {record.protocol for record in comparison.records}


@pytest.mark.nightly  # continuous integration runs it
def test_compare_judges_by_rows_that_no_search_has_seen(tmp_path):
    assert protocols(compare(SplitToy(), tmp_path / "a")) == {"toy holdout"}
    assert protocols(compare(SplitToy(), tmp_path / "b", split="validation")) == {"toy validation"}
    assert protocols(compare(SplitToy(split="test"), tmp_path / "c")) == {"toy test"}
    plain = compare(ToyEvaluator(), tmp_path / "d")
    assert (protocols(plain), plain.split) == ({"toy"}, "")
    assert ms.Comparison.open(tmp_path / "a").split == "holdout"
    with pytest.raises(EvaluatorError, match="ToyEvaluator does not split its rows"):
        compare(ToyEvaluator(), tmp_path / "e", split="holdout")
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        compare(SplitToy(), tmp_path / "e", split="tset")


@pytest.mark.nightly  # continuous integration runs it
def test_default_seeds_of_search_and_compare_do_not_overlap(tmp_path):
    found = search(ToyEvaluator(), tmp_path / "s")
    judged = ms.compare({"a": masks.full()}, ToyEvaluator(), run=tmp_path / "c", progress=None)
    assert not {r.seed for r in found.records()} & {r.seed for r in judged.records}
    assert len(judged.records) == 5


@pytest.mark.nightly  # continuous integration runs it
def test_another_split_is_refused_in_words(tmp_path):
    compare(SplitToy(), tmp_path)
    with pytest.raises(ResumeError, match="split: was holdout, now test"):
        compare(SplitToy(), tmp_path, split="test")
    assert protocols(compare(SplitToy(), tmp_path, split="holdout")) == {"toy holdout"}


@pytest.mark.nightly  # continuous integration runs it
def test_a_new_run_is_begun_on_its_split_without_a_word(tmp_path):
    assert {r.protocol for r in search(SplitToy(), tmp_path / "s").records()} == {"toy validation"}
    assert len(search(SplitToy(), tmp_path / "s", trials=4).records()) == 4


# -- how masks were found ----------------------------------------------------------------------
@pytest.mark.nightly  # continuous integration runs it
def test_what_found_a_mask_is_remembered(tmp_path):
    study = search(SplitToy(), tmp_path / "s", seed=7)
    best = study.best()
    candidates = {
        "record": best,
        "text": f"{tmp_path / 's'}#{best.number}",
        "mask": best.mask,
        "star": masks.star(),
    }
    found = compare(SplitToy(), tmp_path / "c", candidates=candidates)
    assert set(found.found_with) == {"record", "text"}
    known = found.found_with["record"]
    assert (known.seeds, known.same_rows) == ((7,), False)
    assert ms.Comparison.open(tmp_path / "c").found_with == found.found_with
    # it outlives a call that names the mask alone, and not another mask of that name
    again = compare(SplitToy(), tmp_path / "c", candidates={"record": best.mask})
    assert again.found_with == {"record": known}
    other = compare(SplitToy(), tmp_path / "c", candidates={"record": masks.window(9)})
    assert other.found_with == {}


@pytest.mark.nightly  # continuous integration runs it
def test_two_searches_that_found_one_mask_are_both_remembered(tmp_path):
    for seed in (1, 2):
        study = search(SplitToy(), tmp_path / str(seed), seed=seed, baselines=ms.masks.FAMILIES)
        best = replace(
            study.records()[0], origin="random", role="trial", source=f"search {seed}#0"
        )
        found = compare(SplitToy(), tmp_path / "c", candidates={"found": best})
    assert found.found_with["found"].seeds == (1, 2)


@pytest.mark.nightly  # continuous integration runs it
def test_seeds_that_found_a_mask_are_warned_of(tmp_path):
    best = search(SplitToy(), tmp_path / "s", seed=51).best()
    with pytest.warns(UserWarning, match="found was found with seed 51, which judges it too"):
        found = compare(SplitToy(), tmp_path / "c", candidates={"found": best})
    assert "found with seed 51, which judges it too" in found.verdict()
    assert (
        "seed 51"
        not in compare(
            SplitToy(), tmp_path / "d", candidates={"found": best}, seeds=[52, 53, 54]
        ).verdict()
    )


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize(
    ("searched", "judged"),
    [
        ("validation", "validation"),
        ("all", "holdout"),
        ("validation", "all"),
        ("all", "validation"),
    ],
)
def test_rows_that_found_a_mask_are_warned_of(tmp_path, searched, judged):
    best = search(SplitToy(split=searched), tmp_path / "s").best()
    with pytest.warns(UserWarning, match=f"on rows that judge it too .split='{judged}'"):
        found = compare(SplitToy(), tmp_path / "c", candidates={"found": best}, split=judged)
    assert "on rows that judge it too" in found.verdict()


@pytest.mark.nightly  # continuous integration runs it
@pytest.mark.parametrize(
    ("kind", "searched", "judged"),
    [
        (SplitToy, "validation", "holdout"),
        (SplitToy, "all", "test"),
        (Indifferent, "validation", "holdout"),
        (Indifferent, "all", "holdout"),
    ],
)
def test_fresh_rows_are_no_matter_of_warnings(tmp_path, kind, searched, judged):
    best = search(kind(split=searched), tmp_path / "s").best()
    found = compare(kind(), tmp_path / "c", candidates={"found": best}, split=judged)
    assert "flattered" not in found.verdict()


@pytest.mark.nightly  # continuous integration runs it
def test_evaluators_without_splits_are_judged_as_they_are_and_it_is_said(tmp_path):
    best = search(ToyEvaluator(), tmp_path / "s").best()
    found = compare(ToyEvaluator(), tmp_path / "c", candidates={"found": best})
    assert "may have found the searched masks too" in found.verdict()
    best = search(SplitToy(), tmp_path / "t").best()
    split = compare(SplitToy(), tmp_path / "d", candidates={"found": best})
    assert "Judged by rows that no search has seen" in split.verdict()
