"""A BERT of two narrow layers on disk, with the tokenizer of some words."""

from pathlib import Path

import torch


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
    config = BertConfig(
        vocab_size=len(special) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    extra = [f"extra{number}" for number in range(more)]
    (folder / "vocab.txt").write_text("\n".join([*special, *words, *extra]) + "\n")
    return folder
