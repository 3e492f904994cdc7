"""Fine-tunes what pretrain.py has kept, on GLUE tasks and two probes of word order.

    python experiments/07_proxy/run.py finetune --data FOLDER [--runs FOLDER] [--steps 800,3200]
        [--seeds 0] [--settings full,frozen] [--part 0/2] [--smoke]

Settings: `full` trains every weight for two epochs, `frozen` only the head, for four. Two probes
are made from WikiText-2: BShift (were two neighbouring words swapped? Conneau et
al. 2018, arXiv 1805.01070, "bigram shift") and Order (were two consecutive sentences swapped?
ALBERT, arXiv 1909.11942, Section 3.1). Every result is one JSON file; what is there is not run
again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
from pretrain import MASKS
from safetensors.torch import load_file

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.contracts import generator, mixed_seed
from masksearch.evaluators.glue import GlueTokens
from masksearch.evaluators.tuning import bucket_batches
from masksearch.masks.lower import lower
from masksearch.models.encoders import SequenceClassifier
from masksearch.tasks.glue import GlueTask, Rows, load_glue, majority, score
from masksearch.tasks.text.rows import tokenize_rows
from masksearch.training.loop import TrainConfig, train

TASKS = ("SST-2", "QQP", "MNLI", "CoLA", "BShift", "Order")
ROWS, DEV_ROWS = 4_000, 2_000
MORE = {"BShift": 8_000}  # training rows
BATCH = 32
EPOCHS = {"full": 2, "frozen": 4}
RATES = {"full": 5e-4, "frozen": 2e-3}
SENTENCE = re.compile(r"(?<= [.?!]) ")  # WikiText's sentence ends stand apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/ and glue/")
    parser.add_argument("--runs", type=Path, default=Path("runs/07_proxy"))
    parser.add_argument("--steps", default="800,3200")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--settings", default="full,frozen")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--part", default="0/1", help="which share of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, arguments.part.split("/"))
    rows, dev_rows = (64, 64) if arguments.smoke else (ROWS, DEV_ROWS)
    pretraining = ms.MlmEvaluator(arguments.data / "wikitext-2", split="all")
    tokens = {
        name: tokenized(
            pretraining,
            arguments.data,
            name,
            rows if arguments.smoke else MORE.get(name, rows),
            dev_rows,
        )
        for name in arguments.tasks.split(",")
    }
    wanted = [
        (int(seed), int(step), setting, name, task)
        for seed in arguments.seeds.split(",")
        for setting in arguments.settings.split(",")
        for step in arguments.steps.split(",")
        for task in tokens
        for name in MASKS
    ]
    for seed, step, setting, name, task in wanted[part::parts]:
        weights = arguments.runs / f"{name}-{seed}-{step}.safetensors"
        target = arguments.runs / f"scores-{name}-{seed}-{step}-{setting}-{task}.json"
        if weights.exists() and not target.exists():
            found = scored(pretraining, weights, name, seed, setting, tokens[task])
            facts = {"mask": name, "seed": seed, "step": step, "task": task, "setting": setting}
            partial = target.with_suffix(".partial")
            partial.write_text(json.dumps(facts | found) + "\n")
            partial.replace(target)
            print(f"{target.stem}: {found['score']:.3f} ({found['majority']:.3f})", flush=True)


def scored(
    pretraining: ms.MlmEvaluator,
    weights: Path,
    name: str,
    seed: int,
    setting: str,
    data: GlueTokens,
) -> dict[str, float]:
    """Score, majority's score and CPU seconds of one fine-tuning."""
    started = time.process_time()
    task = data.task
    model = pretraining.build_model(seed)
    model.load_state_dict(load_file(weights))
    own = mixed_seed(seed, TASKS.index(task.name))
    classifier = SequenceClassifier(model.encoder, len(task.labels), seed=mixed_seed(own, 1))
    table = lower(MASKS[name], pretraining.shape)
    attach(classifier, masks.cropped(masks.table(table), pretraining.length))
    if setting == "frozen":
        classifier.encoder.requires_grad_(False)
    steps = EPOCHS[setting] * math.ceil(len(data.train) / BATCH)
    chosen = bucket_batches(data.train.lengths, BATCH, mixed_seed(own, 2))
    batches = (data.train.batch(rows) for rows in chosen)
    for _ in train(classifier, batches, TrainConfig(steps=steps, lr=RATES[setting])):
        pass
    classifier.eval()
    rows = data.dev[task.name]
    predictions: list[int] = []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = rows.batch(range(len(rows))[start : start + 64])
            predictions += classifier(**batch).logits.argmax(-1).tolist()
    labels = rows.labels.tolist()
    return {
        "score": score(task, predictions, labels)[task.metrics[0]],
        "majority": majority(task, labels),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def tokenized(
    pretraining: ms.MlmEvaluator, data: Path, name: str, rows: int, dev_rows: int
) -> GlueTokens:
    """A GLUE task, or a probe, as token rows."""
    corpus = pretraining.task().corpus
    if name in ("BShift", "Order"):
        task = GlueTask(name, ("sentence",) if name == "BShift" else ("first", "second"), "label")
        train_rows = probe(name, data / "wikitext-2" / "train.txt", rows)
        dev = {name: probe(name, data / "wikitext-2" / "valid.txt", dev_rows)}
    else:
        read = load_glue(data / "glue", name, rows, dev_rows=dev_rows)
        task, train_rows, dev = read.task, read.train, dict(read.dev)
    tokens = {
        part: tokenize_rows(corpus, found.texts, found.labels) for part, found in dev.items()
    }
    trained = tokenize_rows(corpus, train_rows.texts, train_rows.labels)
    return GlueTokens(task, trained, tokens, name, {})


def probe(name: str, path: Path, count: int) -> Rows:
    """Labelled sentences (1 = as written) of 8 to 40 words, drawn from the whole text."""
    found: list[tuple[str, str]] = []  # consecutive sentences of one paragraph
    for line in path.read_text(encoding="utf-8").splitlines():
        sentences = [s.strip() for s in SENTENCE.split(line) if " = " not in s]
        fitting = [8 <= len(s.split()) <= 40 for s in sentences]
        pairs = zip(sentences, sentences[1:], fitting, fitting[1:], strict=False)
        found += [(one, two) for one, two, fits, follows in pairs if fits and follows]
    random = generator(7, len(found))
    chosen = torch.randperm(len(found), generator=random)[:count].tolist()
    labels = torch.randint(2, (len(chosen),), generator=random).tolist()
    places = torch.rand(len(chosen), generator=random).tolist()
    texts: list[tuple[str, ...]] = []
    for index, label, place in zip(chosen, labels, places, strict=True):
        one, two = found[index]
        if name == "Order":
            texts.append((one, two) if label else (two, one))
            continue
        words = one.split()
        if not label:
            at = 1 + int(place * (len(words) - 3))  # neither the first word nor the full stop
            words[at], words[at + 1] = words[at + 1], words[at]
        texts.append((" ".join(words),))
    return Rows(texts, labels)


if __name__ == "__main__":
    main()
