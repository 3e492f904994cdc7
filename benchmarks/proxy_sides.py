"""The two sides that `proxy.py` compares: masksearch's own loop and transformers' Trainer.

Both train the same architecture on the same tokens with AdamW (fused), gradient clipping at 1 and
a linear schedule, on one thread of a CPU or on one GPU, and tell how long each step took. The
Trainer gets the arguments that make it fastest: no logging, saving, evaluating, progress bar or
NaN filter, no reports, the mask of special tokens made beforehand (else its collator makes it row
by row in Python), no worker processes on a CPU (they would share its one core).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from masksearch.attention.attach import attach
from masksearch.masks import Mask
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.models.sizes import find_size
from masksearch.tasks.mlm import MlmTask
from masksearch.tasks.text.corpus import Corpus
from masksearch.training.loop import TrainConfig, train

SKIPPED = 2  # first steps that are not counted: allocation, kernels' choice
LR = 5e-4


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU on one thread, as the machine is shared; else wall time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Seconds of each step but the first ones. A GPU is waited for twice, not at every step:
    what it gives is the mean of all steps.

    Args:
        device: Where the steps run.
        steps: How many there will be.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.done = device, steps, 0
        self.stamps: list[float] = []

    def tick(self) -> None:
        """A step has ended."""
        self.done += 1
        if self.device.type == "cpu" or self.done in (SKIPPED, self.steps):
            self.stamps.append(clock(self.device))

    @property
    def seconds(self) -> list[float]:
        """Of each counted step."""
        if self.device.type != "cpu":
            return [(self.stamps[1] - self.stamps[0]) / (self.steps - SKIPPED)]
        return [
            b - a for a, b in zip(self.stamps[SKIPPED - 1 :], self.stamps[SKIPPED:], strict=False)
        ]


def timed(run: Iterator[Any], steps: int, device: torch.device) -> list[float]:
    """Runs a training of that many steps to its end; seconds of each counted step."""
    watch = Stopwatch(device, steps)
    for _ in run:
        watch.tick()
    return watch.seconds


def on(device: torch.device, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches on that device."""
    for batch in batches:
        yield {name: part.to(device, non_blocking=True) for name, part in batch.items()}


def own_pretraining(
    corpus: Corpus, mask: Mask, size: str, batch: int, steps: int, device: torch.device
) -> list[float]:
    """Seconds of each step of masksearch's pre-training."""
    body = encoder(size, corpus.vocabulary, corpus.length, seed=0)
    model = MaskedLanguageModel(body, seed=0).to(device)
    attach(model, mask, inputs={"input_ids": corpus.train[:1].long().to(device)})
    batches = on(device, MlmTask(corpus, batch).batches(0))
    return timed(train(model, batches, TrainConfig(steps=steps, lr=LR)), steps, device)


def trainers_pretraining(
    corpus: Corpus, mask: Mask, size: str, batch: int, steps: int, device: torch.device
) -> list[float]:
    """Seconds of each step of the Trainer's pre-training of `BertForMaskedLM`."""
    from transformers import BertForMaskedLM, DataCollatorForLanguageModeling

    body = encoder(size, corpus.vocabulary, corpus.length, seed=0)
    torch.manual_seed(0)
    model = BertForMaskedLM(body.config)
    attach(model, mask, inputs={"input_ids": corpus.train[:1].long()})
    collator = DataCollatorForLanguageModeling(fast_tokenizer(corpus), mlm_probability=0.15)
    tokens = corpus.train[torch.arange(min(len(corpus.train), steps * batch))].long()
    special = torch.zeros_like(tokens)
    for role in ("cls", "sep", "pad"):
        special |= tokens == corpus.special[role]
    rows = [
        {"input_ids": ids, "special_tokens_mask": hidden}
        for ids, hidden in zip(tokens, special, strict=True)
    ]
    return trained(model, rows, collator, batch, steps, device)


def fast_tokenizer(corpus: Corpus) -> Any:
    """The corpus's tokenizer as transformers wants it."""
    from transformers import PreTrainedTokenizerFast

    names = {role: corpus.tokenizer.id_to_token(at) for role, at in corpus.special.items()}
    names["unk"] = names.pop("unknown")
    return PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer,
        **{f"{role}_token": name for role, name in names.items()},
    )


def trained(
    model: nn.Module,
    rows: list[dict[str, Any]],
    collator: Callable[..., Any],
    batch: int,
    steps: int,
    device: torch.device,
    *,
    seed: int = 0,
    lr: float = LR,
) -> list[float]:
    """Trains with the Trainer at its fastest; seconds of each step but the first ones."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    watch = Stopwatch(device, steps)

    class Stamps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.tick()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=lr,
            warmup_steps=round(0.06 * steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            lr_scheduler_type="linear",
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_num_workers=0 if device.type == "cpu" else 4,
            dataloader_pin_memory=device.type != "cpu",
            use_cpu=device.type == "cpu",
            seed=seed,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=collator,
            callbacks=[Stamps()],
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return watch.seconds


def random_corpus(length: int, vocabulary: int, rows: int) -> Corpus:
    """Sequences of random tokens; what a step costs does not depend on what they say."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    special = {role: at for at, role in enumerate(("pad", "unknown", "cls", "sep", "mask"))}
    words = {f"[{role.upper()}]": at for role, at in special.items()}
    words |= {f"w{at}": at for at in range(len(words), vocabulary)}
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(len(special), vocabulary, (rows, length), generator=draw)
    ids[:, 0], ids[:, -1] = special["cls"], special["sep"]
    ids = ids.int()
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNKNOWN]"))
    return Corpus(tokenizer, special, length, "random", ids, ids[:32])


def flops(size: str, length: int, vocabulary: int, scored: float = 0.15) -> float:
    """Floating-point operations a token of a training step (forward and backward).

    Six for every weight of a matrix that a token meets, and the attention's two products; the
    prediction head sees the scored tokens alone.
    """
    found = find_size(size)
    layer = 12 * found.width**2 + 2 * length * found.width
    head = found.width**2 + found.width * vocabulary
    return 6 * (found.layers * layer + scored * head)
