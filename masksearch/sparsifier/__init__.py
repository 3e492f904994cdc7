"""A trained encoder made sparse: fine-tuned without a mask, searched by its task on that model,
trained on under the mask or not, and judged beside hand-designed masks of the same cost.

found = sparsify("bert-base-uncased", "glue", 0.12, task="STS-B", out="sparse-bert")
print(found.answer)
model = load_pretrained(found.folder)

    OUT/        what save_pretrained writes, result.json, report.html
      run/      dense/ (the fine-tuned model), search/, as-it-is/, compare/, ..

Each step finds what the one before has left, so the same call goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from masksearch.contracts import Executor
from masksearch.evaluators.embedding import embeds_texts
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.sparsifier.faster import meet_target
from masksearch.sparsifier.files import Sparsified as Sparsified
from masksearch.sparsifier.files import check_folder, read_ended, save
from masksearch.sparsifier.request import BUDGET, SparsifyRequest
from masksearch.sparsifier.stages import judge_masks, prepare, search_masks, shortlist
from masksearch.strategies.build import GATES
from masksearch.strategies.prune import NAME
from masksearch.study.records import read_budgets
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.tasks import GlueTask


def sparsify(
    model: str | Path,
    data: str | Path,
    budget: float | None = None,
    *,
    task: str | GlueTask | Columns | None = None,
    out: str | Path,
    faster: float | None = None,
    work: float | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
    recover_steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    progress: Literal["auto"] | None = "auto",
) -> Sparsified:
    """Gives a trained encoder a sparse mask, recovers it under that mask, and saves both.

    One dense model is fine-tuned on the task, in the class that
    `AutoModelForSequenceClassification` takes (a checkpoint that has a head for the task is taken
    as it is). The search, the hand-designed masks of the same cost and the export are all about
    this model. The best mask of each kind by rows that searches read is recovered with new
    seeds, and on rows that no search has read the better mean is saved. Whether it is shown to be
    better is said apart.

    Hand-designed masks are chosen by successive halving: all recover for a quarter of the steps,
    the better half for half of them, the better quarter for all.

    Args:
        model: A checkpoint: a folder, or a name on the Hugging Face Hub; or an embedding model of
            sentence-transformers, whose masks are searched, judged and saved as they are.
        data: Folder with the task's folder (GLUE's TSV layout), or `hf:...`, as of
            `GlueEvaluator`; with `Columns` a folder of one's own with train.tsv and dev.tsv (or
            .csv). Of an embedding model texts, as of `EmbeddingEvaluator`.
        budget: Largest share of the non-padding query-key pairs that is kept, in (0, 1]. Where
            the head reads [CLS] alone, only that row of the last layer counts. None = .12, unless
            `faster` or `work` is given.
        task: GLUE's name, or a `GlueTask` of one's own, or the `Columns` of such a folder; None =
            the texts of an embedding model are a file's lines.
        out: A new folder, or that of the same call, which goes on.
        faster: In place of a budget: how many times as fast as the dense model the whole model is
            to be (> 1), in the lower quartile of timings on this machine, on development rows as
            they come in batches of 8 (`settings`: `time_batch`). Plain ways (bfloat16, sorted
            rows, shorter inputs, fewer layers) are timed and scored first, then masks under which
            tokens are left out; what is taken has the better mean, and may be plain. Nothing is
            trained under a mask.
        work: In place of a budget: the largest share of the multiplications that is left once
            tokens that nobody needs are left out, in (0, 1], where the head reads [CLS] alone. The
            saved model leaves them out (`attach(.., drop_tokens=..)`).
        strategy: As of `search`: `"dam"`, `"prune"`, or a sampler, which draws from
            `masksearch.spaces:head_roles` or, where work or time is limited, `token_schedules`.
            None = "dam", and "prune" where work or time is limited.
        strategy_options: As of `search`; None = of DAM free gates, 150 steps at a rate of 0.1.
        trials: Trials of the search, beside the hand-designed masks, which it judges as well; None
            = those that DAM and "prune" need, of a sampler 24.
        seed: Of the dense model and of the search.
        seeds: How many recoveries judge each mask, from seed 1000 on, or without recovery how
            many searches there are; at least three recoveries tell masks apart; None = 3
            recoveries, 1 search.
        recover_steps: Steps under the mask; 0 = no weight is trained: all masks are chosen,
            judged and saved as they are, with intervals over rows. None = 160, of an embedding
            model and of a target of time 0.
        settings: Further settings of the evaluator, such as `epochs`, `finetune_lr`, `length`,
            `device`.
        executor: As of `search`.
        progress: As of `search`.

    Returns:
        The answer, the mask, the folder that holds it, the comparison and the search.

    Raises:
        DataError: If model or data cannot be read or do not fit, or `out` holds something else.
        SearchError: If the dense model has learned nothing, or no mask within the budget has.
        ValueError: If the budget is below the diagonal, or no share, or `settings` has an
            argument of `sparsify` itself; if a time is asked for that nothing meets.
    """
    asked = [each for each in (budget, work, faster) if each is not None]
    if faster is not None and len(asked) > 1:
        raise ValueError(
            f"give either a budget or how much faster, got budget={budget!r}, work={work!r} and "
            f"faster={faster!r}"
        )
    if faster is None and work is None:
        (budget,) = read_budgets(BUDGET if budget is None else budget)
    strategy = strategy or (GATES if budget is not None else NAME)
    if recover_steps is None:
        recover_steps = 0 if faster is not None or embeds_texts(model, task) else 160
    request = SparsifyRequest(
        *(model, data, budget, task, Path(out).expanduser(), strategy, strategy_options),
        *(trials, seed, seeds, recover_steps, dict(settings or {}), executor, progress),
        faster=faster,
        work=work,
    )
    check_folder(request)
    if (ended := read_ended(request)) is not None:
        return ended
    try:
        full = prepare(request)
        if faster is not None:
            assert isinstance(full, GlueEvaluator)
            return meet_target(request, full)
        studies = search_masks(request, full)
        candidates = shortlist(request, full, studies)
        comparison, plain = judge_masks(request, full, candidates)
        return save(request, full, studies, candidates.rungs, comparison, plain)
    finally:
        request.note_spent()
