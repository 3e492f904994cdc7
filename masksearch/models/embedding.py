"""Embedding models: folders of sentence-transformers, opened, pooled and saved by that library.

model = open_embedding(folder)                  # a SentenceTransformer, on the CPU
Embedder(model)(**batch).logits                 # as model.encode embeds these rows
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.interface import ENTRY
from masksearch.errors import DataError, install_command
from masksearch.models.checkpoints import UNREADABLE, find_files, quiet
from masksearch.models.encoders import Output

MODULES = "modules.json"
KINDS = ["Transformer", "Pooling", "Normalize"]  # the last one may be missing


def open_embedding(folder: Path, **options: Any) -> Any:
    """The SentenceTransformer of a folder without masks, in eval mode, on the CPU; no code that
    comes with it is run.

    Args:
        folder: Holds modules.json, and its Transformer itself.
        options: Of `from_pretrained` of transformers.

    Raises:
        DataError: If it cannot be read, is made of other modules than a Transformer, Pooling and,
            or not, Normalize, or sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            f"{folder} holds an embedding model ({MODULES}), which needs the package "
            f"sentence-transformers: {install_command('embed')}"
        ) from error
    find_files(folder)
    how = {"dtype": "auto", **options, "attn_implementation": "sdpa", "use_safetensors": True}
    try:
        with quiet():
            model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs=how
            )
    except UNREADABLE as error:
        raise DataError(f"{folder}: the embedding model cannot be read: {error}") from error
    if (kinds := [type(part).__name__ for part in model]) not in (KINDS, KINDS[:2]):
        raise DataError(
            f"{folder / MODULES} names {', '.join(kinds)}, and masks are put on models of "
            f"{', '.join(KINDS)} alone; give such a model, or attach to the transformer inside"
        )
    vars(transformer_of(model).config).pop(ENTRY, None)  # of the mask that is not on it yet
    return model.eval()


def transformer_of(model: Any) -> Any:
    """The model of transformers in a SentenceTransformer; any other model itself."""
    return getattr(model, "transformers_model", model)


class Embedder(nn.Module):
    """A SentenceTransformer with the inputs and the `Output` of our heads, its embeddings.

    Args:
        model: Its Transformer embeds tokens, its other modules pool and normalise them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.rest = transformer_of(model), nn.ModuleList([*model][1:])
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
