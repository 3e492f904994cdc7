"""The demonstration: four strategies look for masks whose true front is known.

Everything runs on planted data: DAM without a space, TPE, NSGA-II and random search over one
space, each three times; then the best mask of each against dense attention, the six hand-designed
families and the mask that loses nothing, on seeds and rows that no search has used.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from optuna.trial import BaseTrial
from torch import Tensor

from masksearch import masks
from masksearch.analysis.pareto import hypervolume
from masksearch.attention.attach import detach
from masksearch.cli.resuming import resumable
from masksearch.contracts import Objective, Record, generator
from masksearch.driver import Study, compare, search
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.mlm import MlmEvaluator
from masksearch.evaluators.planted import PlantedEvaluator
from masksearch.executors.local import Local
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.models.checkpoints import quiet
from masksearch.models.pretrained import hugging_face_model
from masksearch.models.saving import save_tokenizer
from masksearch.neighbours import load_part
from masksearch.report.collect import NOTES, report_on
from masksearch.strategies.build import spec_of
from masksearch.tasks.planted.graded import GradedProcess
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.training.loop import one_thread

STRATEGIES = ("dam", "tpe", "nsga2", "random")
TRIALS = 10  # masks of each search by a strategy that draws them from the space
SEARCH_SEEDS = (100, 101, 102)  # of each strategy, so that no picture is luck
SEEDS = (1000, 1001, 1002)  # of the comparison: others, so that no winner is flattered
SPARSITY = 0.7  # least one of the mask that a strategy sends into the comparison
USES = {  # what each strategy is for, as the last lines say it
    "dam": "one training learns masks of several sparsities, without a space",
    "tpe": "a model of the scores proposes the next mask; it pays with many trials",
    "nsga2": "crosses the best masks so far; it pays from hundreds of trials on",
    "random": "draws masks without looking at scores: the baseline of every search",
}
SENTENCES = PlantedProcess(length=18, vocabulary=32, offsets=(9,), keys=1)  # of --data
TEXT, TASKS = 31, 32  # streams of random numbers
LINES = {"train": 4_000, "valid": 800}  # of text; half of 40 articles judge
ARTICLE = 20  # lines below a heading: plans are judged by article
ROWS = {"train": 2_000, "dev": 400}  # of each task
HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
}
DAM = {
    "gates": {"structure": "free", "heads": 1},  # like the space, one mask for all heads
    "config": {"steps": 600, "dense_warmup": 0.5, "density": 0.15, "lr": 4e-3},
    "densities": (0.05, 0.08, 0.1, 0.15, 0.2),
}


def space(trial: BaseTrial) -> Mask:
    """A window, every n-th distance, and perhaps the first position.

    It holds the mask that loses nothing: window(2), stride(5) and the first position.
    """
    near = masks.window(trial.suggest_int("reach", 0, 3))
    mask = near | masks.stride(trial.suggest_int("period", 3, 10))
    if trial.suggest_categorical("first position", [False, True]):
        mask = mask | masks.columns(1)
    return mask


def show_demo(run: Path, slots: int) -> None:
    """Runs (or resumes) the demonstration, and prints what it shows and where its page is."""
    with resumable(run, "demo", {"run": run, "slots": slots}):
        page, lines = run_demo(run, slots=slots)
    for line in lines:
        typer.echo(line)
    typer.echo(f"report: {page.resolve()}")


def run_demo(
    run: Path,
    *,
    slots: int = 2,
    evaluator: PlantedEvaluator | None = None,
    trials: int = TRIALS,
    seeds: tuple[int, ...] = SEEDS,
    dam: Mapping[str, Any] = DAM,
) -> tuple[Path, list[str]]:
    """Runs (or resumes) the demonstration.

    Args:
        run: Folder; each search, and the comparison, is a study of its own below it.
        slots: Worker processes.
        evaluator: On a `GradedProcess`; None = the default one.
        trials: Masks of each search by a strategy that draws them from the space.
        seeds: Of the comparison.
        dam: Options of strategy dam.

    Returns:
        The page, and lines that say what the searches found.
    """
    evaluator = evaluator or PlantedEvaluator.graded(gate_batch=32)
    process: Any = evaluator.process
    executor = Local(slots=slots, threads=1)
    draws = {"space": space, "trials": trials, "strategy_options": {}}
    trains = {"space": None, "trials": 1 + len(dam["densities"]), "strategy_options": dam}
    studies = {
        name: [
            search(
                evaluator=evaluator,
                run=run / f"{name}-{seed}",
                strategy=name,
                seed=seed,
                executor=executor,
                **(trains if spec_of(name).space == "none" else draws),
            )
            for seed in SEARCH_SEEDS
        ]
        for name in STRATEGIES
    }
    chosen, missing = choose(studies, evaluator)
    compare(
        {"dense": masks.full(), **masks.FAMILIES, "oracle": process.oracle, **chosen},
        evaluator,
        run=run / "compare",
        seeds=seeds,
        kinds={"oracle": "control"},
        executor=executor,
    )
    lines = [*_describe_reached(process, studies), *missing]
    notes = {
        "title": "Who comes near the true front?",
        "about": _introduce(evaluator, process, len(seeds)),
        "verdicts": lines,
        "truth": [[point.sparsity, point.accuracy] for point in process.front],
        "facts": {"worker processes": str(slots)},
    }
    (run / NOTES).write_text(json.dumps(notes, indent=1), encoding="utf-8")
    command = f"masksearch demo --run {shlex.quote(str(run))}"
    return report_on(run, run / "report.html", command=command), lines


def _introduce(evaluator: PlantedEvaluator, process: GradedProcess, seeds: int) -> list[str]:
    """The question, who asks it, and what the figures mean, for someone who knows none of it."""
    shape = evaluator.shape
    return [
        f"The task: {process.length} tokens. Some share a symbol with tokens at fixed "
        f"distances. A model must name hidden symbols, so it needs to attend at these distances: "
        f"{int(process.edges.sum())} of {process.length**2} query-key pairs. The data are "
        "planted, so the best accuracy that any mask allows is known exactly: "
        f"{process.chance:.3f} by chance, {process.ceiling:.3f} at most.",
        f"The model: a BERT of {shape.layers} layer and {shape.heads} heads, trained for "
        f"{evaluator.steps} steps under each mask; its accuracy on unseen sequences is the "
        "score. So few steps do not reach what a mask allows, least of all without a mask "
        "(dense), where the model must find the distances by itself.",
        "The strategies: dam trains one model whose mask is learned with it (the differentiable "
        "attention mask), and cuts masks of five densities from it; tpe (a Bayesian sampler), "
        "nsga2 (a genetic algorithm) and random draw a window, every n-th distance and perhaps "
        "the first position for each mask: a space that holds the mask that loses nothing.",
        "The figures: a strategy covers the part of the true front's area (accuracy above chance "
        "against sparsity, the share of pairs left out) that its masks would reach if training "
        "were perfect. dense and oracle (all planted pairs) are controls; the six hand-designed "
        f"families stand beside them. Each strategy has searched {len(SEARCH_SEEDS)} times; its "
        f"best mask that leaves out {SPARSITY:.0%} is judged again by {seeds} new seeds, on "
        "sequences that no search has seen.",
    ]


def volume(process: GradedProcess, points: Iterable[tuple[float, float]]) -> float:
    """Area above chance that points of (sparsity, accuracy) dominate, as a share of that of the
    true front.

    >>> process = GradedProcess()
    >>> volume(process, [(point.sparsity, point.accuracy) for point in process.front])
    1.0
    >>> volume(process, [(0.9, process.chance)])
    0.0
    """
    axes = Objective("sparsity", "max", 0.0), Objective("accuracy", "max", process.chance)
    front = ((point.sparsity, point.accuracy) for point in process.front)
    return hypervolume(points, axes) / hypervolume(front, axes)


def choose(
    studies: Mapping[str, Sequence[Study]], evaluator: PlantedEvaluator
) -> tuple[dict[str, Record], list[str]]:
    """The mask of each strategy that scored best in its searches among those that leave out
    `SPARSITY`, and a line for each strategy that has none."""
    chosen: dict[str, Record] = {}
    missing = []
    score = evaluator.objectives[0]
    for name, searches in studies.items():
        best = []
        for study in searches:
            with contextlib.suppress(SearchError):  # it has no mask that is so sparse
                best.append(study.best(sparsity=SPARSITY))
        if best:
            chosen[name] = max(best, key=lambda record: record.value(score.name))
        else:
            missing.append(f"{name}: none of its masks leaves out {SPARSITY:.0%} of the pairs.")
    return chosen, missing


def _describe_reached(process: GradedProcess, studies: Mapping[str, Sequence[Study]]) -> list[str]:
    """How much of the true front the searches of each strategy cover, at what compute, and how
    much the families do."""

    def share(tried: Iterable[Mask]) -> float:
        return volume(process, ((m.sparsity(process.length), process.expected(m)) for m in tried))

    families = share(masks.FAMILIES.values())
    reached = [(families, f"families: the six hand-designed ones together cover {families:.0%}.")]
    for name, searches in studies.items():
        records = [study.records() for study in searches]
        tried = [[r.mask for r in each if r.mask is not None and r.scored] for each in records]
        count = max(len({str(mask) for mask in each}) for each in tried)
        covered = sorted(map(share, tried))
        seconds = fmean(sum(record.seconds for record in each) for each in records)
        line = (
            f"{name}: {len(covered)} searches of {count} masks cover "
            f"{fmean(covered):.0%} of the true front on average, from {covered[0]:.0%} to "
            f"{covered[-1]:.0%}; {seconds:.0f} s of compute each ({USES[name]})."
        )
        reached.append((fmean(covered), line))
    return [line for _, line in sorted(reached, reverse=True)]


@one_thread()  # the same data however many there are, and no crawl beside another program
def write_data(folder: Path, *, steps: int = 500) -> list[str]:
    """Writes small data for the commands of the README: `text/`, `glue/SST-2/`, `glue/MRPC/`,
    `bert/`, an encoder that has learnt the text, and with masksearch-decoders a decoder, `llama/`.

    The text has articles of 20 lines. A line is 17 words; each of the last eight follows from the
    word nine places before it. SST-2's label 1 says that they do, and with label 0 none of the
    eight is the right one. MRPC has the two times eight words as its two sentences.

    Args:
        folder: It is made where there is none.
        steps: Of each training; 250 find the word nine places before.

    Returns:
        What was written, a line each.

    Raises:
        DataError: If there is something already.
    """
    text, glue, bert, llama = paths = [folder / name for name in ("text", "glue", "bert", "llama")]
    if taken := [path for path in paths if path.exists()]:
        raise DataError(f"{taken[0]} exists, and --data replaces nothing: name another folder")
    typer.echo(f"demo: small models train for {steps} steps each", err=True)
    for part, (name, count) in enumerate(LINES.items()):
        tokens = SENTENCES.sample(count, generator(0, TEXT, part))
        lines = [" ".join(line) for line in spell(tokens)]
        articles = [["= text =", *lines[at : at + ARTICLE]] for at in range(0, count, ARTICLE)]
        write_lines(text / f"{name}.txt", chain.from_iterable(articles))
    second = [pair[1] for pair in SENTENCES.pairs]
    for number, (task, header) in enumerate(HEADERS.items()):
        for part, (name, count) in enumerate(ROWS.items()):
            random = generator(0, TASKS, number, part)
            tokens = SENTENCES.sample(count, random)
            label = torch.randint(2, (count, 1), generator=random)
            wrong = torch.randint(1, SENTENCES.vocabulary, (count, len(second)), generator=random)
            tokens[:, second] = (tokens[:, second] + wrong * (1 - label)) % SENTENCES.vocabulary
            rows = [header]
            for row, (words, kind) in enumerate(zip(spell(tokens), label[:, 0], strict=True)):
                halves = f"{' '.join(words[:8])}\t{' '.join(words[9:])}"
                pair = f"{kind}\t{2 * row}\t{2 * row + 1}\t{halves}"
                rows.append(pair if task == "MRPC" else f"{' '.join(words)}\t{kind}")
            write_lines(glue / task / f"{name}.tsv", rows)
    written = [
        f"{text}: {sum(LINES.values()):,} lines of planted text, for --corpus",
        f"{glue}: {' and '.join(HEADERS)} over the same pairs of words, for --glue",
        _write_bert(bert, text, steps),
    ]
    if (write_llama := load_part("parts", "llama", "model")) is not None:
        [words] = spell(torch.arange(-1, SENTENCES.vocabulary)[None])
        written.append(write_llama(llama, text, words, steps))
    return written


def _write_bert(folder: Path, text: Path, steps: int) -> str:
    """Trains a BERT of 2 layers on a text, and writes it with its tokenizer.

    Returns:
        What was written, in a line.
    """
    learnt: dict[str, Any] = {"steps": steps, "batch": 32, "lr": 4e-3, "reports": 1}
    evaluator = MlmEvaluator(text, size="2x64x4", length=SENTENCES.length + 1, **learnt)
    model: Any = evaluator.build_model(0)
    with quiet(), TemporaryDirectory() as workdir:
        [*evaluator.pretrain(model, Full(), seed=0, workdir=Path(workdir))]
        detach(model)
        hugging_face_model(model).save_pretrained(folder)
    save_tokenizer(evaluator.task().corpus, model, folder)
    return f"{folder}: a BERT of 2 layers, trained on the text, for --weights and sparsify"


def spell(tokens: Tensor) -> list[list[str]]:
    """Sequences of numbers as words, without the first position."""
    return [[f"w{token:02d}" for token in row[1:]] for row in tokens.tolist()]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines that end in LF, on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
