import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from page_text import page_of
from toy import ToyEvaluator

from masksearch import Comparison, compare, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import seeds_needed
from masksearch.contracts import Objective
from masksearch.errors import UnknownNameError
from masksearch.report.section import Section

NEAR_STAR = masks.star() | masks.shifts([2])  # a little denser than star
NOISE = (0.001, -0.002, 0.0005, 0.0015, -0.001)


def around(score: float) -> list[float]:
    return [score + noise for noise in NOISE]


def shaken(score: float) -> list[float]:
    """The same mean with noise of its own, so that paired differences vary."""
    return [score + noise for noise in reversed(NOISE)]


@pytest.fixture
def judged(compared, objectives, shape):
    """A comparison; masks that are no control nor hand-designed are said to be searched."""

    def make(runs, kinds=None, **fields):
        if kinds is None:
            kinds = {
                name: "searched"
                for name, (mask, _) in runs.items()
                if mask != masks.full() and mask not in masks.FAMILIES.values()
            }
        records = tuple(compared(runs, **fields))
        return Comparison(records, objectives, shape=shape, kinds=kinds)

    return make


def outcomes(comparison, reference="dense"):
    return {(f.mask, f.against): f.outcome for f in comparison.findings(reference)}


def test_kinds_follow_the_mask_never_the_name(judged):
    runs = {
        "random idea": (masks.window(1), [0.5, 0.6]),
        "my star": (masks.star(), [0.5, 0.4]),
        "star": (masks.window(3), [0.5, 0.5]),
        "everything": (masks.full(), [0.5, 0.7]),
        "mine": (masks.star(), [0.5, 0.6]),
    }
    comparison = judged(runs, kinds={"mine": "searched"})
    assert {name: entry.kind for name, entry in comparison.entries.items()} == {
        "random idea": "candidate",
        "my star": "hand-designed",
        "star": "candidate",
        "everything": "control",
        "mine": "searched",
    }


def test_verdict_says_of_a_candidate_that_it_is_one(judged):
    runs = {
        "mine": (NEAR_STAR, around(0.75)),
        "star": (masks.star(), shaken(0.7)),
        "worst": (masks.window(9), around(0.6)),
    }
    text = judged(runs, kinds={}).verdict()
    assert "mine (candidate): better than star" in text
    assert "No mask is said to come from a search" in text
    assert "the candidate has not beaten the hand-designed masks" in text
    mixed = judged(runs, kinds={"mine": "searched"}).verdict()
    assert "mine: better than star" in mixed
    assert "worst (candidate): worse than star" in mixed
    assert "No mask is said to come from a search" not in mixed


def test_frame_has_a_row_per_mask(judged):
    comparison = judged(
        {
            "star": (masks.star(), [0.7, 0.8, None]),
            "mine": (masks.window(1), [0.6]),
            "lost": (masks.window(2), [None, None]),
            "dense": (masks.full(), [0.9, 0.9, 0.9]),
        }
    )
    frame = comparison.frame().set_index("mask")
    assert list(frame.index) == ["dense", "lost", "star", "mine"]  # densest first
    assert frame.loc["star", ["n_seeds", "failed"]].tolist() == [2, 1]
    assert frame.loc["star", "glue"] == pytest.approx(0.75)
    # t(1, 0.975) = 12.7062 times a standard error of 0.05
    assert frame.loc["star", "glue high"] == pytest.approx(0.75 + 12.7062 * 0.05, abs=1e-4)
    assert frame.loc["mine", "n_seeds"] == 1
    assert math.isnan(frame.loc["mine", "glue low"])
    assert frame.loc["lost", ["n_seeds", "failed"]].tolist() == [0, 2]
    assert math.isnan(frame.loc["lost", "glue"])
    assert frame.loc["dense", "sparsity"] == 0
    assert frame.loc["star", "expression"] == "star()"
    assert frame.loc["star", "kind"] == "hand-designed"


def test_tasks_at_the_majority_are_marked(judged):
    values = {
        "RTE": 0.531,
        "RTE/majority": 0.527,
        "SST-2": 0.8,
        "SST-2/majority": 0.51,
        "STS-B": 0.3,
    }
    comparison = judged({"mine": (NEAR_STAR, [0.6, 0.7])}, values=values)
    row = comparison.frame().iloc[0]
    assert row["RTE at majority"]
    assert not row["SST-2 at majority"]
    assert row["STS-B"] == pytest.approx(0.3)
    assert "STS-B at majority" not in row
    assert comparison.tasks == ["RTE", "SST-2", "STS-B"]
    entry = comparison.entries["mine"]
    assert (entry.at_majority, entry.learned_nothing) == ({"RTE"}, False)
    assert "RTE says nothing about any mask: no better than a constant" in comparison.verdict()


def test_better_worse_and_not_distinguishable(judged):
    dense = (masks.full(), shaken(0.8))
    star = (masks.star(), shaken(0.7))
    better = judged({"mine": (NEAR_STAR, around(0.75)), "star": star, "dense": dense})
    assert outcomes(better) == {("mine", "star"): "better", ("mine", "dense"): "worse"}
    assert "mine: better than star 0.700, worse than dense 0.800" in better.verdict()
    worse = judged({"mine": (masks.window(1), around(0.65)), "star": star, "dense": dense})
    assert outcomes(worse)["mine", "star"] == "worse"
    same = judged({"mine": (masks.window(1), around(0.7005)), "star": star, "dense": dense})
    assert outcomes(same)["mine", "star"] == "not distinguishable"
    assert "mine: not distinguishable from star 0.700, worse than dense 0.800 (" in same.verdict()


def test_losses_are_better_when_lower(compared, shape):
    records = compared(
        {"mine": (masks.window(1), shaken(2.1)), "star": (masks.star(), around(2.5))}
    )
    kinds = {"mine": "searched"}
    goals = (Objective("glue", "min", 9.0),)
    comparison = Comparison(tuple(records), goals, shape=shape, kinds=kinds)
    assert outcomes(comparison) == {("mine", "star"): "better"}
    assert "dense was not run, so nothing is said about it" in comparison.verdict()


def test_one_seed_decides_nothing(judged):
    comparison = judged(
        {
            "mine": (masks.window(1), [0.9]),
            "star": (masks.star(), [0.1]),
            "dense": (masks.full(), [0.2]),
        }
    )
    assert set(outcomes(comparison).values()) == {"too few seeds"}
    text = comparison.verdict()
    assert "mine: too few seeds to tell from star 0.100 and dense 0.200 (" in text
    assert "on 1 common seed, which decides nothing; run 3 seeds or more" in text
    assert "One seed only, hence no interval: mine, star, dense." in text


def test_failed_runs_are_left_out_and_counted(judged):
    comparison = judged(
        {"mine": (masks.window(1), [0.9, None, 0.91]), "star": (masks.star(), [0.1, 0.11, 0.1])}
    )
    assert comparison.entries["mine"].diverged == ()
    assert comparison.findings()[0].difference.n == 2
    assert "Failed runs, left out of the means: mine (1)." in comparison.verdict()
    lost = judged({"mine": (masks.window(1), [None]), "star": (masks.star(), [0.1])})
    assert (
        "mine: no finished run (1 failed: CUDA out of memory), so nothing is known."
        in lost.verdict()
    )


def test_two_seeds_make_no_claim_and_say_how_many_would(judged):
    dense = (masks.full(), [0.6, 0.62])
    star = (masks.star(), [0.7, 0.7])
    comparison = judged(
        {"mine": (NEAR_STAR, [0.72, 0.71]), "star": star, "dense": dense}, kinds={}
    )
    found, _ = comparison.findings()
    assert (found.outcome, found.difference.n) == ("too few seeds", 2)
    line = "which decide nothing; if it is true, 7 seeds would show it (power 0.8)"
    assert line in comparison.verdict()


def test_a_diverged_run_counts_as_the_worst_score(judged, record, objectives):
    """Left out, a mask that diverges in its worst runs would be the better for it."""
    runs = {"mine": (masks.window(1), [0.9, 0.92, 0.91]), "star": (masks.star(), [0.8] * 5)}
    finished = judged(runs).records
    lost = [
        record(20 + seed, None, masks.window(1), seed=seed, name="mine", error=error)
        for seed, error in ((3, "NonFiniteLossError: loss nan at step 7"),
                            (4, "Traceback ..\nFloatingPointError: reported glue = inf"),
                            (5, "torch.OutOfMemoryError: too big"))
    ]  # fmt: skip
    comparison = Comparison((*finished, *lost), objectives, kinds={"mine": "searched"})
    entry = comparison.entries["mine"]
    assert entry.scores == {0: 0.9, 1: 0.92, 2: 0.91, 3: 0.5, 4: 0.5}  # 0.5 is glue's `worst`
    assert (entry.diverged, entry.failed) == ((3, 4), 1)
    assert comparison.findings()[0].outcome == "not distinguishable"
    assert "5 seeds, 2 of them diverged)" in comparison.verdict()
    assert "Diverged runs, each counted as 0.500: mine (2)." in comparison.verdict()
    row = comparison.frame().set_index("mask").loc["mine"]
    assert row[["n_seeds", "diverged", "failed"]].tolist() == [5, 2, 1]
    assert row["glue"] == pytest.approx(0.746)


def test_a_run_that_was_mended_is_no_longer_lost(judged, record, objectives):
    again = record(9, 0.8, masks.window(1), seed=1, name="mine")
    runs = judged({"mine": (masks.window(1), [0.9, None])}).records
    entry = Comparison((*runs, again), objectives).entries["mine"]
    assert (entry.scores, entry.failed) == ({0: 0.9, 1: 0.8}, 0)


def test_runs_of_several_lengths_are_not_compared(judged, record, objectives):
    comparison = judged({"mine": (NEAR_STAR, around(0.8)), "star": (masks.star(), shaken(0.7))})
    records = [*comparison.records, record(20, 0.5, name="star", seed=9, step=40)]
    mixed = Comparison(tuple(records), objectives)
    assert mixed.findings() == []
    assert mixed.verdict() == (
        "Nothing is decided: scores after 0 and after 40 steps cannot be compared: a comparison "
        "is of runs of one length; judge the masks again in a new folder."
    )


def test_all_families_only_where_all_are_opponents(judged):
    families = {name: (mask, shaken(0.5)) for name, mask in masks.FAMILIES.items()}
    mine = {"mine": (masks.window(0), around(0.8))}
    runs = {**mine, **families}
    nearest, every = judged(runs), judged(runs)
    assert len(nearest.findings()) == 1
    findings = every.findings(against="all")
    assert [f.against for f in findings] == list(masks.FAMILIES)
    assert findings[0].adjusted == pytest.approx(6 * findings[0].difference.p_value)
    assert "mine: better than all 6 hand-designed families (" in every.verdict(against="all")
    assert "all" not in nearest.verdict().split("(")[0]
    del runs["star"]
    assert "hand-designed families" not in judged(runs).verdict(against="all")
    runs |= {"star": (masks.star(), shaken(0.9))}
    text = judged(runs).verdict(against="all")
    assert "log_sparse 0.500 and bigbird 0.500, worse than star " in text
    assert "families" not in text.splitlines()[0]
    with pytest.raises(UnknownNameError, match="did you mean 'all'"):
        nearest.verdict(against="al")


def test_named_masks_are_set_against_one_another_once_a_pair(judged):
    runs = {
        "dam": (masks.window(1), around(0.8)),
        "tpe": (masks.window(2), shaken(0.5)),
        "star": (masks.star(), [0.4 + 2 * noise for noise in NOISE]),
        "dense": (masks.full(), [0.7 - 3 * noise for noise in NOISE]),
    }
    comparison = judged(runs)
    named = [(f.mask, f.against, f.outcome) for f in comparison.findings(against="named")]
    assert named == [
        ("dam", "tpe", "better"),
        ("dam", "star", "better"),
        ("dam", "dense", "better"),
        ("tpe", "star", "better"),
        ("tpe", "dense", "worse"),
    ]
    assert len({*named}) == 5  # all of them are corrected together
    assert (
        comparison.findings(against="named")[0].adjusted
        > comparison.findings(against="tpe")[0].adjusted
    )
    only = [(f.mask, f.against) for f in comparison.findings(against=["tpe", "star"])]
    assert only == [("dam", "tpe"), ("dam", "star"), ("tpe", "star")]
    text = comparison.verdict(against="named")
    assert "dam: better than tpe 0.500, star 0.400 and dense 0.700 (" in text
    assert "tpe: better than star 0.400, worse than dense 0.700 and dam 0.800 (" in text
    families = {name: (mask, shaken(0.3)) for name, mask in masks.FAMILIES.items()}
    all_of_them = judged(runs | families).findings(against="named")
    assert next(f.against for f in all_of_them if f.mask == "dam") == "tpe"
    assert len(all_of_them) == 5  # of six hand-designed masks the nearest
    kinds = dict.fromkeys(("dam", "tpe", "star"), "candidate")
    typed = judged(runs | families, kinds=kinds).findings(against="named")
    with_star = [{f.mask, f.against} - {"star"} for f in typed if "star" in (f.mask, f.against)]
    assert sorted(map(min, with_star)) == ["dam", "tpe"]  # named too: neither with dense nor more


def test_what_nobody_has_named_is_one_line_unless_all_is_asked_for(judged):
    runs = {
        "mine": (masks.window(1), around(0.9)),
        "other": (masks.window(0), around(0.6)),
        "star": (masks.star(), shaken(0.7)),
        "dense": (masks.full(), shaken(0.95)),
    }
    comparison = replace(judged(runs, kinds={}), against="named")
    whole, brief = (comparison.verdict(verbose=each).splitlines() for each in (True, False))
    assert [line for line in brief if "(named, " in line] != []
    assert {*brief} - {*whole} == {line for line in brief if "(--verbose says more): " in line}
    assert any(" star +0.200 [" in line and ", dense -0.050" in line for line in brief)
    assert len(brief) == len(whole) - 2  # of two masks two opponents each


def test_masks_meet_within_the_budgets_that_they_keep(judged, record):
    """A run's mask stands for one budget, another mask for each that it keeps; names say
    nothing."""
    stands = {"a": 0.2, "b": 0.2, "a within 0.2": 0.4, "d": 0.4}
    density = {name: at - 0.1 for name, at in stands.items()}
    density |= {"cheap": 0.2, "mid": 0.3, "wide within 0.2": 0.6, "wider": 0.7}
    typed = [name for name in density if name not in stands]
    expected = {
        frozenset(pair)
        for pair in itertools.combinations(density, 2)
        if any(
            all(stands[n] == at if n in stands else density[n] <= at for n in pair)
            for at in (0.2, 0.4)
        )
    }
    runs = {name: (masks.window(1), around(0.5)) for name in density}
    made = judged(runs, kinds=dict.fromkeys(typed, "candidate"))
    records = [
        replace(each, measures={"sparsity": 1 - density[each.name]}) for each in made.records
    ]
    whole = replace(made, records=records, budgets=stands, against="named")
    facts = whole.facts
    opened = Comparison.of(records, made.objectives, facts)
    assert {frozenset((f.mask, f.against)) for f in opened.findings()} == expected
    assert opened.verdict() == whole.verdict()
    lines = opened.verdict().splitlines()
    assert [line.strip() for line in lines if "beyond" in line] == [
        "30.0 % of the pairs, beyond 0.2: it is no opponent there",
        "60.0 % of the pairs, beyond 0.2 and 0.4: it is no opponent there",
        "70.0 % of the pairs, beyond 0.2 and 0.4: it is no opponent there",
    ]
    earlier = json.loads(facts["comparison"])
    del earlier["budgets"]  # as earlier versions wrote it: then no mask is beyond anything
    opened = Comparison.of(records, made.objectives, {"comparison": json.dumps(earlier)})
    assert len(opened.findings()) == len([*itertools.combinations(density, 2)])


@pytest.mark.parametrize("against", ["named", "nearest", "all"])
def test_a_family_that_was_asked_about_is_a_hand_designed_opponent(judged, against):
    runs = {"mine": (masks.window(1), around(0.7)), "star": (masks.star(), shaken(0.6))}
    comparison = judged(runs, kinds={"mine": "searched", "star": "candidate"})
    (found, *_) = comparison.findings(against=against)
    assert (found.mask, found.against) == ("mine", "star")
    assert "no hand-designed mask" not in comparison.verdict(against=against)
    beyond = replace(comparison, budgets={"mine": 0.2})  # star costs 0.29
    assert beyond.findings(against=against) == []
    assert "no hand-designed mask" not in beyond.verdict(against=against)


def test_opponents_that_are_no_masks_are_refused(judged):
    comparison = judged({"mine": (masks.window(0), around(0.8))})
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        comparison.verdict(against="minus")
    with pytest.raises(UnknownNameError, match="'other'"):
        comparison.verdict(against=["mine", "other"])
    with pytest.raises(ValueError, match="or names masks; got none"):
        comparison.verdict(against=[])


# -- rows --------------------------------------------------------------------------------------
def hits(score, rows=200, seed=0, digest="d"):
    """Scores row by row with that mean."""
    right = np.zeros(rows)
    right[: round(score * rows)] = 1
    np.random.default_rng(seed).shuffle(right)
    return RowScores({"dev": right}, {"dev": 1.0}, {"dev": digest})


@pytest.fixture
def with_rows(judged, objectives, tmp_path):
    """A comparison whose runs have kept their rows."""

    def make(runs):
        records = []
        for record in judged(runs).records:
            of_mask = sum(map(ord, record.name))  # the rows that it finds easy
            hits(record.value("glue"), seed=of_mask).save(tmp_path / "trials" / str(record.number))
            artifacts = {"rows": f"trials/{record.number}/rows.safetensors"}
            records.append(replace(record, artifacts=artifacts))
        return Comparison(tuple(records), objectives, tmp_path, kinds={"mine": "searched"})

    return make


RUNS = {
    "mine": (NEAR_STAR, [0.8, 0.81, 0.8, 0.82]),
    "star": (masks.star(), [0.7, 0.71, 0.705, 0.7]),
}


def test_intervals_cover_rows_where_they_are_known(with_rows, judged):
    comparison, without = with_rows(RUNS), judged(RUNS)
    (found,), (narrow,) = comparison.findings(), without.findings()
    assert (found.difference.n_rows, narrow.difference.n_rows) == (200, 0)
    assert found.difference.high - found.difference.low > (
        narrow.difference.high - narrow.difference.low
    )
    assert "4 common seeds and 200 rows)" in comparison.verdict()
    assert "were not kept" not in comparison.verdict()
    assert "scores of single rows were not kept" in without.verdict()
    by_rows, by_seeds = (c.frame().set_index("mask").loc["star"] for c in (comparison, without))
    assert by_rows["glue high"] > by_seeds["glue high"]
    assert by_rows["glue"] == pytest.approx(by_seeds["glue"])


def test_a_reused_run_has_the_rows_of_the_one_it_repeats(with_rows):
    comparison = with_rows(RUNS)
    repeated = [
        replace(r, number=r.number + 50, status="reused",
                artifacts={**r.artifacts, "reused_from": str(r.number)}, name="again")
        for r in comparison.records if r.name == "mine"
    ]  # fmt: skip
    more = replace(comparison, records=(*comparison.records, *repeated))
    assert set(more.entries["again"].rows) == {0, 1, 2, 3}
    assert more.entries["again"].score == more.entries["mine"].score


@pytest.mark.parametrize("damage", ["missing", "torn", "another run's"])
def test_rows_that_cannot_be_read_are_left_out_and_said(with_rows, tmp_path, damage):
    comparison = with_rows(RUNS)
    for number in range(3):
        path = tmp_path / "trials" / str(number) / "rows.safetensors"
        if damage == "missing":
            path.unlink()
        elif damage == "torn":
            path.write_bytes(path.read_bytes()[:100])
        else:
            hits(0.2).save(path.parent)
    assert set(comparison.entries["mine"].rows) == {3}
    assert "rows are missing or damaged, " in comparison.verdict()
    assert ": mine (3)." in comparison.verdict()


def test_one_tick_more_on_every_seed_is_no_evidence(with_rows):
    """152 and 149 rows of 200 rightly, 153 and 150 the other: a p of 0, once."""
    scores = [152 / 200, 149 / 200, 151 / 200]
    mine = [score + 1 / 200 for score in scores]
    comparison = with_rows({"mine": (NEAR_STAR, mine), "star": (masks.star(), scores)})
    (found,) = comparison.findings()
    assert found.outcome == "not distinguishable"
    assert found.adjusted > 0.2


def test_opponent_is_the_nearest_that_is_not_much_sparser(judged):
    names = ("strided", "longformer", "star")
    runs = {name: (masks.FAMILIES[name], around(0.7)) for name in names}
    middle = masks.window(2) | masks.stride(8)
    sparsities = {name: mask.sparsity(16) for name, (mask, _) in runs.items()}
    gaps = {name: middle.sparsity(16) - sparsity for name, sparsity in sparsities.items()}
    assert gaps["longformer"] > gaps["strided"] > -gaps["star"] > 0.01  # star is nearest
    comparison = judged({"mine": (middle, shaken(0.7)), **runs})
    assert [finding.against for finding in comparison.findings()] == ["strided"]


def test_a_denser_mask_wins_no_fair_win(judged):
    comparison = judged(
        {"mine": (masks.window(6), shaken(0.9)), "star": (masks.star(), around(0.7))}
    )
    assert outcomes(comparison) == {("mine", "star"): "better"}
    assert "it keeps more cells than that mask, so this is no fair win" in comparison.verdict()


@pytest.mark.parametrize("limit", [0.9, 0.4])
def test_within_a_budget_that_both_keep_a_denser_mask_wins(judged, limit):
    """One opinion a pair: `recommend` calls it better."""
    made = judged({"mine": (masks.window(6), shaken(0.9)), "star": (masks.star(), around(0.7))})
    comparison = replace(made, budgets={"mine": limit})
    kept = limit in comparison.entries["star"].budgets
    assert comparison.findings()[0].outcome == "better" if kept else not comparison.findings()
    assert "no fair win" not in comparison.verdict()


@pytest.mark.parametrize(
    ("values", "end"), [({"RTE": 0.9, "RTE/majority": 0.5}, 1.0), ({"speed": 0.9}, 1.2)]
)
def test_printed_intervals_of_accuracies_end_at_one(judged, values, end):
    """What a constant answer earns is known of shares alone."""
    comparison = judged({"mine": (NEAR_STAR, [0.8, 0.99, 1.0])}, values=values)
    high = comparison.frame()["glue high" if "glue high" in comparison.frame() else -1][0]
    assert high == 1.0 if end == 1.0 else high > 1
    assert f"{high:.3f}]" in comparison.verdict()
    assert comparison.entries["mine"].score.high > 1


def test_a_better_and_sparser_hand_designed_mask_is_named(judged):
    comparison = judged(
        {
            "mine": (masks.strided() | masks.shifts([3]), around(0.7)),
            "strided": (masks.strided(), shaken(0.6)),
            "star": (masks.star(), shaken(0.8)),
        }
    )
    assert "star is hand-designed" in comparison.verdict()
    assert "the search has not beaten the hand-designed masks" in comparison.verdict()


def test_what_learned_nothing_is_nobodys_nearest_and_the_best_family_is_named(judged):
    """bigbird is the nearest of the families that are not sparser, then strided; of those that
    are as sparse (fixed, log_sparse, star) log_sparse has the best score."""
    scores = dict.fromkeys(masks.FAMILIES, 0.5) | {"log_sparse": 0.7, "strided": 0.6}
    runs = {"mine": (masks.window(4), around(0.8))}
    runs |= {name: (masks.FAMILIES[name], shaken(score)) for name, score in scores.items()}
    made = judged(runs, values={"RTE": 0.7, "RTE/majority": 0.5})
    for dull, nearest in (("", "bigbird"), ("bigbird", "strided")):
        records = [
            replace(
                each,
                values={**each.values, "RTE": 0.5 if each.name == dull else 0.7},
                measures={"sparsity": 0.53} if each.name == "mine" else each.measures,
            )
            for each in made.records
        ]
        found = replace(made, records=records)
        assert [finding.against for finding in found.findings()] == [nearest]
        line = (
            "the best hand-designed mask at that sparsity is log_sparse 0.700 (2.5 points sparser)"
        )
        assert line in found.verdict()
        assert line not in found.verdict(against="log_sparse")  # it is the opponent


def test_random_control_of_equal_sparsity_is_compared(judged):
    drawn = masks.random_keys(4, seed=0)
    runs = {
        "mine": (masks.blocks(4), around(0.8)),
        "keys": (drawn, shaken(0.7)),
        "more keys": (masks.random_keys(9, seed=0), shaken(0.7)),
        "truth": (masks.block_columns(4), shaken(0.9)),
    }
    kinds = dict.fromkeys(runs, "control") | {"mine": "searched"}
    (found,) = judged(runs, kinds=kinds).findings()
    assert (found.against, found.role) == ("keys", "scrambled control of equal sparsity")
    stronger = {**runs, "other keys": (masks.random_keys(4, seed=1), shaken(0.75))}
    (found,) = judged(stronger, kinds={**kinds, "other keys": "control"}).findings()
    assert (found.against, found.role) == ("other keys", "scrambled control of equal sparsity")
    del runs["keys"]
    (found,) = judged(runs, kinds=kinds).findings()
    assert (found.against, found.role) == ("truth", "control of equal sparsity")


def test_equal_bits_are_never_better(judged):
    comparison = judged(
        {
            "mine": (masks.window(1) | masks.global_tokens(1), around(0.9)),
            "star": (masks.star(), shaken(0.7)),
        },
        kinds={"mine": "searched"},
    )
    assert outcomes(comparison) == {("mine", "star"): "not distinguishable"}
    assert "mine: the same mask as star" in comparison.verdict()


def test_holm_counts_every_declared_comparison(judged):
    star = [0.70, 0.70, 0.70, 0.70]
    close = [0.7100, 0.7005, 0.7090, 0.7015]  # p = 0.07 to 0.02: significant only when alone
    alone = judged({"mine": (masks.window(1), close), "star": (masks.star(), star)})
    raw = alone.findings()[0].difference.p_value
    many = {f"m{k}": (masks.window(1), close) for k in range(4)}
    family = judged({**many, "star": (masks.star(), star)}).findings()
    assert alone.findings()[0].adjusted == pytest.approx(raw)
    assert [finding.adjusted for finding in family] == pytest.approx([min(1, 4 * raw)] * 4)
    for finding in [*family, *alone.findings()]:
        excluded = not finding.difference.low <= 0 <= finding.difference.high
        assert excluded == (finding.outcome != "not distinguishable")


def test_nothing_to_compare(objectives):
    empty = Comparison((), objectives)
    assert empty.frame().empty
    assert "No searched mask and no candidate is in this comparison" in empty.verdict()


def test_messages(judged, record, objectives):
    comparison = judged({"mine": (masks.window(1), [0.5]), "star": (masks.star(), [0.4])})
    with pytest.raises(ValueError, match="did you mean 'star'"):
        comparison.verdict(reference="stra")
    with pytest.raises(ValueError, match=r"records \[3\] name no mask"):
        Comparison((record(3, 0.5),), objectives)
    with pytest.raises(ValueError, match="at least one objective"):
        Comparison((), ())
    with pytest.raises(ValueError, match="protocols 'p', 'q' cannot be compared"):
        Comparison(
            tuple(record(n, 0.5, name="m", protocol=p) for n, p in enumerate("pq")), objectives
        )


# -- a margin against the reference --------------------------------------------------------------
def bounded(judged, runs, margin=0.01, **fields):
    return replace(judged(runs, **fields), margin=margin)


def test_a_margin_is_tested_against_the_reference_and_nothing_else(judged):
    runs = {
        "near": (masks.window(1), [0.701, 0.699, 0.7005, 0.7, 0.6995]),
        "far": (masks.window(2), [0.601, 0.599, 0.6005, 0.6, 0.5995]),
        "above": (masks.window(3), [0.801, 0.799, 0.8005, 0.8, 0.7995]),
        "wild": (masks.window(4), [0.75, 0.62, 0.71, 0.66, 0.74]),
        "star": (masks.star(), around(0.6)),
        "dense": (masks.full(), [0.7] * 5),
    }
    comparison = bounded(judged, runs)
    against = {(f.mask, f.role == "reference"): f for f in comparison.findings()}
    assert {mask: f.outcome for (mask, reference), f in against.items() if reference} == {
        "near": "loses at most",
        "far": "loses more than",
        "above": "gains more than",
        "wild": "undecided",
    }
    assert all((f.margin == 0.01) == reference for (_, reference), f in against.items())
    assert against["above", False].outcome == "better"
    levels = {f.difference.level for (_, reference), f in against.items() if reference}
    assert levels == {1 - 0.05 / 4}  # Bonferroni
    text = comparison.verdict()
    assert "near: better than star 0.600, loses at most 0.01 to dense 0.700 (" in text
    assert "far: not distinguishable from star 0.600, loses more than 0.01 to dense 0.700" in text
    assert "above: better than star 0.600, gains more than 0.01 over dense 0.700 (" in text
    assert "undecided (margin 0.01) against dense 0.700 (" in text
    assert "Against dense the margin is 0.01 of glue: one-sided tests over common seeds" in text
    assert "for 4 masks together (Holm, 2.5%)" in text
    assert "intervals hold for 4 comparisons together (Holm, 5%)" in text


def test_no_page_has_a_margin_where_dense_is_known_no_better_than_masks_differ(judged):
    runs = {
        "mine": (masks.window(1), [0.66, 0.7, 0.62, 0.71, 0.64]),
        "star": (masks.star(), around(0.6)),
        "dense": (masks.full(), [0.5, 0.8, 0.81, 0.52, 0.79]),
    }
    comparison = bounded(judged, runs)
    assert {f.against for f in comparison.findings()} == {"star", "dense"}
    assert {finding.against for finding in comparison.findings_to_show()} == {"star"}
    text = "\n".join(page_of(Section({}, comparison.objectives, {"c": comparison}))["verdicts"])
    assert "mine: better than star 0.600 (" in text
    assert "dense scores 0.684 [0.486, 0.882], 5 seeds: its interval is wider than any" in text
    assert "undecided" not in text
    runs["far"] = (masks.window(2), around(0.2))  # this loss is shown, so all are tested
    outcomes = {f.mask: f.outcome for f in bounded(judged, runs).findings_to_show() if f.margin}
    assert outcomes == {"mine": "undecided", "far": "loses more than"}


def test_a_lost_loss_is_turned_round(judged):
    runs = {
        "mine": (masks.window(1), [2.04, 2.0401, 2.0399, 2.04]),
        "dense": (masks.full(), [2.0, 2.0, 2.0, 2.0]),
    }
    lower = replace(judged(runs), objectives=(Objective("glue", "min", 3.0),))
    for margin, outcome in ((0.05, "loses at most"), (0.02, "loses more than")):
        assert outcomes(replace(lower, margin=margin)) == {("mine", "dense"): outcome}
    gained = replace(lower, kinds={"dense": "searched", "mine": "control"}, margin=0.02)
    assert outcomes(gained, "mine") == {("dense", "mine"): "gains more than"}


def test_what_would_decide_is_said(judged):
    def line(scores):
        runs = {"mine": (masks.window(1), scores), "dense": (masks.full(), [0.7] * len(scores))}
        return bounded(judged, runs).verdict().splitlines()[1]

    seeds = seeds_needed(0.011, sd=float(np.std([0.69, 0.702, 0.711], ddof=1)))
    assert line([0.69, 0.702, 0.711]).endswith(f"{seeds} seeds would show it (power 0.8)")
    assert "which decide nothing; if it is true, " in line([0.69, 0.702])
    assert "which decides nothing; run 3 seeds or more" in line([0.69])


def test_rows_that_would_decide_are_said(judged):
    draws = np.random.default_rng(0)
    easy = draws.random(200)
    runs = {"mine": (masks.window(1), [0.0] * 3), "dense": (masks.full(), [0.0] * 3)}
    comparison = bounded(judged, runs)
    entries = {}
    for name, shift in (("mine", draws.normal(0, 0.3, 200)), ("dense", np.zeros(200))):
        rows = {
            seed: RowScores({"RTE": easy + shift + draws.normal(0, 0.01, 200)}, {"RTE": 1.0},
                            {"RTE": "a"})
            for seed in range(3)
        }  # fmt: skip
        entry = comparison.entries[name]
        entries[name] = replace(entry, scores={s: each.score for s, each in rows.items()})
        entries[name].__dict__["rows"] = rows
    comparison.__dict__["entries"] = entries
    (finding,) = comparison.findings()
    assert finding.outcome == "undecided"
    said = comparison.verdict()
    assert "undecided: more seeds leave the error of these 200 rows (0.02" in said
    assert re.search(r"\); if it is true, [\d,]+ rows would show it \(power 0.8\)", said)


@pytest.mark.parametrize(
    ("scores", "margin", "outcome", "without"),
    [
        ([0.5, 0.5001, 0.4999], 0.01, "loses at most", "undecided"),
        ([0.6, 0.601, 0.599], None, "better", "not distinguishable"),
    ],
)
def test_nothing_is_claimed_of_masks_that_have_learned_nothing(
    judged, scores, margin, outcome, without
):
    dull = {"RTE": 0.5, "RTE/majority": 0.5, "RTE/low": 0.45}
    runs = {"mine": (masks.window(1), scores), "dense": (masks.full(), [0.5, 0.5, 0.5])}
    comparison = bounded(judged, runs, margin)
    assert outcomes(comparison) == {("mine", "dense"): outcome}
    records = tuple(replace(r, values={**r.values, **dull}) for r in comparison.records)
    nothing = replace(comparison, records=records)
    assert outcomes(nothing) == {("mine", "dense"): without}
    said = "a mask that has learned nothing decides nothing"
    assert f"{without}: {said}" in nothing.verdict()
    assert said not in comparison.verdict()


@pytest.mark.slow
def test_a_margin_is_stored_and_comes_from_the_evaluator(tmp_path):
    class Point(ToyEvaluator):
        @property
        def objectives(self):
            first, *rest = super().objectives
            return (replace(first, margin=0.05), *rest)

    both = {"dense": masks.full(), "mine": masks.window(2)}
    for judge, given, stored in ((ToyEvaluator(), None, None), (Point(), None, 0.05),
                                 (Point(), 0.2, 0.2)):  # fmt: skip
        run = tmp_path / f"{type(judge).__name__}{given}"
        compare(both, judge, run=run, seeds=range(3), margin=given, progress=None)
        assert Comparison.open(run).margin == stored


@pytest.mark.parametrize(
    ("margin", "score", "said"),
    [
        (0.0, Objective("glue", "max", 0.5, 0.01), "between 0 and 0.5, the range of glue, got 0"),
        (-0.1, Objective("glue", "max", 0.5, 0.01), "got -0.1; give such as margin=0.01"),
        (0.6, Objective("glue", "max", 0.5, 0.01), "got 0.6"),
        (9.0, Objective("loss", "min", 8.5, 0.05), "between 0 and 8.5, the range of loss, got 9"),
        (math.nan, Objective("mine", "max", -math.inf), "above 0, of mine, got nan"),
    ],
)
def test_margins_are_refused(margin, score, said, tmp_path):
    judge = type("Judge", (ToyEvaluator,), {"objectives": (score,)})()
    with pytest.raises(ValueError, match=re.escape(said)):
        compare({"star": masks.star()}, judge, run=tmp_path / "run", margin=margin)
