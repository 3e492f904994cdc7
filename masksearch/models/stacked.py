"""Many small masked language models as one program: same architecture, own weights, own masks.

    stack = StackedModels(models, tables)                 # bool [models, layers, heads, n, n]
    losses = stack(stack.arranged([batch]))               # float [models]
    losses.sum().backward()                               # each model's own gradients

A step of a small model is too little work for a GPU: starting its kernels takes longer than
running them. Here every kernel does the work of all models: linear layers are batched matrix
products, and attention sees the heads of all models as the heads of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import AttachError
from masksearch.models.heads import MaskedLanguageModel

WORDS = "encoder.embeddings.word_embeddings.weight"
SAME = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "max_position_embeddings type_vocab_size layer_norm_eps pad_token_id"
).split()


@dataclass(frozen=True)
class Arranged:
    """A batch for every model, or one for all (then `groups` is 1).

    Args:
        ids: int64 `[groups, batch, length]`.
        at: Scored positions of the flattened batch, int64 `[groups, scored]`; where a group has
            fewer than the others, some that are not scored.
        targets: Their labels, int64 `[groups, scored]`, -100 = not scored.
    """

    ids: Tensor
    at: Tensor
    targets: Tensor

    def to(self, place: torch.device) -> Arranged:
        """The same on that device."""
        if self.ids.device.type == place.type:
            return self
        parts = (part.pin_memory() for part in (self.ids, self.at, self.targets))
        return Arranged(*(part.to(place, non_blocking=True) for part in parts))


class StackedModels(nn.Module):
    """The weights of several `MaskedLanguageModel`s in three tensors, and their common forward.

    `words` holds the token embeddings `[models, vocabulary, width]`, `matrices` all other
    matrices and `vectors` all biases and norms, each model's in a row.

    Args:
        models: At least one; all of one architecture, without dropout. They are copied from.
        tables: Their masks, bool `[models, layers, heads, length, length]`; None = dense.

    Raises:
        ValueError: If the models differ in architecture, have dropout or another activation
            than GELU, or hold weights that a masked language model does not have.
        AttachError: If the masks do not fit the models, or a model has a mask put on already.
    """

    def __init__(
        self, models: Sequence[MaskedLanguageModel], tables: Tensor | None = None
    ) -> None:
        super().__init__()
        check_alike(models)
        self.config = models[0].config
        self.eps = models[0].norm.eps  # the head's; the encoder's is its configuration's
        state = dict(models[0].named_parameters())
        names = [name for name in ordered(self.config.num_hidden_layers) if name != WORDS]
        unknown = sorted(state.keys() ^ {*names, WORDS})
        if unknown:
            raise ValueError(
                "models that train together have a BERT encoder and the masked-language-model "
                f"head and nothing else; these parameters differ: {', '.join(unknown[:4])}; "
                "train such models one after the other"
            )
        self.shapes = {name: state[name].shape for name in names}
        rows: tuple[list[Tensor], ...] = ([], [], [])
        for model in models:
            own = dict(model.named_parameters())
            rows[0].append(own[WORDS].detach())
            for flat, matrix in ((rows[1], True), (rows[2], False)):
                parts = [own[name].detach().flatten() for name in self.named(matrix)]
                flat.append(torch.cat(parts))
        self.words, self.matrices, self.vectors = (
            nn.Parameter(torch.stack(parts)) for parts in rows
        )
        self.tables = arranged_tables(tables, self.config, len(models), self.words.device)

    def named(self, matrix: bool) -> list[str]:
        """Names of the matrices, or of the biases and norms, in the order of their rows."""
        return [name for name, shape in self.shapes.items() if (len(shape) >= 2) == matrix]

    def __len__(self) -> int:
        return len(self.words)

    def weights(self, row: int) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every parameter of one model."""
        yield WORDS, self.words[row]
        for matrix, flat in ((True, self.matrices), (False, self.vectors)):
            names = self.named(matrix)
            sizes = [self.shapes[name].numel() for name in names]
            for name, part in zip(names, torch.split(flat[row], sizes), strict=True):
                yield name, part.view(self.shapes[name])

    def write(self, row: int, model: MaskedLanguageModel) -> None:
        """Copies one model's weights into a model of its own."""
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.weights(row):
                own[name].copy_(value)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all models but these; the parameters and their gradients are new tensors."""
        at = torch.tensor(rows, dtype=torch.int64, device=self.words.device)
        for name in ("words", "matrices", "vectors"):
            old: nn.Parameter = getattr(self, name)
            new = nn.Parameter(old.detach().index_select(0, at))
            if old.grad is not None:
                new.grad = old.grad.index_select(0, at)
            setattr(self, name, new)
        if self.tables is not None:
            heads = self.config.num_attention_heads
            layers, _, _, *grid = self.tables.shape
            each = self.tables.view(layers, 1, -1, heads, *grid)
            self.tables = each.index_select(2, at).flatten(2, 3)

    def arranged(self, batches: Sequence[Batch]) -> Arranged:
        """Batches as the forward wants them: one for all models, or one for each.

        Raises:
            ValueError: If their number fits neither, or they hold more than ids and labels.
        """
        if len(batches) not in (1, len(self)):
            raise ValueError(
                f"{len(self)} models take 1 batch for all or {len(self)}, got {len(batches)}"
            )
        if extra := sorted(set(batches[0]) - {"input_ids", "labels"}):
            raise ValueError(
                "models that train together take input_ids and labels of packed text, got also "
                f"{', '.join(extra)}; train them one after the other"
            )
        labels = torch.stack([batch["labels"] for batch in batches]).flatten(1)
        scored = labels != -100
        first = torch.argsort(scored.to(torch.int8), dim=1, descending=True, stable=True)
        at = first[:, : max(1, int(scored.sum(1).max()))]
        ids = torch.stack([batch["input_ids"] for batch in batches])
        return Arranged(ids, at, labels.gather(1, at))

    def forward(self, batch: Arranged) -> Tensor:
        """Mean cross-entropy of each model's scored tokens, in nats, `[models]`."""
        count = len(self.words)
        matrices = self.parts(self.matrices, matrix=True)
        vectors = self.parts(self.vectors, matrix=False)
        hidden = self.encoded(batch.ids, matrices, vectors)
        at = batch.at.expand(count, -1)
        hidden = hidden.gather(1, at.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        hidden = linear(hidden, matrices["transform.weight"], vectors["transform.bias"])
        scale, shift = vectors["norm.weight"], vectors["norm.bias"]
        hidden = norm(F.gelu(hidden), scale, shift, self.eps)
        logits = linear(hidden, self.words, vectors["bias"]).flatten(0, 1)
        targets = batch.targets.expand(count, -1)
        each = F.cross_entropy(logits.float(), targets.flatten(), reduction="none")
        return each.view(count, -1).sum(1) / (targets != -100).sum(1)

    def parts(self, flat: Tensor, *, matrix: bool) -> dict[str, Tensor]:
        """Views of the rows by name, `[models, *shape]`; query, key and value are one."""
        joined: dict[str, list[int]] = {}
        for name in self.named(matrix):
            shape = list(self.shapes[name])
            short = name.removeprefix("encoder.")
            for one in ("query", "key", "value"):
                short = short.replace(f".self.{one}.", ".self.")
            if short in joined:
                joined[short][0] += shape[0]
            else:
                joined[short] = shape
        sizes = [torch.Size(shape).numel() for shape in joined.values()]
        pieces = torch.split(flat, sizes, 1)
        return {
            name: piece.view(len(flat), *shape)
            for (name, shape), piece in zip(joined.items(), pieces, strict=True)
        }

    def encoded(
        self, ids: Tensor, matrices: dict[str, Tensor], vectors: dict[str, Tensor]
    ) -> Tensor:
        """Last hidden states `[models, batch * length, width]`."""
        config: Any = self.config
        count, vocabulary, width = self.words.shape
        _, batch, length = ids.shape
        heads, eps = config.num_attention_heads, config.layer_norm_eps
        ids = ids.expand(count, -1, -1)
        own = torch.arange(count, device=ids.device).view(-1, 1, 1) * vocabulary
        found = F.embedding(ids + own, self.words.view(-1, width))
        if config.pad_token_id is not None:  # as in nn.Embedding(padding_idx=..)
            found = torch.where((ids == config.pad_token_id)[..., None], found.detach(), found)
        kinds = matrices["embeddings.token_type_embeddings.weight"][:, None, :1]
        places = matrices["embeddings.position_embeddings.weight"][:, None, :length]
        hidden = (found + kinds + places).flatten(1, 2)
        name = "embeddings.LayerNorm"
        hidden = norm(hidden, vectors[f"{name}.weight"], vectors[f"{name}.bias"], eps)
        for layer in range(config.num_hidden_layers):
            name = f"encoder.layer.{layer}."
            w = {key.removeprefix(name): part for key, part in matrices.items()}
            b = {key.removeprefix(name): part for key, part in vectors.items()}
            joint = linear(hidden, w["attention.self.weight"], b["attention.self.bias"])
            # [models, batch, length, 3, heads, d] -> 3 of [batch, models * heads, length, d]
            split = joint.view(count, batch, length, 3, heads, -1).permute(3, 1, 0, 4, 2, 5)
            query, key, value = split.reshape(3, batch, count * heads, length, -1)
            table = None if self.tables is None else self.tables[layer]
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=table)
            out = out.view(batch, count, heads, length, -1).permute(1, 0, 3, 2, 4)
            out = out.reshape(count, batch * length, width)
            for name, inner in (("attention.output", out), ("output", None)):
                if inner is None:
                    up = "intermediate.dense"
                    inner = F.gelu(linear(hidden, w[f"{up}.weight"], b[f"{up}.bias"]))
                inner = linear(inner, w[f"{name}.dense.weight"], b[f"{name}.dense.bias"])
                scale, shift = b[f"{name}.LayerNorm.weight"], b[f"{name}.LayerNorm.bias"]
                hidden = norm(inner + hidden, scale, shift, eps)
        return hidden


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each model's own linear layer: `[models, rows, in]` by `[models, out, in]`."""
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


def norm(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each model's own layer norm, over the last axis of `[models, rows, width]`."""
    plain = F.layer_norm(inputs, inputs.shape[-1:], eps=eps)
    return torch.addcmul(bias.unsqueeze(1), plain, weight.unsqueeze(1))


def ordered(layers: int) -> Iterator[str]:
    """Names of the parameters of a `MaskedLanguageModel`; query, key and value side by side."""
    yield WORDS
    for name in ("position_embeddings.weight", "token_type_embeddings.weight"):
        yield f"encoder.embeddings.{name}"
    for kind in ("weight", "bias"):
        yield f"encoder.embeddings.LayerNorm.{kind}"
        for layer in range(layers):
            for part in (
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ):
                yield f"encoder.encoder.layer.{layer}.{part}.{kind}"
        yield f"transform.{kind}"
        yield f"norm.{kind}"
    yield "bias"


def check_alike(models: Sequence[MaskedLanguageModel]) -> None:
    """Whether the models can be one program."""
    if not models:
        raise ValueError("at least one model is needed, got none")
    first = models[0].config
    for model in models:
        config = model.config
        if config.model_type != "bert":
            raise ValueError(
                f"models that train together are BERT encoders, got {config.model_type!r}; "
                "train them one after the other"
            )
        for name in SAME:
            one, other = getattr(first, name), getattr(config, name)
            if one != other:
                raise ValueError(
                    f"models that train together are alike; {name} is {one} and {other}"
                )
        head = getattr(model, "activation", None)
        if config.hidden_act != "gelu" or getattr(head, "approximate", "none") != "none":
            raise ValueError(
                "models that train together have exact GELU as their activation, got "
                f"{config.hidden_act!r} in the encoder and {head} in the head"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if getattr(config, name):
                raise ValueError(
                    f"models that train together have no dropout, got {name} = "
                    f"{getattr(config, name)}; set it to 0, or train one after the other"
                )
        if "masksearch_attachment" in model.__dict__:
            raise AttachError(
                "a model that trains with others takes its mask as an argument, this one has "
                "one put on; detach it first"
            )


def arranged_tables(
    tables: Tensor | None, config: Any, models: int, place: torch.device
) -> Tensor | None:
    """Masks as attention wants them: bool `[layers, 1, models * heads, n, n]`; None = dense."""
    if tables is None or bool(tables.all()):
        return None
    expected = (models, config.num_hidden_layers, config.num_attention_heads)
    if tuple(tables.shape[:3]) != expected:
        raise AttachError(
            "masks of stacked models have the shape [models, layers, heads, n, n]; expected "
            f"{list(expected)} in front, got {list(tables.shape)}"
        )
    return tables.transpose(0, 1).flatten(1, 2).unsqueeze(1).to(place)
