"""Part `models` of `attention.py`: encoders, forward and training steps, and their memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from attention_kernels import bigbird_blocks, mixture, random_blocks
from rounds import Side, faster, forget_peak, interleaved, peak_bytes, spread
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.attention.kernels.choose import choose
from masksearch.masks import Mask, layer_of
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.models.sizes import Size, find_size

SHORT = 128  # positions at which a mask must cost next to nothing
HIDDEN = 0.15  # share of the tokens that are predicted
LR = 1e-4
RANDOM = 3  # random blocks of a row of BigBird
SEARCHED = Path(__file__).parents[1] / "experiments/06_dam_text/results/nearest.txt"


@dataclass(frozen=True)
class Work:
    """One model at one length.

    Args:
        length: Positions.
        batch: Texts.
        size: Name of the encoder's size.
        vocabulary: Token ids.
        block: Side of a block, in positions: of the block masks and of BigBird; a window
            reaches half of it.
        device: Where it runs.
    """

    length: int
    batch: int
    size: str
    vocabulary: int
    block: int
    device: str

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def shape(self) -> Size:
        return find_size(self.size)

    @property
    def settings(self) -> dict[str, Any]:
        """What BERT, Longformer and BigBird have in common."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.shape.width,
            "num_hidden_layers": self.shape.layers,
            "num_attention_heads": self.shape.heads,
            "intermediate_size": 4 * self.shape.width,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }


def masks_for(work: Work) -> dict[str, Mask | None]:
    """Side -> mask; None = dense SDPA without one."""
    blocks, heads, layers = -(-work.length // work.block), work.shape.heads, work.shape.layers
    reach = work.block // 2
    found: dict[str, Mask | None] = {
        "dense": None,
        f"longformer {reach}, 1": masks.longformer(reach, 1),
        "random blocks, 95 %": masks.block_layout(random_blocks(blocks, 0.95, heads), work.block),
        "another in each layer and head": masks.per_layer(
            [mixture(work.length, work.block, heads, layer) for layer in range(layers)]
        ),
        "searched by DAM": searched(layers, heads),
    }
    if work.length != SHORT:
        layout = bigbird_blocks(blocks, RANDOM, heads)
        found["bigbird, 3 random blocks"] = masks.block_layout(layout, work.block)
    return found


def searched(layers: int, heads: int) -> Mask:
    """What DAM found on WikiText-2, another mask in each head, as experiment 06 wrote it down.

    Its 2 layers of 4 heads take turns in a model that has more. The diagonal is added: texts
    shorter than those of the search would have a row without keys.
    """
    line = SEARCHED.read_text(encoding="utf-8").splitlines()[0]
    found = masks.parse(line.split(": ", 1)[1])
    planes = [layer_of(found, layer).parts for layer in range(found.layers or 1)]
    chosen = [
        masks.per_head([planes[layer % len(planes)][head % 4] for head in range(heads)])
        for layer in range(layers)
    ]
    return masks.per_layer(chosen) | masks.window(0)


def published(work: Work) -> dict[str, Callable[[], nn.Module]]:
    """Side -> Hugging Face's own sparse model of that size, at the window of our mask."""
    found = {f"Hugging Face Longformer, window {work.block}": lambda: longformer(work)}
    if work.length > (5 + 2 * RANDOM) * work.block:  # up to there it computes full attention
        found["Hugging Face BigBird, 3 random blocks"] = lambda: bigbird(work)
    return {} if work.length == SHORT else found


def longformer(work: Work) -> nn.Module:
    """A Longformer whose first token is global."""
    import transformers as hf

    config = hf.LongformerConfig(
        **work.settings,
        attention_window=work.block,  # both sides together
        max_position_embeddings=work.length + 2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model: nn.Module = hf.LongformerModel(config, add_pooling_layer=False)

    def first_is_global(module: nn.Module, given: Any, named: dict[str, Any]) -> Any:
        ids: Tensor = named["input_ids"]
        tokens = torch.zeros_like(ids)
        tokens[:, 0] = 1
        return given, named | {"global_attention_mask": tokens}

    model.register_forward_pre_hook(first_is_global, with_kwargs=True)
    return model


def bigbird(work: Work) -> nn.Module:
    """BigBird's block-sparse attention."""
    import transformers as hf

    config = hf.BigBirdConfig(
        **work.settings,
        attention_type="block_sparse",
        block_size=work.block,
        num_random_blocks=RANDOM,
        max_position_embeddings=work.length,
        sep_token_id=3,
    )
    model: nn.Module = hf.BigBirdModel(config, add_pooling_layer=False)
    return model


def sides_of(work: Work) -> list[str]:
    """Names of what is compared."""
    return [*masks_for(work), *published(work)]


def built(work: Work, side: str) -> MaskedLanguageModel:
    """That side's model with a language-modelling head, on its device, in training mode.

    There is no dropout. BigBird in evaluation mode would count its first block several times.
    """
    theirs = published(work)
    if side in theirs:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            body: Any = theirs[side]()
    else:
        body = encoder(work.size, work.vocabulary, work.length, seed=0)
    model = MaskedLanguageModel(body, seed=0).to(work.torch_device).train()
    mask = masks_for(work).get(side)
    if mask is not None:
        attach(model, mask)
    return model


def batch_of(work: Work) -> dict[str, Tensor]:
    """Random tokens, some of them to be predicted."""
    random = torch.Generator().manual_seed(work.length)
    shape = (work.batch, work.length)
    ids = torch.randint(5, work.vocabulary, shape, generator=random)
    hidden = torch.rand(shape, generator=random) < HIDDEN
    hidden[:, 0] = True
    labels = ids.masked_fill(~hidden, -100)
    return {"input_ids": ids.to(work.torch_device), "labels": labels.to(work.torch_device)}


def forward(work: Work, model: MaskedLanguageModel) -> Side:
    """The encoder without gradients."""
    ids = batch_of(work)["input_ids"]

    def call() -> object:
        with torch.no_grad(), autocast(work):
            return model.hidden(ids, None, None)

    return call


def training(work: Work, model: MaskedLanguageModel) -> Side:
    """A step of AdamW on one batch."""
    batch = batch_of(work)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def call() -> object:
        with autocast(work):
            loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return call


def autocast(work: Work) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU float32 as it is."""
    return torch.autocast(
        work.torch_device.type, torch.bfloat16, enabled=work.torch_device.type == "cuda"
    )


KINDS: dict[str, Callable[[Work, MaskedLanguageModel], Side]] = {
    "forward": forward,
    "train step": training,
}


def peak(work: Work, side: str, kind: str) -> int:
    """Bytes that two calls need beyond the process at rest, the model included in the rest.

    To be called in a process of its own. What attach makes of a mask counts.
    """
    model = built(work, side)
    cuda = work.torch_device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    forget_peak()
    before = torch.cuda.memory_allocated() if cuda else peak_bytes()
    call = KINDS[kind](work, model)
    call()
    call()
    return (torch.cuda.max_memory_allocated() if cuda else peak_bytes()) - before


def peak_apart(work: Work, side: str, kind: str) -> int:
    """`peak` in a fresh process."""
    code = (
        "import json, sys, torch, attention_models as m\n"
        "work, side, kind = json.loads(sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "print('bytes', m.peak(m.Work(**work), side, kind))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([asdict(work), side, kind])],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the memory of {side}, {kind}: {done.stderr[-2000:]}")
    return int(done.stdout.rsplit("bytes", 1)[1])


def models(
    works: list[Work], rounds: int, seconds: float, memory: bool = True
) -> Iterator[dict[str, Any]]:
    """Every length, forward and training, all sides in turns.

    Args:
        works: What is measured; at `SHORT` positions training alone.
        rounds: Of one row, at most.
        seconds: Of one row's rounds, about.
        memory: Whether to measure the memory of each side, too.
    """
    for work in works:
        for kind, make in KINDS.items():
            if work.length == SHORT and kind == "forward":
                continue
            sides = {side: make(work, built(work, side)) for side in sides_of(work)}
            times = interleaved(sides, rounds, seconds, work.torch_device)
            del sides
            found: dict[str, Any] = {
                side: {"speedup": faster(times, "dense", side), "seconds": spread(times[side])}
                for side in times
            }
            for side, mask in masks_for(work).items():
                if mask is not None:
                    found[side]["backends"] = taken(work, mask, trains=kind != "forward")
            if memory and work.length != SHORT:
                for side, row in found.items():
                    row["peak_bytes"] = peak_apart(work, side, kind)
            row = {"kind": kind, **asdict(work), "rounds": len(times["dense"]), "sides": found}
            print(line(row), flush=True)
            yield row


def taken(work: Work, mask: Mask, trains: bool) -> list[str]:
    """What auto takes in the layers."""
    chosen = (
        choose(
            masks.layer_of(mask, layer),
            work.length,
            device=work.torch_device,
            trains=trains,
            dtype=torch.bfloat16 if work.torch_device.type == "cuda" else torch.float32,
        )
        for layer in range(mask.layers or 1)
    )
    return list(dict.fromkeys(choice.backend for choice in chosen))


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    sides = ", ".join(
        f"{side} {found['speedup']['median']:.2f}"
        + (f" [{found['peak_bytes'] / 2**20:.0f} MiB]" if "peak_bytes" in found else "")
        for side, found in row["sides"].items()
    )
    return f"n={row['length']} batch {row['batch']}, {row['kind']}: {sides}"
