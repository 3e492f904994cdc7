"""The contracts that others test by see what breaks them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from masksearch import masks, testing
from masksearch.contracts import Evaluate, Proposal, Report
from masksearch.executors.job import JobRun


class Forgetful:
    """Draws a reach that follows the order of the records, not the records."""

    def __init__(self):
        self.number, self.last = 0, 0

    def ask(self):
        self.number += 1
        job = Evaluate(masks.window(self.last))
        return Proposal(self.number - 1, job, params={"reach": self.last})

    def tell(self, record):
        self.last = record.number
        self.number = max(self.number, record.number + 1)


def test_a_strategy_that_forgets_is_seen():
    contract = testing.StrategyContract()
    contract.test_same_seed_same_proposals_numbered_from_zero(Forgetful)
    with pytest.raises(AssertionError, match="a resumed copy draws something else"):
        contract.test_resumed_copy_asks_what_the_original_asks(Forgetful)


class Drawing(testing.Halving):
    """Draws from torch's global generator."""

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"loss": torch.rand(()).item()})


def test_an_evaluator_that_draws_from_everywhere_or_takes_any_mask_is_seen(tmp_path):
    contract = testing.EvaluatorContract()
    with pytest.raises(AssertionError, match="draws from torch's global generator"):
        contract.test_ends_with_its_objectives_alike_twice_and_leaves_the_global_generator(
            lambda folder: Drawing(), tmp_path
        )
    with pytest.raises(AssertionError, match="raises no HeadCountError"):
        contract.test_masks_that_do_not_fit_are_refused(lambda folder: Drawing(), tmp_path)


class Deaf:
    """Goes on where a trial is told to stop."""

    def run(self, work):
        while (proposal := work.ask()) != "done":
            job = JobRun(proposal, work.evaluator, work.workdir)
            work.tell(job.run(lambda *report: work.report(*report) or True))


def test_an_executor_that_does_not_stop_is_seen(tmp_path):
    contract = testing.ExecutorContract()
    contract.test_runs_every_job_once_and_one_failure_is_its_own(Deaf, tmp_path)
    with pytest.raises(AssertionError):
        contract.test_a_job_that_is_told_to_stop_does(Deaf, tmp_path)


def test_a_leaf_that_looks_at_the_form_of_its_points_is_seen():
    @dataclass(frozen=True)
    class Ranked(masks.Mask):
        kind = "ranked"

        def allows(self, at):
            return (at.query >= at.key) | torch.tensor(at.query.dim() == 0)

    try:
        contract = testing.MaskContract()
        with pytest.raises(AssertionError):
            contract.test_keeps_in_every_form_what_it_keeps_of_single_points(Ranked)
        contract.test_is_equal_after_text_json_and_pickle(lambda: masks.bigbird(2, 1, 1))
    finally:
        del masks.Mask.kinds["ranked"]
