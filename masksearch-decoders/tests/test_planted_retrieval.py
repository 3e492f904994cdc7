"""Planted truth: the heads that the loss of all tokens asks for are not those that retrieve.

A decoder learns two things that need far keys: fillers that follow from the one twelve positions
back, which are most of the scored tokens, and answers whose values stand with their keys. Of all
choices of at most two full heads of twelve, the others with a window of 8, the one with the least
loss loses the answers; by what is added to text or to answers, whichever is more, it keeps them.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import masksearch as ms
from masksearch import masks
from masksearch_decoders.decoders import NextTokenModel, decoder
from masksearch_decoders.tasks.next_token import NextTokenRows
from masksearch_decoders.tasks.recall import Recall

BACK, STEPS = 12, 1500


@dataclass(frozen=True)
class FarFillers(Recall):
    """Planted recall whose fillers follow from the one twelve positions back."""

    pairs: int = 4
    keys: int = 8
    values: int = 8
    middle: int = 36

    def rows(self, count: int, random: torch.Generator) -> NextTokenRows:
        plain, first = super().rows(count, random), 2 * self.pairs
        filler = torch.randint(self.fillers, (count, self.middle), generator=random)
        follows = torch.rand(count, self.middle, generator=random) < self.follow
        for at in range(BACK, self.middle):
            named = self.rule[filler[:, at - BACK]]
            filler[:, at] = torch.where(follows[:, at], named, filler[:, at])
        tokens, needs = plain.tokens.clone(), plain.needs.clone()
        tokens[:, first : first + self.middle] = filler + self.keys + self.values
        needs[:, first : first + self.middle] = BACK * (torch.arange(self.middle) >= BACK)
        labels = torch.where(needs > 0, tokens, -100)
        return NextTokenRows(tokens, labels, plain.documents, needs, plain.answers)


def learned(task: Recall, seed: int) -> NextTokenModel:
    """A decoder of three layers of four heads that was trained on the task."""
    model = NextTokenModel(decoder("llama", "3x64x4", task.vocabulary, task.length, seed=seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step, batch in enumerate(itertools.islice(task.batches(seed, 64), STEPS)):
        rate = 3e-3 * min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.mark.nightly
def test_tasks_choose_the_heads_that_retrieve_and_nats_do_not():
    task = FarFillers()
    model, rows = learned(task, seed=2), task.held_out("validation", 64)
    units = ms.Units(
        ms.Shape(task.length, 3, 4, causal=True), (masks.window(8), masks.full()), "head"
    )
    scored, answers = rows.labels[:, 1:] != -100, rows.answers[:, 1:]

    def judge(full: tuple[int, ...]) -> tuple[float, float, float]:
        """Loss of all scored tokens, of the answers, and the share of right answers."""
        ms.attach(model, units.mask([int(unit in full) for unit in range(12)]))
        logits = model(rows.tokens).logits[:, :-1]
        nats = F.cross_entropy(logits.transpose(1, 2), rows.tokens[:, 1:], reduction="none")
        right = logits.argmax(-1) == rows.tokens[:, 1:]
        return tuple(float(x) for x in (nats[scored].mean(), nats[answers].mean(),
                                        right[answers].float().mean()))  # fmt: skip

    dense = judge(tuple(range(12)))
    assert dense[2] > 0.99
    choices = [c for size in range(3) for c in itertools.combinations(range(12), size)]
    values = {choice: judge(choice) for choice in choices}  # all 79
    by_nats = min(choices, key=lambda c: values[c][0])
    by_tasks = min(
        choices, key=lambda c: max(v - d for v, d in zip(values[c][:2], dense[:2], strict=True))
    )
    assert values[by_nats][2] < 0.2  # a guess among eight values is right in .125
    assert values[by_tasks][2] > 0.5
    assert values[by_nats][0] < values[by_tasks][0]
