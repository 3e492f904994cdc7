"""Every ready-made space draws valid masks, is pure and short, and holds what it says it holds."""

import sys
from itertools import pairwise, product
from math import comb, prod
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

import masksearch as ms
from masksearch import Mask, masks
from masksearch.masks.baselines import whole_heads
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, fingerprint
from masksearch.user_code import load_function

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(FOLDER.glob("*.py"))
SHAPE = ms.Shape(64, 2, 4)
SHAPES = {"local_heads": ms.Shape(64, 6, 12), "head_roles": ms.Shape(64, 6, 12)}  # other models
SHAPES |= {"token_schedules": ms.Shape(64, 6, 12)}
SHAPES |= {"local_global_layers": ms.Shape(64, 12, 2), "local_global_heads": ms.Shape(64, 6, 8)}


def loaded(name, **constants):
    """A fresh module of a space, with other constants on top."""
    module = sys.modules[load_function(f"{FOLDER / name}.py:space").__module__]
    assert set(constants) <= set(vars(module))
    vars(module).update(constants)
    return module


def trials(sampler_seed, count):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=sampler_seed))
    return [study.ask() for _ in range(count)]


def same(mask, other, length=128):
    """Whether two masks keep the same cells in two layers of four heads."""
    return bool((mask.dense(length, 2, 4) == other.dense(length, 2, 4)).all())


class Scripted(FixedTrial):
    """Follows a list of choices by index, then takes the first choice of each parameter.

    Of a float the middles of two halves are its choices.
    """

    budget = None

    def __init__(self, script):
        super().__init__({})
        self.script, self.taken, self.sizes = script, [], []

    def _suggest(self, name, distribution):
        if name in self._suggested_params:
            return self._suggested_params[name]
        if isinstance(distribution, CategoricalDistribution):
            choices = distribution.choices
        elif isinstance(distribution, FloatDistribution):
            choices = [0.25, 0.75]
        else:
            assert isinstance(distribution, IntDistribution), f"{name} cannot be counted"
            choices = range(distribution.low, distribution.high + 1, distribution.step)
        place = len(self.taken)
        index = self.script[place] if place < len(self.script) else 0
        self.taken.append(index)
        self.sizes.append(len(choices))
        self._suggested_params[name] = choices[index]
        return choices[index]


def every_mask(space):
    """One mask for each parameter combination, whatever the conditions (an odometer)."""
    script = []
    while True:
        trial = Scripted(script)
        yield space(trial)
        script = trial.taken
        while script and script[-1] == trial.sizes[len(script) - 1] - 1:
            script = script[:-1]
        if not script:
            return
        script = [*script[:-1], script[-1] + 1]


def counted(space, length=128, layers=1, heads=1):
    """Parameter combinations, and masks told apart by their bits."""
    tables = [mask.dense(length, layers, heads) for mask in every_mask(space)]
    return len(tables), len({table.numpy().tobytes() for table in tables})


FLAT = {"around", "band_global", "block_layouts", "dilated_layers", "distance_bits", "local_heads"}
FLAT |= {"tile_bands", "local_global_layers", "local_global_heads", "head_windows", "head_roles"}
FLAT |= {"token_schedules"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestSpace:
    @pytest.mark.slow
    def test_draws_masks_without_empty_rows(self, path):
        space = load_function(f"{path}:space")
        drawn = set()
        for trial in trials(0, 40):
            mask = space(trial)
            assert isinstance(mask, Mask)
            assert lower(mask, SHAPES.get(path.stem, SHAPE)).any(-1).all()
            assert ms.Mask.from_json(mask.to_json()) == mask
            assert not any("/" in name for name in trial.params)
            drawn.add(mask.digest)
        assert len(drawn) > 5

    def test_replays_from_its_parameters(self, path):
        space = load_function(f"{path}:space")
        for trial in trials(1, 10):
            assert space(trial) == space(FixedTrial(trial.params))

    def test_is_flat_or_conditional_as_the_readme_says(self, path):
        space = load_function(f"{path}:space")
        drawn = trials(5, 20)
        assert all(isinstance(space(trial), Mask) for trial in drawn)
        asked = {tuple(trial.params) for trial in drawn}
        assert (len(asked) == 1) == (path.stem in FLAT)

    def test_stands_in_the_table_with_its_picture(self, path):
        readme = (FOLDER / "README.md").read_text(encoding="utf-8")
        assert f"[{path.name}]({path.name})" in readme
        assert f"../docs/images/spaces/{path.stem}.png" in readme
        picture = FOLDER.parent / "docs" / "images" / "spaces" / f"{path.stem}.png"
        assert 2_000 < picture.stat().st_size <= 60_000


class TestSizes:
    """Combinations and masks: counted where few, else counted small and by a formula."""

    def says(self, name, *numbers):
        text = " ".join(loaded(name).__doc__.split())
        for number in numbers:
            assert number in text, f"{name}.py does not say {number}"

    def test_band_global(self):
        assert counted(loaded("band_global").space) == (192, 192)
        self.says("band_global", "192 masks")

    @pytest.mark.slow
    def test_distances(self):
        for length in (26, 64):
            assert counted(loaded("distances").space, length) == (1_200, 600)
        self.says("distances", "600 masks", "1,200 parameter")

    def test_dilated_layers(self):
        def size(layers, most):
            return (most * most) ** layers * 3 * 2

        assert counted(loaded("dilated_layers", LAYERS=1, MOST=3).space, 64) == (size(1, 3),) * 2
        assert counted(loaded("dilated_layers", LAYERS=2, MOST=2).space, 64) == (size(2, 2),) * 2
        self.says("dilated_layers", f"{size(2, 8):,} masks")

    @pytest.mark.parametrize(
        ("name", "layers"), [("head_shifts", {}), ("head_layer_shifts", {"LAYERS": 1})]
    )
    def test_shifts(self, name, layers):
        def size(planes, offsets):
            combinations = (offsets * (1 + offsets)) ** planes * 4
            return combinations, (offsets + comb(offsets, 2)) ** planes * 3

        space = loaded(name, HEADS=2, OFFSETS=[-1, 1, 2], **layers).space
        assert counted(space, 16, heads=2) == size(2, 3)
        combinations, number = size(8 if layers else 4, 8)
        write = short if layers else "{:,}".format
        self.says(name, f"{write(number)} masks", f"{write(combinations)} parameter")

    def test_head_families(self):
        space = loaded("head_families", HEADS=1, LAYERS=1).space
        combinations = sum(1 for _ in every_mask(space))
        assert combinations % 3 == 0  # the hubs are asked once, after every head
        self.says("head_families", f"{short((combinations // 3) ** 8 * 3, 1)} parameter")

    @pytest.mark.parametrize("signed", [False, True])
    def test_distance_bits(self, signed):
        space = loaded("distance_bits", FARTHEST=2 if signed else 4, SIGNED=signed, RANKS=2).space
        assert counted(space, 8) == (2 * 2**4 * 4, 3 * 2**4)
        self.says("distance_bits", f"{short(3 * 2**64, 1)} masks", "3 x 2^64", "3 x 2^128")

    def test_block_layouts(self):
        space = loaded("block_layouts", GRID=3, LENGTH=6, RANKS=2).space
        assert counted(space, 6) == (2 * 2**6, 2**6)
        self.says("block_layouts", f"{short(2**56, 1)} masks", "2^56")

    def test_tile_bands(self):
        small = {"HEADS": 1, "LENGTH": 32, "QUERIES": 4, "KEYS": 2, "FARTHEST": 3}
        assert counted(loaded("tile_bands", **small).space, 32) == (4 * 3 * 2,) * 2
        two = loaded("tile_bands", **small | {"HEADS": 2, "FARTHEST": 1})
        assert counted(two.space, 32, heads=2) == ((2 * 3 * 2) ** 2,) * 2
        self.says("tile_bands", f"{(9 * 3 * 2) ** 4:,} masks")

    def test_token_schedules(self):
        small = {"LAYERS": 2, "LENGTH": 20}
        space = loaded("token_schedules", **small).space  # a share of 1 is full in either kind
        assert counted(space, 20, layers=2) == (2 * 10, 2 * 9 + 1)
        self.says("token_schedules", f"{short(2 * 30**5, 2)} masks", f"{20**5:,}")

    def test_local_heads(self):
        def size(layers, heads, reaches):
            return ((2**heads - 1) * reaches + 1) ** layers

        module = loaded("local_heads", REACHES=[0, 2])
        for layers, heads in ((1, 3), (2, 2)):
            space = module.space_of(layers, heads)
            combinations = 2 * (2 * 2**heads) ** layers  # of which share = .25 is all local
            found = counted(space, 16, layers, heads)
            assert found == (combinations, size(layers, heads, 2))
        self.says("local_heads", f"{short(size(6, 12, 6), 1)} masks", "4,095 sets")

    def test_local_global(self):
        def size(units):
            return (2**units - 1) * 4 + 1

        few = {"REACHES": [1, 2], "SINKS": [0, 4]}
        found = counted(loaded("local_global_layers", **few).space_of(3), 16, 3)
        assert found == (2 * 4 * 2**3, size(3))
        found = counted(loaded("local_global_heads", **few).space_of(2, 4, 2), 16, 2, 4)
        assert found == (2 * 4 * 2**4, size(4))
        self.says("local_global_layers", f"{(2**12 - 1) * 24 + 1:,} masks")
        self.says("local_global_heads", f"{short((2**24 - 1) * 24 + 1, 1)} masks")

    @pytest.mark.slow
    def test_head_windows(self):
        def size(layers, heads, leans, fars):
            return 5 * 3**layers * (5 * leans * fars * 2) ** heads

        module = loaded("head_windows", LEANS=3, FARTHEST=2)
        assert counted(module.space_of(1, 1), 16)[0] == size(1, 1, 2, 3)
        self.says("head_windows", f"{short(size(2, 4, 5, 17))} parameter")

    @pytest.mark.slow
    def test_head_roles(self):
        def size(layers, heads):
            return 5 * 5 * (4 * (2 * heads + 1) ** 4) ** layers

        module = loaded("head_roles")
        assert counted(module.head_roles(None, ms.Shape(8, 1, 1)), 8)[0] == size(1, 1)
        self.says("head_roles", f"{short(size(6, 12), 1)} masks")

    @pytest.mark.slow
    def test_around(self):
        numbers = [5, 3, 2, 3, 3]  # reach 4 to 8, position 0 to 2, kept, hubs, diagonal
        module = loaded("around", EDITS=1, FARTHEST=1)
        assert counted(module.around(module.CENTRE, 16), 16)[0] == prod(numbers) * 3
        self.says("around", f"{prod(numbers) * (3 * 16) ** 3:,} parameter")


def short(number, digits=2):
    """1,234 as 1.23e3."""
    mantissa, exponent = f"{number:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


LENGTHS = st.dictionaries(st.integers(4, 24), st.integers(1, 9), min_size=1, max_size=4)


@pytest.mark.slow
@given(LENGTHS, st.floats(0.0, 1.0), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_head_windows_are_within_every_budget_by_less_than_a_distance(lengths, over, seed):
    shape = ms.Shape(24, 3, 2, lengths=lengths)
    least = effective_density(masks.window(0), shape)
    (trial,) = trials(seed, 1)
    trial.budget = budget = least + over * (1 - least)
    space = loaded("head_windows").space_of(3, 2, shape)
    mask = space(trial)
    left = budget - effective_density(mask, shape)
    assert -1e-9 <= left <= least / 6 + 1e-9  # of one head in six
    assert space(FixedTrial(trial.params | {"budget": budget})) == mask


@pytest.mark.nightly
@given(LENGTHS, st.sampled_from([None, 1, 3]), st.floats(0.0, 1.0), st.integers(0, 999))
@example({8: 1}, 1, 0.9375, 346)  # where one pass over the roles left enough for another
@settings(deadline=None, max_examples=40)
def test_head_roles_spend_every_budget_until_it_pays_for_no_other_role(lengths, read, over, seed):
    shape = ms.Shape(24, 3, 4, lengths=lengths, read=read)
    module, least = loaded("head_roles"), effective_density(masks.window(0), shape)
    (trial,) = trials(seed, 1)
    trial.budget, trial.shape = least + over * (1 - least), shape
    mask = module.space(trial)
    left = trial.budget - effective_density(mask, shape)
    assert left >= -1e-9
    for layer in range(3):  # one head at a time gets a dearer role
        heads = [mask.of_layer(layer).of_head(head) for head in range(4)]
        other = next(other for other, role_of in module.ROLE_OF.items() if {*heads} <= {*role_of})
        for head, dearer in product(range(4), module.ROLES):
            wider = [*heads[:head], module.sees(dearer, other), *heads[head + 1 :]]
            layers = [mask.of_layer(at) for at in range(3)]
            layers[layer] = masks.per_head(wider)
            step = effective_density(masks.per_layer(layers), shape) + left - trial.budget
            assert step < 1e-9 or step > left - 1e-9
    again = FixedTrial(trial.params | {"budget": trial.budget})
    assert module.head_roles(None, shape)(again) == mask


@pytest.mark.nightly
@given(LENGTHS, st.sampled_from([None, 1, 3]), st.floats(0.05, 1.0), st.randoms())
@settings(deadline=None, max_examples=10)
def test_head_roles_hold_every_hand_designed_mask_of_whole_heads(lengths, read, budget, random):
    shape = ms.Shape(24, 4, 6, lengths=lengths, read=read)
    order = [random.sample(range(6), 6) for _ in range(4)]
    drawn = masks.equal_cost_baselines(budget, shape, order=order)
    hand = [fingerprint(drawn[name], shape) for name in whole_heads(drawn)]
    space = loaded("head_roles").head_roles(order, shape)
    starts = space.starts(shape, budget)
    assert [fingerprint(space(FixedTrial(each)), shape) for each in starts] == hand


@pytest.mark.slow
def test_head_roles_with_words_are_another_space_that_counts_the_data_s_tokens():
    module, ids = loaded("head_roles"), torch.tensor([[1, 7, 8, 7, 2, 9, 7, 2]])
    shape = ms.Shape(8, 2, 3, read=1, tokens=ids)
    spaces = [module.head_roles(None, shape, words=words) for words in (False, True)]
    assert spaces[0].masksearch_source != spaces[1].masksearch_source
    plain, seen = masks.same_token(), set[masks.Mask]()
    for seed in range(8):
        (trial,) = trials(seed, 1)
        trial.budget = 0.5
        mask = spaces[1](trial)
        assert 0.3 < effective_density(mask, shape) <= 0.5 + 1e-9
        seen |= {mask.of_layer(layer).of_head(head) for layer in (0, 1) for head in range(3)}
    assert any(plain | other in seen for other in module.OTHERS.values())
    starts = spaces[1].starts(shape, 0.5)
    hand = masks.equal_cost_baselines(0.5, shape)
    assert [spaces[1](FixedTrial(each)) for each in starts] == [
        masks.per_layer(
            [masks.per_head([m.of_layer(n).of_head(h) for h in range(3)]) for n in (0, 1)]
        )
        for m in (hand[name] for name in whole_heads(hand))
    ]
    other = ms.Shape(8, 2, 3, read=1, tokens=ids.flip(1) + torch.arange(8) * 10)
    assert other == shape  # yet no two of its tokens are equal: other draws
    (trial,) = trials(0, 1)
    trial.budget = 0.5
    again = module.head_roles(None, other, words=True)(trial)
    assert 0.3 < effective_density(again, other) <= 0.5 + 1e-9
    (trial,) = trials(0, 1)
    trial.budget, trial.shape = 0.5, ms.Shape(8, 2, 3)
    with pytest.raises(ValueError, match=r"Shape.tokens is None"):
        module.head_roles(words=True)(trial)


def test_head_roles_give_roles_in_the_order_that_they_were_made_with():
    module, shape = loaded("head_roles"), ms.Shape(16, 2, 3)
    params = {"budget": 1.0, "others": 4} | {f"l{at}.others": "diagonal" for at in (0, 1)}
    counts = {"full": 1, "ahead": 1, "behind": 0, "local": 0}
    mask = masks.per_head([masks.full(), ~masks.causal() | masks.window(0), masks.window(0)])
    params |= {f"l{layer}.{role}": n for layer in (0, 1) for role, n in counts.items()}
    params["budget"] = effective_density(mask, shape)
    plain = module.head_roles(None, shape)
    assert (plain(FixedTrial(params)).dense(16, 2, 3) == mask.dense(16, 2, 3)).all()
    order = [[2, 0, 1], [1, 2, 0]]
    ordered = module.head_roles(order, shape)(FixedTrial(params)).dense(16, 2, 3)
    assert all((ordered[at][order[at]] == mask.dense(16, 2, 3)[at]).all() for at in (0, 1))
    sources = {module.head_roles(each).masksearch_source for each in (None, order)}
    assert len(sources) == 2  # a resumed search notices
    with pytest.raises(ValueError, match="3 heads of each of 2 layers"):
        module.head_roles(order[:1], shape)(FixedTrial(params))


def test_token_schedules_follow_the_words_of_the_data_and_are_nested():
    module = loaded("token_schedules")
    ids = torch.tensor([[1, 7, 7, 8, 9, 7, 8, 2], [1, 7, 8, 7, 5, 2, -1, -1]])
    shape = ms.Shape(8, 4, 2, read=1, lengths={8: 1, 6: 1}, tokens=ids)
    seen = set[str]()
    for trial in trials(3, 30):
        trial.shape = shape
        mask = module.space(trial)
        assert mask == module.token_schedules(shape)(FixedTrial(trial.params))
        live = masks.live_tokens(mask | masks.columns(1), shape)
        assert (live[:, 1:] <= live[:, :-1]).all() if live.ndim == 3 else live[0].any()
        kept = [(mask.of_layer(layer) | masks.window(0)).table(ids)[:, 0, 0] for layer in range(4)]
        assert all((later <= earlier).all() for earlier, later in pairwise(kept))
        assert all(each[:, 0].all() for each in kept)
        if trial.params["separators"]:
            assert all(each[ids == 2].all() for each in kept)
        seen |= {trial.params[f"l{layer}.kind"] for layer in (1, 2, 3)}
    assert seen == {"every k-th token", "first tokens", "rarest words"}


class TestContents:
    """What a space holds: a point of it has the same bits at 128 positions."""

    @pytest.mark.parametrize(
        ("mask", "hub"), [(masks.window(9), 0), (masks.longformer(6, 1), 1), (masks.star(), 1)]
    )
    def test_head_windows(self, mask, hub):
        one = {"weight": 1, "lean": 3, "far": 0, "hub": hub}
        params = {f"h{head}.{name}": value for head in range(4) for name, value in one.items()}
        params |= {"l0.weight": 2, "l1.weight": 2, "budget": mask.density(128)}
        assert same(loaded("head_windows").space(FixedTrial(params)), mask)

    @pytest.mark.parametrize(
        ("params", "mask"),
        [
            ({"reach": 6, "hubs": 1, "diagonal": True}, masks.longformer(6, 1)),
            ({"reach": 1, "hubs": 1, "diagonal": True}, masks.star()),
            ({"reach": 32, "hubs": 0, "diagonal": True}, masks.window(32)),
        ],
    )
    def test_band_global(self, params, mask):
        assert same(loaded("band_global").space(FixedTrial(params)), mask)

    @pytest.mark.parametrize(
        ("mask", "reach", "hubs"),
        [(masks.window(32), 2, 0), (masks.star(), 1, 1), (masks.longformer(48, 1), 3, 1)],
    )
    def test_tile_bands(self, mask, reach, hubs):
        one = {"reach": reach, "columns": hubs, "rows": hubs}
        params = {f"h{head}.{name}": value for head in range(4) for name, value in one.items()}
        tiles = mask.dense(512)[0, 0].view(8, 64, 32, 16).any(3).any(1)
        cells = tiles.repeat_interleave(64, 0).repeat_interleave(16, 1)
        found = loaded("tile_bands").space(FixedTrial(params))
        assert (found.dense(512, 1, 4) == cells).all()

    def test_distances(self):
        params = {"first": 11, "two": False, "hub": True}
        mask = loaded("distances").space(FixedTrial(params))
        assert same(mask, masks.offsets([0, 11]) | masks.global_tokens(1))
        assert same(loaded("distances").space(FixedTrial(params | {"first": 1})), masks.star())

    @pytest.mark.parametrize(
        ("keys", "gap", "hubs", "mask"),
        [
            (6, 1, 1, masks.longformer(6, 1)),
            (1, 1, 1, masks.star()),
            (8, 1, 0, masks.window(8)),
            (3, 5, 0, masks.dilated(15, 5)),
        ],
    )
    def test_dilated_layers(self, keys, gap, hubs, mask):
        params = {f"l{layer}.keys": keys for layer in (0, 1)}
        params |= {f"l{layer}.gap": gap for layer in (0, 1)} | {"hubs": hubs, "diagonal": True}
        assert same(loaded("dilated_layers").space(FixedTrial(params)), mask)

    def test_dilated_layers_have_no_empty_rows_from_16_positions_on(self):
        for mask in every_mask(loaded("dilated_layers", LAYERS=1).space):
            assert mask.dense(16).any(-1).all()

    def test_shifts_hold_star_and_one_layer_holds_the_other(self):
        both = {"first": -1, "two": True, "second": 1}
        params = {f"h{head}.{name}": value for head in range(4) for name, value in both.items()}
        params |= {"hub": True, "diagonal": True}
        assert same(loaded("head_shifts").space(FixedTrial(params)), masks.star())
        of_head = loaded("head_shifts").space
        of_layer = loaded("head_layer_shifts").space
        for trial in trials(3, 20):
            mask = of_head(trial)
            params = {
                f"l{layer}.{name}": v for name, v in trial.params.items() for layer in (0, 1)
            }
            assert same(of_layer(FixedTrial(params | trial.params)), mask)

    @pytest.mark.parametrize(
        ("name", "family", "numbers", "hubs"),
        [
            ("strided", "strided", {"period": 4}, 0),
            ("fixed", "fixed", {"size": 4, "last": 1}, 0),
            ("longformer", "window", {"reach": 6}, 1),
            ("log_sparse", "log_sparse", {}, 0),
            ("bigbird", "bigbird", {"reach": 2, "count": 1, "keys": 2, "seed": 0}, 0),
            ("star", "window", {"reach": 1}, 1),
        ],
    )
    def test_head_families_hold_every_family(self, name, family, numbers, hubs):
        params = {"hubs": hubs}
        for place in (f"l{layer}.h{head}" for layer in (0, 1) for head in range(4)):
            params[f"{place}.family"] = family
            params |= {f"{place}.{family}.{key}": value for key, value in numbers.items()}
        assert same(loaded("head_families").space(FixedTrial(params)), ms.masks.FAMILIES[name])

    def bits(self, distances, hub):
        params = {f"d{distance}": 1 if distance in distances else 2 for distance in range(1, 65)}
        params |= {"level": 1, "hub": hub, "diagonal": True}
        return loaded("distance_bits").space(FixedTrial(params))

    def test_distance_bits(self):
        assert same(self.bits(range(1, 7), True), masks.longformer(6, 1))
        assert same(self.bits({1}, True), masks.star())
        assert same(self.bits({2**power for power in range(7)}, False), masks.log_sparse())
        assert same(self.bits(range(1, 65), False), masks.window(64))
        assert same(self.bits({7, 14, 21}, False), masks.dilated(21, 7))

    def test_signed_distance_bits(self):
        module = loaded("distance_bits", SIGNED=True)
        params = {f"d{step}": 1 if step in (-1, 3) else 10 for step in range(-64, 65) if step}
        params |= {"level": 9, "hub": False, "diagonal": False}
        assert same(module.space(FixedTrial(params)), masks.shifts([-1, 0, 3]))

    @pytest.mark.parametrize(
        ("kept", "mask"),
        [
            (lambda query, key: False, masks.blocks(16)),
            (lambda query, key: query // 2 == key // 2, masks.blocks(32)),
            (lambda query, key: query // 4 == key // 4, masks.blocks(64)),
            (lambda query, key: True, masks.full()),
            (lambda query, key: 0 in (query, key), masks.blocks(16) | masks.global_tokens(16)),
            (lambda query, key: key == 7, masks.blocks(16) | masks.block_columns(128, 16)),
        ],
    )
    def test_block_layouts(self, kept, mask):
        params = {f"q{q}.k{k}": 1 if kept(q, k) else 2 for q in range(8) for k in range(8)}
        assert same(loaded("block_layouts").space(FixedTrial(params | {"level": 1})), mask)


class TestLocalHeads:
    def test_one_head_is_full_and_each_layer_has_its_reach(self):
        space = loaded("local_heads").space_of(2, 4)
        params = {"share": 0.5, "l0.local": 1, "l1.local": 4}
        params |= {f"l{layer}.h{head}": 0.6 for layer in (0, 1) for head in range(4)}
        assert same(space(FixedTrial(params)), masks.per_layer([masks.star(), LOCAL_8]))
        second = masks.per_head([LOCAL_8, LOCAL_8, masks.full(), LOCAL_8])
        drawn = space(FixedTrial(params | {"l1.h2": 0.4}))
        assert same(drawn, masks.per_layer([masks.star(), second]))
        assert same(space(FixedTrial(params | {"share": 1.0})), masks.full())

    @pytest.mark.nightly
    def test_random_draws_have_every_number_of_full_heads_equally_often(self):
        module = loaded("local_heads")
        space, counts = module.space_of(2, 4), [0] * 9
        for seed in range(900):
            (trial,) = trials(seed, 1)
            counts[int(space(trial).dense(40, 2, 4).all((-2, -1)).sum())] += 1
        assert all(55 < count < 150 for count in counts)  # 100 expected, standard deviation 9

    def test_a_resumed_search_notices_another_size(self):
        space_of = loaded("local_heads").space_of
        assert len({space_of(2, 4).masksearch_source, space_of(4, 2).masksearch_source}) == 2


class TestLocalGlobal:
    def test_heads_that_share_keys_are_alike(self):
        space = loaded("local_global_heads").space_of(1, 6, 3)
        params = {"share": 0.5, "reach": 0, "sinks": 4}
        params |= {"l0.kv0": 1.0, "l0.kv1": 0.1, "l0.kv2": 1.0}
        local = masks.window(7) | masks.columns(4)
        wanted = [local, local, masks.full(), masks.full(), local, local]
        assert space(FixedTrial(params)) == masks.per_layer([masks.per_head(wanted)])

    def test_baselines_are_what_people_draw(self):
        local = masks.window(7)
        found = loaded("local_global_layers").baselines(12, local)
        assert len(found) == 16
        full = {
            name: [at for at in range(12) if mask.of_layer(at) == masks.full()]
            for name, mask in found.items()
        }
        assert full["every 4 layers"] == [3, 7, 11]
        assert full["first 3"] == [0, 1, 2]
        assert full["middle 6"] == [3, 4, 5, 6, 7, 8]
        assert full["last 2"] == [10, 11]
        assert {mask.of_layer(at) for mask in found.values() for at in range(12)} == {
            local,
            masks.full(),
        }


LOCAL_8 = masks.longformer(8, 1)
NOTHING = {"hubs": 0, "diagonal": "as it is", "at.of.1.kept": True}
NOTHING |= {f"edit{edit}": "none" for edit in range(3)}
NOTHING |= {f"edit{edit}.distance": 1 for edit in range(3)}


def unmoved(numbers):
    """A trial without edits, and with the numbers of the expression as given."""
    return FixedTrial(NOTHING | numbers)


class TestAround:
    def test_holds_its_centre_and_known_neighbours(self):
        space = loaded("around").space
        here = {"at.of.0.reach": 6, "at.of.1.positions.0": 0}
        assert same(space(unmoved(here)), masks.longformer(6, 1))
        assert same(space(unmoved(here | {"at.of.1.kept": False})), masks.window(6))
        assert same(space(unmoved(here | {"at.of.0.reach": 4})), masks.longformer(4, 1))
        assert same(space(unmoved(here | {"hubs": 2})), masks.longformer(6, 2))
        edited = here | {"edit0": "add", "edit0.distance": 9, "edit2": "remove"}
        expected = (masks.longformer(6, 1) | masks.offsets([9])) - masks.offsets([1])
        assert same(space(unmoved(edited)), expected)
        dropped = masks.without_diagonal(masks.longformer(6, 1))
        assert same(space(unmoved(here | {"diagonal": "dropped"})), dropped)

    def test_a_table_does_not_move_but_takes_edits(self):
        table = masks.table(masks.window(3).dense(32)[0, 0])
        space = loaded("around").around(table, length=32)
        assert space(unmoved({})) == table
        added = space(unmoved({"edit1": "add", "edit1.distance": 8}))
        assert same(added, masks.window(3) | masks.offsets([8]), 32)

    def test_the_diagonal_comes_back_where_rows_would_be_empty(self):
        space = loaded("around").around(masks.window(0))
        assert same(space(unmoved({"at.reach": 0, "diagonal": "dropped"})), masks.window(0))

    def test_a_resumed_search_notices_another_centre(self):
        around = loaded("around").around
        sources = {around(masks.window(reach)).masksearch_source for reach in (2, 3)}
        assert len(sources) == 2

    @settings(max_examples=30, deadline=None)
    @given(
        text=st.sampled_from(
            [
                *map(str, ms.masks.FAMILIES.values()),
                "window(0)",
                "shifts([-1]) | global_tokens(1)",
                "window(3) - window(0)",
                "blocks(2) & ~stride(3)",
                "per_head([window(1), stride(2), shifts([1]), fixed(2, 2)])",
                "per_layer([dilated(4, 2), per_head([blocks(1), window(0), full(), star()])])",
            ]
        ),
        seed=st.integers(0, 1_000),
    )
    def test_no_row_is_empty_around_any_mask(self, text, seed):
        centre = masks.parse(text)
        (trial,) = trials(seed, 1)
        space = loaded("around").around(centre, length=64)
        mask = space(trial)
        assert lower(mask, SHAPE).any(-1).all()
        assert space(FixedTrial(trial.params)) == mask


@pytest.mark.slow
def test_a_trial_is_all_that_a_space_reads():
    """No global generator decides anything or is moved."""
    for path in FILES:
        space = load_function(f"{path}:space")
        state = torch.random.get_rng_state()
        first = [space(trial) for trial in trials(4, 5)]
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(3)
        assert [space(trial) for trial in trials(4, 5)] == first
