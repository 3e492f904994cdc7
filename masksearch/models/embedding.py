"""Embedding models: folders of sentence-transformers, opened, pooled and saved by that library.

model = open_embedding(folder)                  # a SentenceTransformer, on the CPU
Embedder(model)(**batch).logits                 # as model.encode embeds these rows
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.interface import ENTRY
from masksearch.attention.probe import OPENERS, ways_inside
from masksearch.errors import AttachError, DataError, name_extra
from masksearch.models.checkpoints import UNREADABLE, find_files, quiet, read_json
from masksearch.models.encoders import Output

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
KIND, PARTS = "SentenceTransformer", ["Transformer", "Pooling", "Normalize"]


# -- what is taken -----------------------------------------------------------------------------
def _check_kind(kind: str, modules: list[str], remedy: str, error: type[Exception]) -> None:
    """Says what of sentence-transformers takes a mask as a whole: it is asked by all that put one
    on a model, save it or open a folder.

    Args:
        kind: The class of a model, by its name in that library's folders.
        modules: The classes of its modules.
        remedy: Ends the message.
        error: Is raised where it is no SentenceTransformer of the three modules `PARTS`.
    """
    if kind != KIND or modules not in (PARTS, PARTS[:2]):  # the last one may be missing
        taken = f"a mask is put on a {KIND} of {', '.join(PARTS)}"
        raise error(f"{taken}, not on a {kind} of {', '.join(modules)}; {remedy}")


def _transformer_in(model: Any) -> nn.Module | None:
    """The model of transformers in a SentenceTransformer; None of what is no model of that
    library, or has none of transformers.

    Raises:
        AttachError: If it is another kind of that library; names the models inside.
    """
    base = getattr(sys.modules.get("sentence_transformers.base.model"), "BaseModel", ())
    if not isinstance(model, base) or not (inside := ways_inside(model)):
        return None
    remedy = f"attach to the model inside, and save that: {' or '.join(inside)}"
    _check_kind(model.model_type, [type(part).__name__ for part in model], remedy, AttachError)
    return cast(nn.Module, model.transformers_model)


OPENERS.append(_transformer_in)


def holds_embedding(folder: Path) -> bool:
    """Whether a folder holds a SentenceTransformer. A CrossEncoder (a reranker) is none: it is a
    classifier of transformers, and read as one.

    Raises:
        DataError: If it holds another kind of that library, or cannot be read.
    """
    if not (folder / MODULES).is_file():
        return False
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    named = [each for each in read_json(folder / MODULES, list) if isinstance(each, dict)]
    modules = [str(each.get("type")).rpartition(".")[2] for each in named]
    remedy = f"open {folder} by its own library; ms.attach(model, mask) names the model inside"
    if (kind := settings.get("model_type", KIND)) != "CrossEncoder" or modules != PARTS[:1]:
        _check_kind(kind, modules, remedy, DataError)
    return bool(kind == KIND)


# -- opening -----------------------------------------------------------------------------------
def open_embedding(folder: Path, **options: Any) -> Any:
    """The SentenceTransformer of a folder without masks, in eval mode, on the CPU; no code that
    comes with it is run.

    Args:
        folder: Holds modules.json, and its Transformer itself.
        options: Of `from_pretrained` of transformers.

    Raises:
        DataError: If it cannot be read, holds no SentenceTransformer, or sentence-transformers is
            not installed.
    """
    with name_extra("embed", f"the embedding model {folder}"):
        from sentence_transformers import SentenceTransformer
    if not holds_embedding(folder):
        raise DataError(f"{folder} holds no {KIND} ({MODULES}); give a folder of one")
    find_files(folder)
    how = {"dtype": "auto", **options, "attn_implementation": None, "use_safetensors": True}
    try:
        with quiet():
            model: Any = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs=how
            )
    except UNREADABLE as error:
        raise DataError(f"{folder}: the embedding model cannot be read: {error}") from error
    vars(model.transformers_model.config).pop(ENTRY, None)  # of the mask that is not on it yet
    return model.eval()


class Embedder(nn.Module):
    """A SentenceTransformer with the inputs and the `Output` of our heads, its embeddings.

    Args:
        model: Its Transformer embeds tokens, its other modules pool and normalise them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.rest = model.transformers_model, nn.ModuleList([*model][1:])
        prompt, tokenizer = model.prompts.get(model.default_prompt_name), model.tokenizer
        ids = tokenizer(prompt)["input_ids"] if prompt else []  # poolings may leave them out
        self.prompt_length = len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.all_special_ids)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor
    ) -> Output:
        """The embeddings of rows, `[batch, width]`, as logits."""
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.encoder(input_ids=input_ids, attention_mask=there, **inputs)
        features = {"token_embeddings": states.last_hidden_state, "attention_mask": there}
        features |= {"prompt_length": self.prompt_length} if self.prompt_length else {}
        for module in self.rest:
            features = module(features)
        return Output(features["sentence_embedding"])

    def distance(self, embedded: Tensor, target: Tensor) -> Tensor:
        """Mean of 1 - cosine between embeddings and those that they are learnt from."""
        return 1 - F.cosine_similarity(embedded.float(), target.float()).mean()
