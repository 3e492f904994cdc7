"""A forecast of `sparsify`: its trainings, for about how long, and the memory that they take.

print(describe_work(evaluator, 0, 12, 150, [40, 80, 160], [36, 6, 3, 9]))
"""

from __future__ import annotations

import timeit

from masksearch.evaluators.finetuning import FineTuning
from masksearch.study.status import clock

TEACHER = 1.4  # time of a step that learns from the dense model, too
READ = 1 / 3  # of a step's time, to score as many rows


def describe_work(
    start: FineTuning, seed: int, hand: int, gates: int, rungs: list[int], left: list[int]
) -> str:
    """The trainings to come, for about how long, and the memory that they take.

    Args:
        start: Judges masks on the model that was given.
        seed: Of the dense model.
        hand: Hand-designed masks.
        gates: Steps of gates.
        rungs: Steps of a recovery of all masks, of the better half of the hand-designed ones, and
            of the better quarter.
        left: How many of each are still to come, and how many recoveries that judge.
    """
    (name,), batch = start.downstream, start.finetune_batch
    model = start.dense(name, seed) if start.is_tuned else start.begin(name, seed)
    rows = start.tokens(name).train
    some = start.inputs(rows, [*range(min(batch, len(rows)))])
    inputs = {each: part.to(start.torch_device) for each, part in some.items()}
    step = min(timeit.repeat(lambda: model(**inputs).loss.backward(), number=1, repeat=3))
    size = sum(weight.nbytes for weight in model.parameters()) / 2**30
    searched, judged = (
        READ * step / batch * sum(map(len, start.on(split).tokens(name).dev.values()))
        for split in ("validation", "holdout")
    )
    words, total = list[str](), 3 * judged
    kept = start.dense_models.path(start.dense_recipe(name, seed), model)
    if not start.is_tuned and not kept.is_file():
        words.append(f"a dense model ({start.finetune_steps(name)} steps)")
        total += start.finetune_steps(name) * step
    masks, *halves, last = (max(0, number) for number in left)
    if gates:
        words.append(f"gates ({gates} steps)")
        total += gates * step * (start.gates_batch or batch) / batch
    disk = ""
    if start.adapt == "recover":
        trials = [*zip((masks, *halves), rungs, strict=True)]
        words += [f"{n} recoveries of {count} steps" for n, count in trials if n]
        words.append(f"{last} that judge")
        total += (sum(n for n, _ in trials) * searched) + last * judged
        trained = sum(n * count for n, count in trials) + last * rungs[-1]
        total += trained * TEACHER * step
        disk = f", {last * size:.1f} GB of disk in {start.cache}"
    else:
        words.append(f"{masks} masks as they are")
        total += masks * searched
    return (
        f"{', '.join(words)} ({hand} masks are hand-designed): about {clock(total)} to come; "
        f"{5 * size:.1f} GB of memory{disk}"
    )
