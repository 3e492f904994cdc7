import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import masksearch as ms
from masksearch.contracts import Shape, generator
from masksearch.masks.lower import lower
from masksearch.tasks.planted import PlantedTask
from masksearch.tasks.planted.process import PlantedProcess, pair_by_offsets

PROCESSES = [
    PlantedProcess(),
    PlantedProcess(length=32, offsets=(11,), keys=4, vocabulary=9),
    PlantedProcess(length=32, offsets=(7, 3, 1), keys=1),
    PlantedProcess(length=17, offsets=(2, 9), keys=3, vocabulary=5, hidden=0.4, seed=3),
]
GROUPED = [
    PlantedProcess(groups=tuple((first, 24 - first) for first in range(1, 12))),
    PlantedProcess(length=16, groups=((1, 9), (4, 5), (7, 14)), keys=3),
    PlantedProcess(length=17, groups=pair_by_offsets(17, (5, 2), 3), keys=1, vocabulary=5),
    PlantedProcess(length=9, groups=((1, 2, 8), (3, 5, 6)), keys=3, vocabulary=4, hidden=0.3),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.digest)
every = pytest.mark.parametrize(
    "process", [*PROCESSES, *GROUPED], ids=lambda process: process.digest
)


def masked(process: PlantedProcess, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out sequences as they are shown, and their labels."""
    batches = ms.PlantedEvaluator(process, held_out_sequences=count).task.held_out()
    shown, labels = (torch.cat([batch[n] for batch in batches]) for n in ("input_ids", "labels"))
    return shown, labels


@given(st.integers(3, 40), st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True))
@settings(max_examples=60, deadline=None)
def test_pairs_are_disjoint_for_any_offsets(length, offsets):
    try:
        process = PlantedProcess(length=length, offsets=tuple(offsets))
    except ValueError:
        assume(False)
    positions = [position for pair in process.pairs for position in pair]
    assert len(set(positions)) == len(positions)
    assert {second - first for first, second in process.pairs} == set(offsets)


@each
def test_oracle_has_no_empty_row_and_is_edges_with_diagonal(process):
    dense = lower(process.oracle, Shape(process.length, 1, 1))[0, 0]
    assert dense.any(1).all()
    assert torch.equal(dense & ~torch.eye(process.length, dtype=torch.bool), process.edges)


@each
def test_permutations_hold_in_samples_and_disagree_between_keys(process):
    tokens = process.sample(500, generator(1))
    for row, key in zip(tokens.tolist(), process.key(tokens).tolist(), strict=True):
        for first, second in process.pairs:
            assert process.permutations[key, row[first]] == row[second]
            assert process.permutations[key, row[second]] == row[first]
    for column in process.permutations.T:
        assert len(set(column.tolist())) == process.keys
    for permutation in process.permutations:
        assert sorted(permutation.tolist()) == list(range(process.vocabulary))
    assert 0 <= tokens.min()
    assert tokens.max() < process.ids
    assert not (tokens == process.mask_id).any()


@each
def test_masked_hides_the_scored_tokens_and_never_position_zero(process):
    shown, labels = masked(process, 400)
    scored = labels != -100
    assert torch.equal(scored, shown == process.mask_id)
    assert not scored[:, 0].any()
    assert scored[:, 1:].float().mean().item() == pytest.approx(process.hidden, abs=0.02)
    whole = torch.where(scored, labels, shown)
    assert torch.equal(process.complete_pairs(whole.clone()), whole)


def test_masked_always_scores_a_token():
    for seed in range(20):
        process = PlantedProcess(length=3, offsets=(1,), hidden=0.01, seed=seed)
        assert (masked(process, 2)[1] != -100).any()


@pytest.mark.parametrize("number", range(3))
def test_tasks_are_functions_of_the_seed(number):
    sizes = {"batch": 8, "downstream_batch": 8, "held_out_sequences": 16}
    evaluator = ms.PlantedEvaluator(PlantedProcess(), **sizes)
    task = (evaluator.task, *evaluator.downstream_tasks)[number]
    one, two, other = (task.batches(seed) for seed in (0, 0, 1))
    for _ in range(3):
        a, b, c = next(one), next(two), next(other)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not torch.equal(a["input_ids"], c["input_ids"])
    assert all(
        torch.equal(a[name], b[name])
        for a, b in zip(task.held_out(), task.held_out(), strict=True)
        for name in a
    )
    assert sum(len(batch["input_ids"]) for batch in task.held_out()) == 16


@every
def test_edges_match_loop(process):
    group_of = {position: group for group in process.pairs for position in group}
    assert sum(map(len, process.pairs)) == len(group_of)  # no position twice
    assert 0 not in group_of
    for query, key in itertools.product(range(process.length), repeat=2):
        together = query != key and key in group_of.get(query, ())
        needed = together or (process.keys > 1 and query in group_of and key == 0)
        assert process.edges[query, key] == needed


@pytest.mark.slow
@every
def test_ceilings_match_a_decoder_by_labels(process):
    tokens, labels_of = masked(process, 4000)
    label, inverse = process.labels.tolist(), process.labels.argsort().tolist()
    hits = blind = count = 0
    keys = process.key(tokens).tolist()
    rows = zip(tokens.tolist(), labels_of.tolist(), keys, strict=True)
    for shown, labels, key in rows:
        for group in process.pairs:
            for position in group:
                if labels[position] == -100:
                    continue
                others = [shown[other] for other in group if other != position]
                seen = process.mask_id not in others
                total = sum(label[token] for token in others) if seen else 0
                hits += inverse[(key - total) % process.vocabulary] == labels[position]
                blind += inverse[-total % process.vocabulary] == labels[position]
                count += 1
    assert hits / count == pytest.approx(process.ceiling, abs=0.02)
    known = (process.ceiling - process.chance) / (1 - process.chance)
    assert blind / count == pytest.approx(
        known / process.keys + (1 - known) / process.vocabulary, abs=0.025
    )


@every
def test_tokens_are_uniform_and_keys_balanced(process):
    tokens = process.sample(4000, generator(2))
    for position in {1, process.length - 1, *process.pairs[0]}:
        share = torch.bincount(tokens[:, position], minlength=process.vocabulary) / 4000
        assert (share - 1 / process.vocabulary).abs().max() < 0.03
    share = torch.bincount(process.key(tokens), minlength=process.keys) / 4000
    assert (share - 1 / process.keys).abs().max() < 0.04


@every
def test_downstream_breaks_one_group_or_those_across_the_cut(process):
    label = process.labels.tolist()

    def broken(batch):
        keys = process.key(batch["input_ids"]).tolist()
        return torch.tensor(
            [
                [
                    sum(label[row[p]] for p in group) % process.vocabulary != key
                    for group in process.pairs
                ]
                for row, key in zip(batch["input_ids"].tolist(), keys, strict=True)
            ]
        )

    intact, follows = ms.PlantedEvaluator(process, held_out_sequences=2000).downstream_tasks
    (batch,) = intact.held_out()
    count = broken(batch).sum(1)
    assert torch.equal(count, 1 - batch["labels"])
    (batch,) = follows.held_out()
    wrong = broken(batch)
    across = torch.tensor([min(group) < process.split <= max(group) for group in process.pairs])
    assert across.any()
    assert not wrong[:, ~across].any()
    right = (~wrong.any(1) == (batch["labels"] == 1)).float().mean().item()
    assert right == pytest.approx(1 - process.vocabulary ** -int(across.sum()) / 2, abs=0.02)


def test_groups_of_three_are_equally_spaced():
    assert pair_by_offsets(20, (3,), 3) == (
        (1, 4, 7),
        (2, 5, 8),
        (3, 6, 9),
        (10, 13, 16),
        (11, 14, 17),
        (12, 15, 18),
    )


def test_digest_is_stable():
    """Stored results refer to them."""
    digests = ["7266eb41d6529bd1", "5d1936e4f1a3eb07", "3340e9df888ebb84", "1ea7ba3016608f80"]
    assert [process.digest for process in PROCESSES] == digests


def test_digest_changes_with_every_field():
    variants = [
        PlantedProcess(),
        PlantedProcess(length=25),
        PlantedProcess(vocabulary=9),
        PlantedProcess(offsets=(10,)),
        PlantedProcess(keys=3),
        PlantedProcess(hidden=0.2),
        PlantedProcess(seed=1),
        PlantedProcess(offsets=(5,)),
        PlantedProcess(groups=((1, 6),)),
    ]
    assert len({process.digest for process in variants}) == len(variants)
    assert PlantedProcess().digest == PlantedProcess().digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 2}, "length must be at least 3 positions, got 2"),
        ({"vocabulary": 1}, "vocabulary must be at least 2"),
        ({"keys": 9}, r"keys must lie in 1 .. vocabulary = 8, got 9; .* raise vocabulary"),
        ({"keys": 0}, "got 0"),
        ({"hidden": 1.0}, r"probability in \(0, 1\), got 1.0"),
        ({"offsets": ()}, "at least one"),
        ({"offsets": (3, 3)}, "distinct"),
        ({"offsets": (23,)}, r"1 .. length - 2 = 22, got 23; .* raise length"),
        ({"groups": ((1, 2), (2, 3))}, r"positions 1 .. 23 in rising order, .* no position twice"),
        ({"groups": ((1, 2), (3, 4, 5))}, "all equally many"),
        ({"groups": ((0, 2),)}, r"got \(\(0, 2\),\)"),
        ({"groups": ((2, 24),)}, "groups hold two or more"),
        ({"groups": ((2, 1),)}, "groups hold two or more"),
        ({"groups": ((1,),)}, "groups hold two or more"),
        ({"groups": ()}, "groups hold two or more"),
        ({"length": 4, "offsets": (1, 2)}, r"every offset needs a pair, \[2\] .* raise length"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlantedProcess(**arguments)


def test_a_task_without_sequences_is_refused():
    with pytest.raises(ValueError, match="batch must be at least 1 sequence, got 0"):
        PlantedTask(PlantedProcess(), batch=0)
