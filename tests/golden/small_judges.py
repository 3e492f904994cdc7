"""Every evaluator with each `adapt`, on data and checkpoints of seconds, for `record_searches`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluator, Objective, Report
from masksearch.evaluators.cost import WithCost
from masksearch.evaluators.squad import SquadEvaluator
from masksearch.evaluators.swag import SwagEvaluator
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.tasks.recall import Recall

WORDS = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
MARKERS = ("zo", "zu", "ze")


def adapted(encoder: bool, how: str) -> str:
    """The spelling of a way to adapt: "train" was "finetune" for encoders."""
    settings = {"glue": ".", "weights": ".", "adapt": "train"}
    try:
        ms.GlueEvaluator(None, **settings)
    except ms.errors.UnknownNameError:
        return "finetune" if encoder and how == "train" else how
    return how


# -- data and checkpoints -----------------------------------------------------------------------
def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """`text/`, `glue/`, `squad/`, `swag/`, `bert/` (with vocab.txt) and `llama/`."""
    draw = random.Random(0)
    for name, count in (("train", 60), ("valid", 40), ("test", 20)):
        paragraphs = (
            "\n".join(" ".join(draw.choices(WORDS, k=9)) for _ in range(6)) for _ in range(count)
        )
        write(folder / "text" / f"{name}.txt", "\n\n".join(paragraphs))
    halves = (WORDS[:40], WORDS[40:])
    for part, count in (("train", 96), ("dev", 80), ("test", 24)):
        single, pairs = ["sentence\tlabel"], ["index\tsentence1\tsentence2\tlabel"]
        scores = ["index\tsentence1\tsentence2\tscore"]
        for row in range(count):
            side = halves[row % 2]
            single.append(f"{' '.join(draw.choices(side, k=draw.randint(4, 10)))}\t{row % 2}")
            first, second = (" ".join(draw.choices(side, k=4)) for _ in range(2))
            label = ("entailment", "not_entailment")[row % 2]
            pairs.append(f"{row}\t{first}\t{second}\t{label}")
            scores.append(f"{row}\t{first}\t{second}\t{draw.randint(0, 10) / 2}")
        for task, lines in (("SST-2", single), ("RTE", pairs), ("STS-B", scores)):
            write(folder / "glue" / task / f"{part}.tsv", "\n".join(lines) + "\n")
    for name, articles in (("train", 8), ("dev", 20), ("test", 3)):
        path = folder / "squad" / f"{name}-v1.1.json"
        write(path, json.dumps({"version": "1.1", "data": squad(draw, name, articles)}))
    for name, count in (("train", 24), ("val", 30), ("test", 6)):
        rows = (json.dumps(swag(draw)) for _ in range(count))
        write(folder / "swag" / f"{name}.jsonl", "\n".join(rows) + "\n")
    write_checkpoints(folder)


def squad(draw: random.Random, part: str, articles: int) -> list[dict[str, Any]]:
    """The answer is the word after the marker that the question names."""
    made = []
    for number in range(articles):
        paragraphs = []
        for index in range(2):
            words, marker = draw.choices(WORDS, k=7), draw.choice(MARKERS)
            place = draw.randrange(6)
            words[place] = marker
            start = len(" ".join(words[: place + 1])) + 1
            answer = {"text": words[place + 1], "answer_start": start}
            question = {"id": f"{part}-{number}-{index}", "question": f"what comes after {marker}"}
            entry = question | {"answers": [answer]}
            paragraphs.append({"context": " ".join(words) + ".", "qas": [entry]})
        made.append({"title": f"article {number} of {part}", "paragraphs": paragraphs})
    return made


def swag(draw: random.Random) -> dict[str, Any]:
    answer = draw.randrange(4)
    halves = (WORDS[40:], WORDS[:20])
    choices = [" ".join(draw.choices(halves[at == answer], k=4)) for at in range(4)]
    return {"startphrase": " ".join(draw.choices(WORDS, k=4)), "answer": answer} | {
        "choices": choices
    }


def write_checkpoints(folder: Path) -> None:
    """A BERT of two layers, and a Llama of two, with tokenizers of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "comes", "after", *MARKERS]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 48}
    bert = BertConfig(vocab_size=len(special) + len(WORDS), **sizes)
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    llama = LlamaConfig(
        vocab_size=1 + len(WORDS),
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(bert).save_pretrained(folder / "bert")
        decoder = LlamaForCausalLM(llama).eval()
        speak(decoder, folder / "spoken")
        decoder.save_pretrained(folder / "llama")
    write(folder / "bert" / "vocab.txt", "\n".join([*special, *WORDS]) + "\n")
    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "llama" / "tokenizer.json"))


def speak(decoder: Any, folder: Path) -> None:
    """Text that the decoder predicts: its embeddings are made larger, and it is drawn from it."""
    tokens = torch.randint(1, len(WORDS) + 1, (40, 1))
    with torch.no_grad():
        decoder.get_input_embeddings().weight *= 20
        decoder.get_output_embeddings().weight *= 10
        for _ in range(120):
            shares = decoder(tokens[:, -30:]).logits[:, -1].softmax(-1)
            shares[:, 0] = 0
            tokens = torch.cat([tokens, torch.multinomial(shares, 1)], 1)
    texts = [" ".join(WORDS[token - 1] for token in row) for row in tokens.tolist()]
    for name, several in (("train", texts[:16]), ("valid", texts[16:32]), ("test", texts[32:])):
        articles = (f" = {text.split()[0]} = \n{text}\n" for text in several)
        write(folder / f"{name}.txt", "".join(articles))


# -- evaluators ---------------------------------------------------------------------------------
class Toy(Evaluator):
    """Loss = |sparsity - 0.6| + 1 / step + seed / 100."""

    shape = ms.Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
    protocol = "toy"

    def __call__(self, mask: Any, *, seed: int, workdir: Path) -> Iterator[Report]:
        sparsity = mask.sparsity(self.shape.length)
        for step in (1, 2, 4):
            yield Report(step, {"loss": abs(sparsity - 0.6) + 1 / step + seed / 100})


class Learning(Toy):
    """The toy's loss with noise that wanes."""

    protocol = "learning"

    def __call__(self, mask: Any, *, seed: int, workdir: Path) -> Iterator[Report]:
        for report in super().__call__(mask, seed=seed, workdir=workdir):
            draw = random.Random(f"{mask} {seed} {report.step}").gauss(0, 0.2 / report.step)
            yield Report(report.step, {"loss": report.values["loss"] + draw})


class Landscape(Evaluator):
    """Score = .8, less what is denser or sparser than it should be; an offset is worth .05."""

    shape = ms.Shape(32, 1, 2, lengths={9: 3, 20: 5, 32: 2})
    objectives = (
        Objective("score", "max", 0.5),
        Objective("effective_sparsity", "max", 0.0),
    )
    protocol = "landscape"

    def __call__(self, mask: Any, *, seed: int, workdir: Path) -> Iterator[Report]:
        density = mask.density(32)
        partner = bool(mask.dense(32)[0, 0].diagonal(7).all())
        noise = random.Random(f"{mask} {seed}").gauss(0, 0.02)
        yield Report(1, {"score": 0.8 - 0.1 * (1 - density) ** 4 + 0.05 * partner + noise})


def planted(folder: Path, **more: Any) -> Any:
    process = PlantedProcess(length=24, offsets=(5,), vocabulary=8)
    small = {"steps": 6, "downstream_steps": 2, "held_out_sequences": 64} | more
    return ms.PlantedEvaluator(process, **small)


def graded(folder: Path) -> Any:
    return ms.PlantedEvaluator.graded(steps=6, downstream_steps=2, held_out_sequences=64)


def small(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        **{"steps": 3, "size": "nano", "length": 24, "vocabulary": 80, "batch": 4},
        **{"held_out_sequences": 400, "cache": folder / "cache", "device": "cpu"},
        **more,
    }


def mlm(folder: Path, **more: Any) -> Any:
    return ms.MlmEvaluator(folder / "text", **small(folder, **more))


def pairs(folder: Path) -> Any:
    more = {"pretraining": "mlm+order", "whole_words": True, "dropout": 0.1}
    return mlm(folder, **more)


def mlm_weights(folder: Path) -> Any:
    settings = small(folder, weights=folder / "bert")
    return ms.MlmEvaluator(folder / "text", **settings)


def glue(folder: Path, how: str = "", **more: Any) -> Any:
    """From random weights; or with `how`, on the checkpoint alone."""
    settings: dict[str, Any] = small(folder, epochs=1, tasks=("SST-2", "RTE"))
    text: Path | None = folder / "text"
    if how:
        text = None
        drop = ("steps", "size", "vocabulary", "batch", "held_out_sequences")
        settings = {name: value for name, value in settings.items() if name not in drop}
        settings |= {"weights": folder / "bert", "adapt": adapted(True, how), "recover_steps": 3}
        settings |= {"finetune_lr": 3e-3, "finetune_batch": 8, "epochs": 2}
    return ms.GlueEvaluator(text, folder / "glue", **(settings | more))


def question(folder: Path, how: str = "") -> Any:
    return downstream(folder, SquadEvaluator, folder / "squad", how)


def endings(folder: Path, how: str = "") -> Any:
    return downstream(folder, SwagEvaluator, folder / "swag", how)


def downstream(folder: Path, kind: Any, data: Path, how: str) -> Any:
    settings: dict[str, Any] = small(folder, epochs=1)
    text: Path | None = folder / "text"
    if how:
        text = None
        drop = ("steps", "size", "vocabulary", "batch", "held_out_sequences")
        settings = {name: value for name, value in settings.items() if name not in drop}
        settings |= {"weights": folder / "bert", "adapt": adapted(True, how), "recover_steps": 3}
        settings |= {"finetune_lr": 3e-3, "finetune_batch": 8, "epochs": 4}
    return kind(text, data, **settings)


def causal(folder: Path, how: str = "") -> Any:
    """From random weights; or with `how`, from the checkpoint."""
    settings: dict[str, Any] = {"length": 24, "held_out_sequences": 400, "batch": 4, "kl": True}
    settings |= {"cache": folder / "cache", "device": "cpu", "cost": "kv_bytes"}
    if how:
        settings |= {"weights": folder / "llama", "adapt": how}
        settings |= {"recover_tokens": 300} if how == "recover" else {}
        settings |= {"steps": 3, "kl": False} if how == "train" else {}
        settings |= {"learn_from": "dense", "kl": False} if how == "recover" else {}
    else:
        settings |= {"size": "1x16x2", "vocabulary": 80, "steps": 3, "cost": "effective_sparsity"}
        settings |= {"kl": False}
    return ms.CausalEvaluator(folder / ("spoken" if how else "text"), **settings)


def recall(folder: Path) -> Any:
    task = Recall(pairs=3, keys=16, values=16, middle=12)
    settings = {"size": "1x16x2", "held_out_sequences": 40, "batch": 4, "steps": 3}
    return ms.CausalEvaluator(task, cache=folder / "cache", device="cpu", **settings)


def cost(folder: Path) -> Any:
    return ms.CostEvaluator(length=48, layers=2, heads=2, block=16)


def with_cost(folder: Path) -> Any:
    return WithCost(planted(folder), latency=False, memory=True)


EVALUATORS: dict[str, Callable[[Path], Any]] = {
    "planted": planted,
    "graded": graded,
    "mlm": mlm,
    "mlm pairs": pairs,
    "mlm from weights": mlm_weights,
    "glue": glue,
    **{f"glue {how}": lambda at, how=how: glue(at, how) for how in ("none", "recover", "train")},
    "glue regression": lambda at: glue(at, "train", tasks=("SST-2", "STS-B"), frozen=1),
    "glue dense teacher": lambda at: glue(at, "recover", learn_from="dense"),
    "squad": question,
    **{f"squad {how}": lambda at, how=how: question(at, how) for how in ("none", "recover")},
    "swag": endings,
    **{f"swag {how}": lambda at, how=how: endings(at, how) for how in ("none", "train")},
    "causal": causal,
    **{
        f"causal {how}": lambda at, how=how: causal(at, how)
        for how in ("none", "recover", "train")
    },
    "recall": recall,
    "cost": cost,
    "with cost": with_cost,
}


# -- spaces -------------------------------------------------------------------------------------
def flat(trial: Any) -> masks.Mask:
    reach, count = trial.suggest_int("reach", 0, 7), trial.suggest_int("count", 1, 3)
    return masks.window(reach) | masks.global_tokens(count)


def conditional(trial: Any) -> masks.Mask:
    if trial.suggest_categorical("family", ["window", "stride"]) == "window":
        return masks.window(trial.suggest_int("reach", 0, 12))
    return masks.stride(trial.suggest_int("period", 2, 7))


def causal_space(trial: Any) -> masks.Mask:
    return masks.causal() & (masks.window(trial.suggest_int("reach", 1, 9)) | masks.columns(2))
