"""The graded process: its exact accuracies and its true front, against independent loops."""

import itertools
import math
import re

import pytest
import torch

from masksearch import PlantedEvaluator, masks
from masksearch.contracts import generator
from masksearch.tasks.planted import Dependency
from masksearch.tasks.planted.graded import GradedProcess

SMALL = GradedProcess(
    length=5,
    symbols=2,
    dependencies=(
        Dependency(0, (0, 1, 2), 0.8),
        Dependency(0, (3, 4), 0.6),
        Dependency(1, (1, 3), 0.9),
    ),
    hidden=0.3,
)
VOTES = GradedProcess(  # few are hidden: the third vote pays more than the second
    length=5, symbols=3, dependencies=(Dependency(0, (1, 2, 3, 4), 0.5),), hidden=0.02, seed=3
)
PROCESSES = [GradedProcess(), SMALL, VOTES]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.digest)


def random_table(length: int, random: torch.Generator, density: float) -> masks.table:
    kept = torch.rand(length, length, generator=random) < density
    return masks.table(kept | torch.eye(length, dtype=torch.bool))


def decode(process: GradedProcess, kept: list[list[bool]], shown: list[int], at: int) -> list[int]:
    """A token's likeliest parts, by the likelihood of every symbol, in loops over positions."""
    size = process.symbols
    said = [0] * process.parts
    for dependency in process.dependencies:
        if at not in dependency.positions:
            continue
        likelihood = [1.0] * size
        for key in dependency.positions:
            if key == at or not kept[at][key] or shown[key] == process.mask_id:
                continue
            vote = shown[key] // size**dependency.part % size
            trust = 1.0 if key == 0 else dependency.reliability
            for symbol in range(size):
                likelihood[symbol] *= trust * (vote == symbol) + (1 - trust) / size
        said[dependency.part] = likelihood.index(max(likelihood))
    return said


@each
@pytest.mark.parametrize("density", [0.25, 1.0])
def test_expected_accuracy_is_that_of_a_simulated_decoder(process, density):
    random = generator(7)
    mask = random_table(process.length, random, density)
    kept = mask.dense(process.length)[0, 0].tolist()
    count = 900 if process.length > 9 else 4000
    hits = asked = 0
    evaluator = PlantedEvaluator(process, held_out_sequences=count)
    batches = evaluator.task.held_out()
    rows = [zip(b["input_ids"].tolist(), b["labels"].tolist(), strict=True) for b in batches]
    for shown, labels in itertools.chain.from_iterable(rows):
        for at, label in enumerate(labels):
            if label == -100:
                continue
            said = decode(process, kept, shown, at)
            for part in range(process.parts):
                if any(at in d.members and d.part == part for d in process.dependencies):
                    hits += said[part] == label // process.symbols**part % process.symbols
                    asked += 1
    spread = math.sqrt(0.25 / asked)
    assert hits / asked == pytest.approx(process.expected(mask), abs=3.5 * spread)


@pytest.mark.parametrize("process", [SMALL, VOTES], ids=["token", "votes"])
def test_front_is_that_of_every_mask(process):
    n = process.length
    asleep = torch.eye(n, dtype=torch.bool)
    alone = process.expected(masks.table(asleep))
    rows = []  # of each position, the best gain by number of keys, over all sets of keys
    for at in range(n):
        best = [-math.inf] * (n + 1)
        for chosen in itertools.product([False, True], repeat=n):
            kept = asleep.clone()
            kept[at] = torch.tensor(chosen)
            gain = process.expected(masks.table(kept)) - alone
            best[sum(chosen)] = max(best[sum(chosen)], gain)
        rows.append(best)
    reached = {}
    for counts in itertools.product(range(1, n + 1), repeat=n):
        gain = alone + sum(row[count] for row, count in zip(rows, counts, strict=True))
        reached[sum(counts)] = max(reached.get(sum(counts), 0), gain)
    expected = {}
    top = 0.0
    for count in sorted(reached):
        if reached[count] > top + 1e-9:
            top = expected[count] = reached[count]
    assert [round((1 - p.sparsity) * n * n) for p in process.front] == list(expected)
    assert [p.accuracy for p in process.front] == pytest.approx(list(expected.values()))


@each
def test_front_is_reached_by_its_masks_and_ends_at_the_oracle(process):
    front = process.front
    for point in front:
        assert point.mask.sparsity(process.length) == pytest.approx(point.sparsity)
        assert process.expected(point.mask) == pytest.approx(point.accuracy)
    assert process.ceiling == pytest.approx(front[-1].accuracy)
    assert process.expected(process.oracle) == pytest.approx(process.ceiling)
    assert process.oracle.sparsity(process.length) == pytest.approx(front[-1].sparsity)
    assert process.expected(masks.window(0)) == pytest.approx(process.chance)


def test_default_front_is_graded_and_every_dependency_pays():
    process = GradedProcess()
    inside = [point for point in process.front if 0.6 <= point.sparsity <= 0.97]
    assert len(inside) >= 6
    assert process.front[0].accuracy < 0.75 * process.ceiling
    kept = process.edges | torch.eye(process.length, dtype=torch.bool)
    diagonal = torch.eye(process.length, dtype=torch.bool)
    for dependency in process.dependencies:
        rows = torch.tensor(dependency.members)[:, None]
        keys = torch.tensor(dependency.positions)
        less, only = kept.clone(), diagonal.clone()
        less[rows, keys] = diagonal[rows, keys]
        only[rows, keys] = True
        assert process.expected(masks.table(less)) < process.ceiling - 0.01
        assert process.expected(masks.table(only)) > process.chance + 0.01


def test_no_mask_lies_above_the_front():
    process, random = GradedProcess(), generator(2)
    front = process.front
    for _ in range(40):
        mask = random_table(process.length, random, float(torch.rand((), generator=random)))
        at = mask.sparsity(process.length)
        best = max(point.accuracy for point in front if point.sparsity >= at - 1e-9)
        assert process.expected(mask) <= best + 1e-9
    for mask in masks.FAMILIES.values():
        at = mask.sparsity(process.length)
        best = max(point.accuracy for point in front if point.sparsity >= at - 1e-9)
        assert process.expected(mask) < best


def test_default_dependencies_exist_at_every_length():
    for length in range(12, 60):
        process = GradedProcess(length)
        assert process.asked[1:].all()
        assert process.dependencies[0].reliability > process.dependencies[-1].reliability


@each
def test_edges_match_loop(process):
    for query, key in itertools.product(range(process.length), repeat=2):
        shared = [
            d for d in process.dependencies if {query, key} <= set(d.positions) and query != key
        ]
        needed = any(query and key == (0 if d.has_token else key) for d in shared)
        assert process.edges[query, key] == needed


@each
def test_samples_agree_as_often_as_they_should(process):
    count = 20_000
    tokens = process.sample(count, generator(1))
    assert 0 <= tokens.min()
    assert tokens.max() < process.vocabulary
    for dependency in process.dependencies:
        for one, two in itertools.combinations(dependency.positions, 2):
            trust = dependency.reliability ** (2 if one else 1)
            share = trust + (1 - trust) / process.symbols
            place = process.symbols**dependency.part
            shown = tokens[:, [one, two]] // place % process.symbols
            agree = (shown[:, 0] == shown[:, 1]).double().mean().item()
            assert agree == pytest.approx(share, abs=0.015)
    share = torch.bincount(tokens[:, 1], minlength=process.vocabulary) / count
    assert (share - 1 / process.vocabulary).abs().max() < 0.015


def test_mark_counts_the_parts_that_are_right():
    process = SMALL  # parts of 2 symbols: token 3 is (1, 1); position 2 has no second part
    labels = torch.tensor([[-100, 3, 3, 3, -100]])
    right, asked = process.mark(torch.tensor([[3, 1, 1, 0, 3]]), labels)
    assert asked.tolist() == [[0, 2, 1, 2, 0]]
    assert right.tolist() == [[0, 1, 1, 0, 0]]


def test_digest_is_stable_and_changes_with_every_field():
    assert GradedProcess().digest == "1e98fb6a58eca168"
    assert GradedProcess(dependencies=GradedProcess().dependencies) == GradedProcess()
    variants = [GradedProcess(length=24), GradedProcess(symbols=2), GradedProcess(hidden=0.1),
                GradedProcess(seed=1), SMALL, VOTES, GradedProcess()]  # fmt: skip
    assert len({process.digest for process in variants}) == len(variants)


PAIR = Dependency(0, (1, 2), 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symbols": 1}, "symbols must be at least 2, got 1"),
        ({"hidden": 0.0}, "probability in (0, 1), got 0.0"),
        ({"length": 11}, "at least 12 positions, got 11; raise length or give dependencies"),
        ({"dependencies": (Dependency(0, (2, 1), 0.9),)}, "in rising order, got (2, 1)"),
        ({"dependencies": (Dependency(0, (1, 22), 0.9),)}, "0 .. 20"),
        ({"dependencies": (Dependency(0, (1,), 0.9),)}, "two or more"),
        ({"dependencies": (Dependency(0, (1, 2), 0.0),)}, "reliability=0.0"),
        ({"dependencies": (PAIR, Dependency(0, (2, 3), 0.5))}, "a part of a position is in one"),
        ({"dependencies": (PAIR, Dependency(1, (1, 2), 0.5))}, "share one symbol at most"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GradedProcess(**arguments)
