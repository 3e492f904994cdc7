"""What type checkers know of evaluators' settings: mypy reads this file, and nothing runs it.

A mistake that mypy does not see any more fails it too, as an ignore that is not needed.
"""

from dataclasses import replace

import masksearch as ms
from masksearch.tasks.planted.graded import GradedProcess
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.tasks.recall import Recall


def right() -> None:
    """Settings of every kind are accepted."""
    mlm = ms.MlmEvaluator("text", length=64, steps=3, size={"layers": 1, "width": 64, "heads": 2})
    ms.GlueEvaluator("text", "glue", ["RTE"], epochs=2, adapt="train", frozen="all", rows=None)
    ms.GlueEvaluator(glue="glue", weights="bert", adapt="recover", recover_lr=1e-4, read_out="own")
    ms.GlueEvaluator("text", "glue", split="holdout", pretraining="mlm+next", device="cpu")
    CausalEvaluator(Recall(), kv_heads=1, bands=[32, 64], tasks=["vt"], precision=None)
    ms.PlantedEvaluator(GradedProcess(), size="nano", lr=4e-3, downstream_steps=8)
    steps: int = mlm.steps + mlm.train_config.steps
    replace(mlm, split="all", steps=steps)


def wrong() -> None:
    """Names that no evaluator or another one has, and values of another type, are not."""
    ms.MlmEvaluator("text", stepps=3)  # type: ignore[call-arg]
    ms.MlmEvaluator("text", kv_heads=2)  # type: ignore[call-arg]
    ms.MlmEvaluator("text", 64)  # type: ignore[call-arg]
    ms.MlmEvaluator("text", steps="3")  # type: ignore[arg-type]
    ms.MlmEvaluator("text", split="last")  # type: ignore[arg-type]
    ms.GlueEvaluator("text", "glue", recover_tokens=9)  # type: ignore[call-arg]
    ms.GlueEvaluator("text", "glue", adapt=None)  # type: ignore[arg-type]
    ms.GlueEvaluator("text", "glue", frozen="none")  # type: ignore[arg-type]
    CausalEvaluator("text", whole_words=True)  # type: ignore[call-arg]
    CausalEvaluator("text", cost="seconds")  # type: ignore[arg-type]
    ms.PlantedEvaluator(corpus="text")  # type: ignore[call-arg]
    ms.MlmEvaluator("text").training  # type: ignore[attr-defined]  # noqa: B018
