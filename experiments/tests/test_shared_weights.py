"""Experiment 08's super-net: one training, then forward passes; a strategy trains the best."""

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from experiment_scripts import EXPERIMENTS, load_script
from hypothesis import given
from hypothesis import strategies as st

import masksearch as ms
from masksearch import masks
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Evaluator, Objective, Report
from masksearch.masks.lower import lower
from masksearch.study.records import Constraint
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.training.checkpoints import Checkpoints

weights = load_script("08_shared_weights/shared_weights.py")
strategy = load_script("08_shared_weights/shared_strategy.py")
SharedWeights, HeldOut, MaskBank = weights.SharedWeights, weights.HeldOut, weights.MaskBank
Candidate, order_of_training = strategy.Candidate, strategy.order_of_training

PROCESS = PlantedProcess(length=12, offsets=(4,), vocabulary=4, keys=1)
INNER = ms.PlantedEvaluator(
    PROCESS, steps=4, downstream_steps=2, gate_batch=8, held_out_sequences=40
)
TRIO = [masks.window(1), masks.full(), masks.per_head([masks.star(), masks.window(2)])]
SHAPE = ms.Shape(length=6, layers=2, heads=2)
NAMED = f"{EXPERIMENTS / '08_shared_weights' / 'shared_strategy.py'}:SharedStrategy"
OPTIONS = {"steps": 6, "candidates": 12, "bands": 3}


def space(trial):
    """11 windows, each with and without a global token."""
    mask = masks.window(trial.suggest_int("reach", 0, 10))
    return mask | masks.global_tokens(1) if trial.suggest_categorical("hub", [0, 1]) else mask


def moody(trial):
    """Half of its draws have empty rows."""
    mask = masks.window(trial.suggest_int("reach", 0, 5))
    if trial.suggest_categorical("hollow", [True, False]):
        return mask - masks.full()
    return mask


def of_width(trial, widest, least=0):
    return masks.window(trial.suggest_int("reach", least, widest))


windows = functools.partial(of_width, widest=5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Trained once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("nets")
    narrow = functools.partial(of_width, least=1, widest=6)
    return SharedWeights(INNER, narrow, steps=12, folder=folder, held_out_sequences=None)


# -- the evaluator -------------------------------------------------------------------------------
def test_judged_is_the_held_out_loss_of_the_stored_weights(shared):
    for mask in TRIO:
        (values,) = shared.judge([mask])
        model = INNER.build_model(0)
        model.load_state_dict(Checkpoints(shared.place, "weights").load().tensors)
        if mask != masks.full():
            ms.attach(model, mask)
        expected, _ = INNER.masked_prediction(model, INNER.task.held_out())
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.slow
def test_many_at_once_are_judged_as_one_by_one(shared):
    alone = [shared.judge([mask])[0]["loss"] for mask in TRIO]
    assert len(set(alone)) == 3
    for tokens in (12, 100, 5000):  # from passes of one sequence to one pass
        together = [values["loss"] for values in replace(shared, tokens=tokens).judge(TRIO)]
        assert together == pytest.approx(alone, rel=1e-5)
    (report,) = shared(TRIO[0], seed=0, workdir=shared.place)
    assert report == Report(0, shared.judge([TRIO[0]])[0])


def test_judging_changes_no_weight_and_leaves_no_mask(shared):
    held_out, stored = shared.loaded
    kept, state = copy.deepcopy(dict(stored)), torch.get_rng_state()
    replace(shared, adapt_steps=2).judge(TRIO[:1])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in held_out.model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    with pytest.raises(ValueError, match="nothing is attached"):
        ms.detach(held_out.model)


@pytest.mark.slow
def test_adaptation_helps_and_depends_on_the_seed_alone(shared):
    adapting = replace(shared, adapt_steps=12)
    first, again, other = (adapting.judge(TRIO, seed=seed) for seed in (3, 3, 4))
    assert first == again
    for values, others, mask in zip(first, other, TRIO, strict=True):
        assert values["shared_loss"] == pytest.approx(shared.judge([mask])[0]["loss"], rel=1e-5)
        assert values["shared_loss"] == others["shared_loss"]
        assert values["loss"] != others["loss"]
    assert sum(v["loss"] - v["shared_loss"] for v in first) < 0


CHANGES = {
    "steps": dict(steps=13),
    "masks": dict(masks_per_step=2),
    "sandwich": dict(sandwich=True),
    "seed": dict(seed=1),
    "lr": dict(lr=1e-3),
    "space": dict(space=windows),
    "evaluator": dict(evaluator=replace(INNER, lr=1e-3)),
    "batch": dict(evaluator=replace(INNER, gate_batch=16)),
    "adapt": dict(adapt_steps=1),
    "adapt lr": dict(adapt_steps=1, adapt_lr=1.0),
    "held out": dict(held_out_sequences=8),
}


@pytest.mark.nightly
def test_protocol_changes_with_all_that_matters_and_nothing_else(shared, tmp_path):
    protocols = [shared.protocol, *(replace(shared, **c).protocol for c in CHANGES.values())]
    assert len(set(protocols)) == len(protocols)
    same = replace(shared, tokens=7, folder=tmp_path, checkpoint_seconds=1.0)
    assert same.protocol == shared.protocol
    for name, change in CHANGES.items():
        trained_alike = name in ("adapt", "adapt lr", "held out")
        assert (replace(shared, **change).key == shared.key) is trained_alike, name


@pytest.mark.slow
def test_killed_training_goes_on_bit_for_bit(tmp_path):
    def weights_after(name: str, stop_at: int | None) -> dict[str, torch.Tensor]:
        """Trains 9 steps with a checkpoint after each; begins anew after `stop_at` of them."""
        how = dict(steps=9, masks_per_step=3, sandwich=True, lr=4e-3, checkpoint_seconds=0.0)
        net = SharedWeights(INNER, space, folder=tmp_path / name, **how)
        reports = net.prepare()
        for report in reports:
            if report.step == stop_at:
                reports.close()
        return dict(net.loaded[1])

    whole, resumed = weights_after("a", None), weights_after("b", 5)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@dataclass(frozen=True)
class Bare(Evaluator):
    shape = ms.Shape(12, 1, 2)
    objectives = (Objective("score", "max", 0.0),)
    protocol = "bare"

    def __call__(self, mask, *, seed, workdir) -> Iterator[Report]:
        yield Report(1, {"score": 0.0})


class Frozen(Bare):
    weights_frozen = True

    def differentiable(self, seed):
        return INNER.differentiable(seed)


def net(folder, **how):
    return SharedWeights(INNER, space, folder=folder, **how)


MISTAKES = [
    (lambda at: SharedWeights(Bare(), space), r"differentiable\(seed\), Bare has none; use"),
    (lambda at: SharedWeights(Frozen(), space), "weights of this Frozen are frozen; give it a"),
    (lambda at: SharedWeights(INNER, lambda trial: masks.table(torch.ones(3, 3) > 0)).protocol,
     "the space gave no mask that fits"),
    (lambda at: net(at, masks_per_step=9).judge(TRIO),
     "8 rows cannot carry 9 masks; lower masks_per_step"),
    (lambda at: net(at, steps=20, lr=1e30).judge(TRIO), "the loss became"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_mistakes_are_refused(mistake, message, tmp_path):
    with pytest.raises((ms.errors.MaskSearchError, ValueError), match=message):
        mistake(tmp_path)


# -- its training --------------------------------------------------------------------------------
def test_draw_is_a_function_of_seed_and_number():
    draws, other, third = (weights.SpaceDraws(windows, SHAPE, seed) for seed in (0, 0, 1))
    tables = {number: draws.table(number) for number in (5, 0, 300, 2)}
    for number in (0, 2, 5, 300):
        assert torch.equal(other.table(number), tables[number])
    assert any(not torch.equal(third.table(n), draws.table(n)) for n in range(8))
    assert len({int(draws.table(number).sum()) for number in range(60)}) == 6
    again = weights.SpaceDraws(moody, SHAPE, 0)  # draws that fail are made again
    assert all(again.table(number).any(-1).all() for number in range(40))


@pytest.mark.parametrize("padded", [False, True])
def test_each_row_attends_under_its_own_mask(padded):
    chosen = [masks.window(1), masks.full(), masks.per_head([masks.causal(), masks.window(0)])]
    tables = torch.stack([lower(mask, SHAPE) for mask in chosen])
    rows = torch.tensor([0, 0, 1, 2, 2])
    random = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, 6, 4, generator=random)
    visible = torch.ones(5, 1, 1, 6, dtype=torch.bool)
    visible[1, ..., 4:] = not padded
    bank = MaskBank(SHAPE)
    bank.put(tables, rows)
    for layer in (0, 1):
        out = bank.attend(
            layer,
            AttentionCall(query, key, value, visible=visible if padded else None, scaling=0.5),
        )
        for row in range(5):
            kept = tables[rows[row], layer] & visible[row]
            scores = (query[row] @ key[row].mT * 0.5).masked_fill(~kept, -math.inf)
            alone = torch.nan_to_num(scores.softmax(-1)) @ value[row]
            torch.testing.assert_close(out[row], alone)


# -- the strategy --------------------------------------------------------------------------------
def search(run, trials=4, **more):
    settings = {"strategy": NAMED, "strategy_options": OPTIONS, **more}
    return ms.search(space, INNER, run=run, trials=trials, **settings)


def outcome(study):
    return [(r.number, r.status, r.fingerprint, dict(r.values)) for r in study.records()]


@pytest.mark.filterwarnings("ignore:nothing learned")
@pytest.mark.nightly
def test_the_best_of_each_band_are_trained_and_a_search_goes_on(tmp_path):
    whole = search(tmp_path / "a", trials=4, constraints=["sparsity >= 0.2"])
    records = whole.records()
    assert [record.strategy_state["band"] for record in records] == ["2", "1", "0", "2"]
    assert all(r.scored and r.origin == "shared+tpe" for r in records)
    assert all(record.measures["sparsity"] >= 0.2 for record in records)
    search(tmp_path / "b", trials=1, constraints=["sparsity >= 0.2"])
    assert len(list((tmp_path / "b" / "supernet").glob("*/weights-*"))) == 1
    resumed = search(tmp_path / "b", trials=4, constraints=["sparsity >= 0.2"])
    assert outcome(resumed) == outcome(whole)


@pytest.mark.slow
def test_masks_that_cannot_be_judged_are_counted_out(tmp_path):
    limits = [Constraint("sparsity", ">=", 2.0)]
    hopeless = strategy.SharedStrategy(space, INNER, tmp_path, constraints=limits, candidates=8)
    with pytest.raises(ms.errors.SearchError, match=r"judged no mask: .*sparsity >= 2"):
        hopeless.ask()
    ranked = strategy.SharedStrategy(moody, INNER, tmp_path, candidates=24, steps=1).rank()
    assert ranked
    assert not any(candidate.params["hollow"] for candidate in ranked)


POINTS = st.lists(
    st.tuples(st.integers(1, 11), st.integers(0, 6)), min_size=1, max_size=24, unique=True
)


@given(POINTS, st.integers(1, 6), st.randoms())
def test_order_takes_bands_in_turn_and_does_not_depend_on_the_listing(points, bands, random):
    candidates = [
        Candidate(masks.window(index), {}, density / 11, float(loss))
        for index, (density, loss) in enumerate(points)
    ]
    order = order_of_training(candidates, bands)
    assert {c.mask for c in order} == {c.mask for c in candidates}
    assert len(order) == len(candidates)
    random.shuffle(candidates)
    assert order_of_training(candidates, bands) == order
    used = sorted({c.band for c in order}, reverse=True)
    assert [c.band for c in order[: len(used)]] == used  # one of each band first
    for band in used:
        mine = [c for c in order if c.band == band]
        assert [(c.front, c.loss) for c in mine] == sorted((c.front, c.loss) for c in mine)
        denser = [c.density for c in order if c.band > band]
        assert not denser or max(c.density for c in mine) < min(denser)
