"""A BERT of two narrow layers on disk, with the tokenizer of some words."""

from pathlib import Path

import torch
from tiny_encoders import sizes


def tiny_checkpoint(
    folder: Path, words: list[str], *, dropout: float = 0.1, more: int = 0
) -> Path:
    """Writes configuration, weights and `vocab.txt`.

    Args:
        folder: Made here.
        words: The vocabulary beside the special tokens.
        dropout: What the configuration says.
        more: Further tokens of `vocab.txt` that the embeddings do not have.
    """
    from transformers import BertConfig, BertForMaskedLM

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**sizes(len(special) + len(words), 32, 2, 2, 64, 48), **off)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    extra = [f"extra{number}" for number in range(more)]
    (folder / "vocab.txt").write_text("\n".join([*special, *words, *extra]) + "\n")
    return folder


def tiny_embedding(
    folder: Path, words: list[str], *, pooling: str = "mean", prompts: dict[str, str] | None = None
) -> Path:
    """Writes a folder of sentence-transformers around such a checkpoint, whose weights are wide
    enough that texts differ.

    Args:
        folder: Made here.
        words: As of `tiny_checkpoint`.
        pooling: As of that library.
        prompts: The first one is put before every text.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    start = tiny_checkpoint(folder.with_name(f"{folder.name}-start"), words)
    first = Transformer(str(start), max_seq_length=48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for weight in first.model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.4)
    modules = [first, Pooling(32, pooling_mode=pooling), Normalize()]
    model = SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts=prompts,
        default_prompt_name=next(iter(prompts)) if prompts else None,
    )
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
