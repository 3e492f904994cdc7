"""A forecast of `sparsify`: its trainings, for about how long, and the memory that they take.

print(describe_work(evaluator, 0, (12, 24), 150, 3, [40, 80, 160]))
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from masksearch.evaluators.finetuning import FineTuning
from masksearch.study.status import clock

TEACHER = 1.4  # time of a step that learns from the dense model, too
READ = 1 / 3  # of a step's time, to score as many rows


def describe_work(
    start: FineTuning,
    seed: int,
    counts: tuple[int, int],
    gates: int,
    seeds: int,
    rungs: list[int],
    done: Sequence[int] = (0, 0, 0, 0),
) -> str:
    """The trainings to come, for about how long, and the memory that they take.

    Args:
        start: Judges masks on the model that was given.
        seed: Of the dense model.
        counts: Hand-designed masks, and masks of the search.
        gates: Steps of gates to come.
        seeds: Recoveries of each mask that judge.
        rungs: Steps of a recovery of all masks, of the better half of the hand-designed ones, and
            of the better quarter.
        done: How many masks of each of these are done already, and how many that judge.
    """
    (name,), batch = start.downstream, start.finetune_batch
    model = start.dense(name, seed) if start.is_tuned else start.begin(name, seed)
    rows = start.tokens(name).train
    some = start.inputs(rows, [*range(min(batch, len(rows)))])
    inputs = {each: part.to(start.torch_device) for each, part in some.items()}
    seconds = list[float]()
    for _ in range(3):
        begun = time.perf_counter()
        model(**inputs).loss.backward()
        seconds.append(time.perf_counter() - begun)
    step, size = min(seconds), sum(weight.nbytes for weight in model.parameters()) / 2**30
    searched, judged = (
        READ * step / batch * sum(map(len, start.on(split).tokens(name).dev.values()))
        for split in ("validation", "holdout")
    )
    words, total = list[str](), 3 * judged
    kept = start.dense_models.path(start.dense_recipe(name, seed), model)
    if not start.is_tuned and not kept.is_file():
        words.append(f"a dense model ({start.finetune_steps(name)} steps)")
        total += start.finetune_steps(name) * step
    hand, masks = counts[0], max(0, sum(counts) - done[0])
    if gates:
        words.append(f"gates ({gates} steps)")
        total += gates * step * (start.gates_batch or batch) / batch
    disk = ""
    if start.adapt == "recover":
        halves = max(0, -(-hand // 2) - done[1]), max(0, -(-hand // 4) - done[2])
        trials = [*zip((masks, *halves), rungs, strict=True)]
        last = max(0, 3 * seeds - done[3])
        words += [f"{n} recoveries of {count} steps" for n, count in trials if n]
        words.append(f"{last} that judge")
        total += (sum(n for n, _ in trials) * searched) + last * judged
        trained = sum(n * count for n, count in trials) + last * rungs[-1]
        total += trained * TEACHER * step
        disk = f", {3 * seeds * size:.1f} GB of disk in {start.cache}"
    else:
        words.append(f"{masks} masks as they are")
        total += masks * searched
    return (
        f"{', '.join(words)} ({hand} masks are hand-designed): about {clock(total)} "
        f"{'left' if any(done) else 'in all'}; "
        f"{5 * size:.1f} GB of memory{disk}"
    )
