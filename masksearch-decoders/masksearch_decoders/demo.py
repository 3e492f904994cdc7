"""A small decoder that has learnt a text, for `masksearch demo --data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM

from masksearch.models.checkpoints import quiet
from masksearch.training.loop import TrainConfig
from masksearch.training.parts import MachineConfig
from masksearch_decoders.decoders import NextTokenModel
from masksearch_decoders.next_tokens import NextTokenTraining
from masksearch_decoders.tasks.next_token import NextTokenText

SEED = 31
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_llama(folder: Path, text: Path, words: Sequence[str], steps: int) -> str:
    """Trains a Llama of 2 layers on a text, and writes it with its tokenizer.

    Args:
        folder: It is made.
        text: A folder of text files, of these words.
        words: The vocabulary.
        steps: Of the training; on planted sentences 250 find the word nine places before.

    Returns:
        What was written, in a line.
    """
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    torch.manual_seed(SEED)
    with quiet():
        config = LlamaConfig(vocab_size=len(vocabulary), eos_token_id=None, **SIZES)
        decoder = LlamaForCausalLM(config)
        config.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        sequences = NextTokenText.load(text, tokenizer=folder, length=64)
        training = NextTokenTraining(sequences, 16, MachineConfig(), torch.device("cpu"))
        learnt = TrainConfig(steps=steps, lr=5e-3)
        [*training.steps(NextTokenModel(decoder), learnt, SEED, None)]
        decoder.save_pretrained(folder)
    return f"{folder}: a Llama of 2 layers, trained on the text, for --weights"
