"""What lets `masksearch.executors.together.Together` train an evaluator's masks as one program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from masksearch.contracts import Report
from masksearch.masks.core import Mask

if TYPE_CHECKING:
    from masksearch.evaluators.mlm import MlmEvaluator


class PretrainsTogether:
    """Base of `MlmEvaluator`: several of its runs as one program."""

    def together(self, masks: Sequence[Mask], *, seeds: Sequence[int]) -> list[Iterator[Report]]:
        """For each mask the reports that a call would give, all trained as one program.

        Args:
            masks: One for each run.
            seeds: Seed of each run.

        Returns:
            One generator of reports for each mask; closing one leaves the others as they are.

        Raises:
            SearchError: If this evaluator does more than masked-language-model pre-training of
                a BERT from scratch.
        """
        from masksearch.evaluators.together import pretrained_together

        return pretrained_together(cast("MlmEvaluator", self), masks, seeds=seeds)
