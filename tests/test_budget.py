"""Budgets: what strategies and spaces are told, what is refused, and what a search keeps."""

import statistics
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from toy import ToyEvaluator, Windows

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import keeps_budget
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.errors import ResumeError, SearchError
from masksearch.gates.discretise import at_sparsity
from masksearch.masks.measure import effective_density, measures, pair_weights
from masksearch.study.records import Constraint, parse_constraint
from masksearch.study.status import read_status, status_lines
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.user_code import load_function, shape_of

FOLDER = Path(__file__).parent.parent / "search_spaces"
SHAPE = ToyEvaluator.shape
UNITS = ms.Units(SHAPE, (masks.window(0), masks.window(3), masks.full()), "head")


def search(space, run, judge=None, **settings):
    """A search without a display; test_baselines.py has those that begin at some masks."""
    settings = {"baselines": {}, "progress": None} | settings
    return ms.search(space, judge or ToyEvaluator(), run=run, **settings)


def blind(trial):
    """Looks at no budget; two of its 16 windows are within a fifth."""
    return masks.window(trial.suggest_int("reach", 0, 15))


def looking(trial):
    """The same within the budget, by the parameter that a draw without one has, too."""
    budget = ms.budget_of(trial)
    reaches = [r for r in range(16) if budget is None or cost(masks.window(r)) <= budget]
    return masks.window(min(trial.suggest_int("reach", 0, 15), reaches[-1]))


def cost(mask, shape=SHAPE):
    return effective_density(mask, shape)


def spelled(share: Fraction) -> float | None:
    """A share as it is typed, where it has an end in decimals."""
    digits = Decimal(share.numerator) / Decimal(share.denominator)
    return float(digits) if Fraction(digits) == share else None


SHARES = ["sparsity", "effective_sparsity", "density", "block_density", "sparsity_off_diagonal"]


@given(
    st.sampled_from([*SHARES, "kv_bytes"]),
    st.sampled_from(["<=", ">=", "<", ">"]),
    st.floats(-200, -0.001) | st.floats(1.001, 200),
)
def test_a_limit_that_is_no_share_is_refused(name, sign, limit):
    with pytest.raises(
        ValueError, match=rf"^{name} is a share in \[0, 1\], as 0\.9; got '{name} "
    ):
        parse_constraint(f"{name} {sign} {limit:.6f}", measured=["kv_bytes"])


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("sign", ["<=", ">=", "<", ">"])
def test_a_limit_at_an_end_is_refused_where_no_mask_is(name, sign, limit):
    text, shape = f"{name} {sign} {limit}", ms.Shape(64, 1, 1)
    ends = [measures(mask, shape, block=1) for mask in (masks.window(0), masks.full())]
    limited = Constraint(name, sign, limit)
    if any(limited.holds(end[name]) for end in ends):
        assert parse_constraint(text) == limited
    else:
        with pytest.raises(ValueError, match=f"^no mask keeps '{text}'"):
            parse_constraint(text)


@pytest.mark.parametrize("text", ["hops <= 4", "score >= 90"])
def test_a_limit_on_what_is_no_share_may_be_any(text):
    assert str(parse_constraint(text, ["score"])) == text


def test_a_limit_on_what_is_not_known_of_a_mask_refuses_it():
    record = Record(0, "running", Evaluate(masks.same_token()))
    said = "violates hops <= 4: hops is not known of this mask"
    assert parse_constraint("hops <= 4").violated_by(record) == said


@given(st.sampled_from([5, 10, 16, 20, 25, 40, 50, 100]), st.integers(1, 99), st.booleans())
def test_a_limit_that_equals_a_masks_cost_to_the_last_digit_is_kept(length, size, near):
    size = min(size, length - 1)
    mask, shape = masks.window(size) if near else masks.columns(size), ms.Shape(length, 1, 1)
    pairs = Fraction(int(mask.dense(length).sum()), length**2)
    if (share := spelled(pairs)) is None:
        return
    sparsity = spelled(1 - pairs)
    measured = mask.sparsity(length), 1 - effective_density(mask, shape)
    for name, value in zip(("sparsity", "effective_sparsity"), measured, strict=True):
        record = Record(0, "done", Evaluate(mask), measures={name: value})
        assert not parse_constraint(f"{name} >= {sparsity}").violated_by(record)
        assert parse_constraint(f"{name} > {sparsity}").violated_by(record)
        assert parse_constraint(f"{name} >= {sparsity + 1e-6}").violated_by(record)
        assert keeps_budget(record, Tied.objectives, share)
        assert not keeps_budget(record, Tied.objectives, share * (1 - 1e-5))


@dataclass(frozen=True)
class Tied(ToyEvaluator):
    """Every mask has the same score."""

    protocol = "tied"

    def __call__(self, mask, *, seed, workdir):
        yield ms.Report(1, {"loss": 0.5})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "strategy",
    ["random", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("tpe", "nsga2"))],
)
def test_a_tie_goes_to_the_sparser_mask_and_claims_nothing(strategy, tmp_path):
    limit = cost(masks.window(1))
    study = ms.search(
        looking, Tied(), run=tmp_path / "run", strategy=strategy, trials=6, budget=limit,
        progress=None,
    )  # fmt: skip
    assert {str(each.mask) for each in study.within(limit)} == {"window(0)", "window(1)"}
    assert str(study.best().mask) == "window(0)"
    given_ = {"found": str(study.run), "dense": masks.full(), "near": masks.window(1)}
    how = {"seeds": range(3), "budget": limit, "kinds": {"near": "hand-designed"}}
    found = ms.compare(given_, Tied(), run=tmp_path / "c", **how)
    assert all(entry.scores.keys() == {0, 1, 2} for entry in found.entries.values())
    assert "not distinguishable from" in found.verdict()
    assert "better" not in found.verdict().split("\n")[0]
    advice = found.recommend(limit)
    assert advice.outcome == "not told apart"
    assert 1 - found.entries[advice.name].sparsity <= limit + 1e-12


def costs(study):
    return [1 - record.measures.get("effective_sparsity", 0) for record in study.records()]


@pytest.mark.filterwarnings("ignore:.*(conditional space|drew a mask)")
@pytest.mark.parametrize("strategy", ["random", "tpe", "nsga2", "qmc"])
@pytest.mark.nightly
def test_draws_take_turns_at_the_budgets_and_stay_within(strategy, tmp_path):
    told = {"strategy": strategy, "trials": 14, "budget": [0.3, 0.5]}
    study = search(UNITS, tmp_path / "run", **told)
    records = study.records()
    turns = ([0.3, 0.5] * len(records))[: len(records)]
    assert [record.params["budget"] for record in records] == turns
    assert sum(not record.known for record in records) == 14
    assert not any(record.refused for record in records)
    assert all(c <= r.params["budget"] + 1e-9 for c, r in zip(costs(study), records, strict=True))
    assert statistics.mean(costs(study)[::2]) > 0.2  # as dense as the budget pays
    assert all(UNITS(FixedTrial(r.params)) == r.mask for r in records)
    assert all("budget" not in r.strategy_state["distributions"] for r in records)


def test_a_space_is_told_the_budget_of_its_draw():
    assert ms.budget_of(optuna.create_study().ask()) is None
    assert ms.budget_of(FixedTrial({"reach": 1})) is None
    assert ms.budget_of(FixedTrial({"budget": 0.25})) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_a_space_is_told_the_shape_of_the_evaluator(strategy, tmp_path):
    told = []

    def space(trial):
        told.append(shape_of(trial))
        return masks.window(trial.suggest_int("reach", 0, shape_of(trial).length - 1))

    search(space, tmp_path, strategy=strategy, trials=2, enqueue=[{"reach": 1}])
    assert set(told) == {SHAPE}
    assert len(told) >= 3
    assert shape_of(FixedTrial({"reach": 1})) is None


@pytest.mark.nightly
def test_draws_beyond_the_budget_are_not_trained_and_no_trials(tmp_path):
    log, seen = tmp_path / "log", []
    told = {"strategy": "random", "budget": 0.3, "listeners": [seen.append]}
    for trials in (2, 4):
        study = search(blind, tmp_path / "run", ToyEvaluator(log=log), trials=trials, **told)
    refused = [record for record in study.records() if record.refused]
    kept = [record for record in study.records() if not record.refused]
    counted = [record for record in kept if not record.known]
    assert len(counted) == len({each.fingerprint for each in kept}) <= 4
    assert len(seen) == len(kept)
    assert refused
    assert "beyond its budget 0.3: it costs 0." in refused[0].error
    assert all(1 - record.measures["effective_sparsity"] > 0.3 for record in refused)
    assert len(log.read_text().splitlines()) == len({r.fingerprint for r in counted})
    whole = search(blind, tmp_path / "b", strategy="random", budget=0.3, trials=4)
    assert [r.params for r in whole.records()] == [r.params for r in study.records()]


@pytest.mark.nightly
def test_fifty_refused_draws_end_a_search_with_the_remedy(tmp_path):
    dense = lambda trial: masks.window(trial.suggest_int("reach", 4, 15))  # noqa: E731
    told = {"strategy": "random", "budget": 0.2, "baselines": {"dense": masks.full()}}
    with pytest.warns(UserWarning, match=r"50 draws.*0% fitted.*ms.budget_of"):
        study = search(dense, tmp_path / "run", trials=3, **told)
    assert [record.status for record in study.records()] == ["done", *["stopped"] * 50]


def too_dense(trial):
    return masks.window(trial.suggest_int("reach", 6, 15))


@pytest.mark.slow
def test_five_refused_draws_of_a_budget_say_what_they_cost(tmp_path):
    told = {"strategy": "random", "trials": 3, "budget": [0.2, 0.95]}
    dear = masks.window(5)
    with pytest.warns(UserWarning, match="5 draws for the budget 0.2 cost") as said:
        study = search(too_dense, tmp_path, baselines={"d": dear}, **told)
    refused = [record for record in study.records() if record.refused]
    first = [cost(record.mask) for record in refused if record.params["budget"] == 0.2][:5]
    assert [str(each.message) for each in said] == [
        f"5 draws for the budget 0.2 cost {min(first):.3g} to {max(first):.3g} and were not "
        "evaluated; a space asks ms.budget_of(trial) or, where pairs are counted, returns "
        "ms.trim(trial, mask)"
    ]
    shown = "\n".join(status_lines(tmp_path, read_status(tmp_path)))
    count = sum(record.params["budget"] == 0.2 for record in refused)
    assert f"more than their budget, not evaluated: {count} for the budget 0.2" in shown
    assert "warning: 5 draws for the budget 0.2 cost" in shown


def heads_of(mask, shape):
    layers = [mask.of_layer(layer) for layer in range(shape.layers)]
    return [[layer.of_head(head) for head in range(shape.heads)] for layer in layers]


@pytest.mark.parametrize(
    "shape", [ms.Shape(24, 3, 4, lengths={9: 5, 24: 1}, read=1), ms.Shape(16, 3, 4, causal=True)]
)
def test_trim_keeps_what_the_budget_pays_in_each_layer_alike(shape):
    each = [
        masks.per_head([masks.full()] * full + [masks.window(reach)] * (4 - full))
        for full, reach in ((4, 0), (1, 3), (2, 7))
    ]
    whole, near = masks.per_layer(each), masks.window(2)
    drawn = heads_of(whole, shape)
    before = 0.0
    for budget in (0.15, 0.3, 0.5, 0.7, 1.0):
        trial = FixedTrial({"budget": budget})
        for levels in ([whole], [whole, near]):
            mask = ms.trim(trial, *levels, shape=shape)
            assert cost(mask, shape) <= budget * (1 + 1e-9)
            for kept, had in zip(heads_of(mask, shape), drawn, strict=True):
                left = [a == b for a, b in zip(kept, had, strict=True)]
                others = {masks.window(0), *levels[1:]} if levels else set()
                assert {a for a, same in zip(kept, left, strict=True) if not same} <= others
                assert left == sorted(left, reverse=True)  # the last heads go first
        dense = cost(ms.trim(trial, whole, shape=shape), shape)
        assert dense >= before
        before = dense
    assert ms.trim(trial, whole, shape=shape) is whole
    half = heads_of(ms.trim(FixedTrial({"budget": 0.4}), masks.full(), shape=shape), shape)
    counts = [row.count(masks.full()) for row in half]
    assert max(counts) - min(counts) <= 1  # layers that are alike give up as much


@pytest.mark.slow
def test_trim_takes_budget_and_shape_of_the_search(tmp_path):
    def space(trial):
        return ms.trim(trial, masks.window(trial.suggest_int("reach", 5, 15)), masks.window(2))

    told = {"trials": 3, "strategy": "random", "budget": [0.2, 0.4]}
    study = search(space, tmp_path, **told)
    spent = [(r.params["budget"], cost(r.mask)) for r in study.records()]
    assert all(budget - 0.25 < each <= budget * (1 + 1e-9) for budget, each in spent)
    assert not any(record.refused for record in study.records())
    assert str(space(FixedTrial({"reach": 5}))) == "window(5)"
    with pytest.raises(ValueError, match=r"knows no lengths to count pairs at: give trim shape="):
        space(FixedTrial({"reach": 5, "budget": 0.2}))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*drew a mask")
def test_samplers_learn_from_refused_draws(tmp_path):
    refused = {}
    for strategy in ("random", "tpe"):
        told = {"strategy": strategy, "trials": 8, "budget": 0.2, "seed": 1}
        study = search(blind, tmp_path / strategy, **told)
        records = study.records()
        refused[strategy] = sum(record.status == "stopped" for record in records) / len(records)
    assert refused["tpe"] < refused["random"] / 2


@dataclass(frozen=True)
class Bytes(ToyEvaluator):
    """Costs are not its pairs."""

    objectives = (ToyEvaluator.objectives[0], Objective("bytes", "min", 1.0))
    measure_names = ("bytes",)

    def measures_of(self, mask):
        return {"bytes": 0.2 + 0.8 * effective_density(mask, SHAPE)}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*drew a mask")
def test_a_budget_counts_what_the_evaluator_counts(tmp_path):
    told = {"trials": 6, "strategy": "tpe", "budget": 0.5}
    study = search(UNITS, tmp_path / "a", Bytes(), **told)
    assert all(0.4 < record.measures["bytes"] <= 0.5 + 1e-9 for record in study.records())
    study = search(blind, tmp_path / "b", Bytes(), **told)
    assert all(r.refused == (r.measures["bytes"] > 0.5) for r in study.records())
    with pytest.raises(ValueError, match=r"what the diagonal costs, 0.25 \(bytes\); got 0.2"):
        search(blind, tmp_path / "c", Bytes(), **told | {"budget": 0.2})


@pytest.mark.nightly
def test_a_strategy_of_ones_own_is_refused_beyond_the_largest(tmp_path):
    study = search(None, tmp_path / "run", strategy=Windows(8), trials=4, budget=[0.1, 0.35])
    assert {(c > 0.35) == r.refused for c, r in zip(costs(study), study.records(), strict=True)}
    kept = [record for record in study.records() if not record.refused]
    assert sum(not record.known for record in kept) == len({each.fingerprint for each in kept})


@pytest.mark.slow
def test_enqueued_draws_have_budgets_and_records_can_be_enqueued(tmp_path):
    first = search(UNITS, tmp_path / "a", trials=2, budget=[0.3, 0.5])
    given = [record.params for record in first.records()][::-1]
    again = search(UNITS, tmp_path / "b", trials=3, budget=[0.3, 0.5], enqueue=given)
    assert [r.params["budget"] for r in again.records()] == [0.5, 0.3, 0.3]
    assert [r.mask for r in again.records()[:2]] == [r.mask for r in first.records()][::-1]


@pytest.mark.slow
def test_another_budget_is_another_search(tmp_path):
    search(UNITS, tmp_path, trials=2, budget=0.3)
    for other in ([0.3, 0.4], None):
        with pytest.raises(ResumeError, match="budget"):
            search(UNITS, tmp_path, trials=2, budget=other)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"budget": 0}, r"shares in \(0, 1\].*got 0$"),
        ({"budget": [0.3, 1.2]}, r"shares in \(0, 1\].*got 1.2$"),
        ({"budget": "0.3"}, r"shares in \(0, 1\].*got '0.3'$"),
        ({"budget": 0.05, "space": blind}, r"the diagonal costs, 0.0625 \(density\); got 0.05"),
        ({"budget": 0.1, "space": ms.Units(SHAPE, (masks.window(1), masks.full()))},
         r"every unit at its lowest mask, window\(1\), the density is 0.1797, asked for 0.1"),
        ({"budget": 0.3, "strategy": "sparsebert", "space": None}, "'sparsebert'.*no budget"),
        ({"budget": 0.3, "strategy": "allocate", "space": None,
          "strategy_options": {"levels": "window(0)", "budgets": [0.3]}}, "one of the two"),
        ({"budget": 0.1, "strategy": "allocate", "space": None,
          "strategy_options": {"levels": "window(1)"}}, "0.1797; got 0.1"),
    ],
)  # fmt: skip
def test_bad_budgets_are_refused_in_a_line(told, problem, tmp_path):
    told = {"space": UNITS, "trials": 2, **told}
    with pytest.raises((SearchError, ValueError), match=problem) as caught:
        search(told.pop("space"), tmp_path / "run", **told)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_name_of_the_budget_is_taken(tmp_path):
    own = lambda trial: masks.window(trial.suggest_int("budget", 1, 3))  # noqa: E731
    search(own, tmp_path / "a", trials=1)
    with pytest.raises(SearchError, match="another name"):
        search(own, tmp_path / "b", trials=1, budget=0.9)


@pytest.mark.slow
def test_allocate_takes_the_budget_for_its_own(tmp_path):
    told = {"strategy": "allocate", "strategy_options": {"levels": "window(0)"}}
    study = search(None, tmp_path / "run", trials=8, budget=[0.8, 0.55], **told)
    both_ends, alone, best = costs(study)[:2], costs(study)[2:6], costs(study)[6:]
    assert (both_ends, alone) == ([0.0625, 1.0], [pytest.approx(0.297, abs=1e-3)] * 4)
    assert best == pytest.approx([0.531, 0.766], abs=1e-3)


def drawn_within(space, shape, budget, count=200):
    """Share of random draws that cost at most the budget."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space(Told(study.ask(), budget)) for _ in range(count)]
    return statistics.mean(cost(mask, shape) <= budget + 1e-9 for mask in drawn)


class Told:
    """Optuna's trial, with a budget."""

    def __init__(self, trial, budget):
        self.trial, self.budget = trial, budget

    def __getattr__(self, name):
        return getattr(self.trial, name)


def shipped():
    """Every space of units, and a shape that it counts at."""
    short = ms.Shape(32, 3, 4, lengths={8: 3, 20: 2, 32: 1}, read=1)
    levels = (masks.window(0), masks.window(0) | masks.columns(1), masks.full())
    for unit in ("layer", "head"):
        yield f"Units of {unit}s", ms.Units(short, levels, unit), short
    load = lambda name: load_function(f"{FOLDER / name}.py:space_of")  # noqa: E731
    yield "local_heads", load("local_heads")(6, 12), ms.Shape(128, 6, 12)
    yield "local_heads of a shape", load("local_heads")(3, 4, short), short
    cache = ms.Shape(256, 4, 4, causal=True)
    yield "local_global_layers", load("local_global_layers")(4, cache), cache
    yield "local_global_heads", load("local_global_heads")(4, 4, 2, cache), cache


@pytest.mark.nightly
@pytest.mark.parametrize(("space", "shape"), [pytest.param(s, n, id=i) for i, s, n in shipped()])
def test_spaces_of_units_draw_within_their_budget(space, shape):
    least = max(0.15, cost(masks.window(0) | masks.global_tokens(1), shape) + 0.01)
    assert drawn_within(space, shape, least) >= 0.95
    assert drawn_within(space, shape, 0.5, 40) >= 0.95
    assert drawn_within(space, shape, 1.0, 4) == 1


@pytest.mark.parametrize("density", [0.1, 0.237, 0.5])
@pytest.mark.parametrize("lengths", [None, {5: 2, 9: 1, 12: 4}])
def test_cuts_within_a_density_are_never_above_it(density, lengths):
    shape = ms.Shape(12, 2, 2, lengths=lengths)
    weights = None if lengths is None else pair_weights(shape)
    chances = torch.rand(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    for share in (density + 0.001 * step for step in range(20)):
        told = {"weights": weights, "within": True}
        cut = cost(masks.table(at_sparsity(chances, 1 - share, **told)), shape)
        assert share - 1 / 144 < cut <= share + 1e-9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.parametrize(
    ("budget", "config", "target"),
    [
        (0.3, {}, 0.3),
        ([0.4, 0.3, 0.5], {}, 0.3),
        ([0.4, 0.3], {"density": 0.45}, 0.45),
        (1.0, {}, None),  # DAM's own
        (None, {}, None),
    ],
)
def test_dam_trains_its_gates_for_the_smallest_budget(tmp_path, budget, config, target, capsys):
    process = PlantedProcess(length=12, vocabulary=8, offsets=(5,), keys=1)
    evaluator = ms.PlantedEvaluator(process, steps=4, downstream_steps=2, held_out_sequences=8)
    options = {"config": {"steps": 4, "dense_warmup": 0.25, **config}}
    told = {"strategy": "dam", "strategy_options": options, "budget": budget, "trials": 1}
    study = search(None, tmp_path / "run", evaluator, **told, progress="auto")
    asked = study.records()[0].job.config.get("density")
    assert asked == (target or pytest.approx(2 / 12))
    assert f"#0 one-shot training, target density {asked:.4g}" in capsys.readouterr().err
    again = search(None, tmp_path / "run", evaluator, **told)  # the same search
    assert len(again.records()) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_dam_cuts_its_masks_within_the_budget(tmp_path):
    process = PlantedProcess(length=12, vocabulary=8, offsets=(5,), keys=1)
    evaluator = ms.PlantedEvaluator(process, steps=4, downstream_steps=2, held_out_sequences=8)
    run, told = tmp_path / "run", {"strategy": "dam", "trials": 3}
    config = {"steps": 6, "dense_warmup": 0.25}
    options = {"config": config}
    study = search(None, run, evaluator, strategy_options=options, budget=[0.337, 0.2], **told)
    assert [r.params["density"] for r in study.records()[1:]] == [0.337, 0.2]
    assert all(c <= b for c, b in zip(costs(study)[1:], [0.337, 0.2], strict=True))
    options = {"config": config, "densities": [0.2]}
    with pytest.raises(SearchError, match=r"densities of strategy 'dam'.*one of the two"):
        search(None, run, evaluator, strategy_options=options, budget=0.3, **told)


def searched(tmp_path, name="tpe", **told):
    return search(UNITS, tmp_path / name, strategy=name, trials=6, **told)


@pytest.mark.slow
def test_within_ranks_what_keeps_a_budget(tmp_path):
    study = searched(tmp_path, "random", seed=3)
    inside = study.within(0.5)
    assert {r.number for r in inside} == {
        r.number for r in study.records() if cost(r.mask) <= 0.5 + 1e-9
    }
    assert [r.values["loss"] for r in inside] == sorted(r.values["loss"] for r in inside)
    assert study.within(1)[0] == study.best()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was found")
def test_runs_stand_for_their_best_mask_within_each_budget(tmp_path):
    study = searched(tmp_path, budget=0.5)
    told = {"seeds": range(3), "run": tmp_path / "compared", "budget": [0.5, 0.07]}
    masks_ = {"tpe": str(study.run), "dense": masks.full(), "near": masks.window(0)}
    for _ in range(2):  # nothing is added by a second call
        found = ms.compare(masks_, ToyEvaluator(), **told)
        assert len(found.records) == 10
    kinds = {"tpe within 0.5": "searched", "tpe within 0.07": "searched"}
    assert {n: e.kind for n, e in found.entries.items()} == kinds | {
        "dense": "control",
        "near": "candidate",
    }
    assert found.entries["tpe within 0.5"].fingerprint == study.within(0.5)[0].fingerprint
    lost = found.entries["tpe within 0.07"]
    assert (lost.failed, lost.scores) == (1, {})
    assert "tpe within 0.07: no finished run (1 failed: no mask within 0.07" in found.verdict()
    made = [(f.against, f.adjusted) for f in found.findings() if f.mask == "tpe within 0.07"]
    assert made == [("near", 1.0), ("dense", 1.0)]  # what costs 0.0625 is within both
    again = ms.Comparison.open(tmp_path / "compared")
    assert again.verdict() == found.verdict()
    named = ms.compare({"a": f"{study.run}#0"}, ToyEvaluator(), **told | {"run": tmp_path / "b"})
    assert list(named.entries) == ["a"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was found")
def test_a_front_keeps_what_is_within(tmp_path):
    study = searched(tmp_path, "random")
    told = {"seeds": [7], "front_of": study}
    found = ms.compare({}, ToyEvaluator(), run=tmp_path / "c", budget=0.5, **told)
    front = {n: e for n, e in found.entries.items() if n.startswith("front #")}
    assert front
    assert all(1 - entry.sparsity <= 0.5 for entry in front.values())
    with pytest.raises(ms.errors.MaskSearchError, match="no front to judge"):
        ms.compare({}, ToyEvaluator(), run=tmp_path / "d", budget=0.01, **told)
