"""Decoders of two narrow layers on disk, with the tokenizer of some words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from masksearch_decoders.tasks.next_token import NextTokenRows

NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NARROW |= {"intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2}


def tiny_decoder(
    folder: Path, words: list[str], *, kind: str = "llama", seed: int = 0, **changes: Any
) -> Path:
    """Writes configuration, weights and tokenizer.json.

    Args:
        folder: Made here.
        words: The vocabulary beside `<unk>`.
        kind: Of a decoder: llama, qwen3, granite or gpt2.
        seed: Of the weights.
        changes: Of the configuration.
    """
    import transformers

    names = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
    names |= {"granite": "GraniteMoeHybridForCausalLM"}
    settings: dict[str, Any] = dict(NARROW)
    if kind == "gpt2":
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    else:
        settings |= {"num_key_value_heads": 2, "head_dim": 8}
    settings |= {"vocab_size": 1 + len(words), "bos_token_id": None, "eos_token_id": None}
    cls = getattr(transformers, names[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cls(cls.config_class(**(settings | changes))).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}  # that of the kind adds tokens
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def written_text(
    model: Path, folder: Path, words: list[str], *, length: int = 150, between: str = " "
) -> Path:
    """A text of 20 articles each in train.txt and valid.txt that a `tiny_decoder` predicts.

    Its embeddings are made larger first, so that a word follows mostly from the one before; then
    the articles are drawn from it. It needs `initializer_range=0.05`.

    Args:
        model: Its folder; the weights are changed.
        folder: Made here.
        words: Its vocabulary, with "=" for the titles.
        length: Words of an article.
        between: What stands between them.
    """
    import transformers

    decoder: Any = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    draw = torch.Generator().manual_seed(0)
    articles = torch.randint(1, len(words) + 1, (40, 1), generator=draw)
    with torch.no_grad():
        decoder.get_input_embeddings().weight *= 20
        decoder.get_output_embeddings().weight *= 10
        for _ in range(length):
            shares = decoder(articles[:, -40:]).logits[:, -1].softmax(-1)
            shares[:, [0, 1 + words.index("="), *range(1 + len(words), shares.shape[1])]] = 0
            articles = torch.cat([articles, torch.multinomial(shares, 1, generator=draw)], 1)
    decoder.save_pretrained(model)
    texts = [between.join(words[token - 1] for token in article) for article in articles.tolist()]
    folder.mkdir(parents=True)
    for name, several in (("train", texts[:20]), ("valid", texts[20:])):
        lines = [f" = {text.split()[0] if between else text[0]} = \n{text}\n" for text in several]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def letter_decoder(folder: Path, letters: str, **changes: Any) -> Path:
    """Writes model/, a `tiny_decoder` of three layers whose tokens are letters, blank and line
    end, in a tokenizer such as GGUF files hold, and text/, which it predicts. `changes` are of
    the configuration."""
    tokens = {token: number for number, token in enumerate(["<unk>", *letters, "Ġ", "Ċ", "ĠĠ"])}
    wide = {"vocab_size": len(tokens), "max_position_embeddings": 256, "initializer_range": 0.05}
    tiny_decoder(folder / "model", [*letters], num_hidden_layers=3, **wide, **changes)
    made = Tokenizer(models.BPE(tokens, [("Ġ", "Ġ")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "model" / "tokenizer.json"))
    written_text(folder / "model", folder / "text", [*letters], between="")
    return folder


def learn_rows(folder: Path, rows: list[NextTokenRows], out: Path) -> Path:
    """Trains the decoder in a folder on rows of tasks until it knows their answers by heart, and
    writes it with `byte_tokenizer`."""
    import transformers

    decoder: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.cat([each.tokens for each in rows])
    answers = torch.cat([each.labels for each in rows])[:, 1:].flatten()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        said = decoder(input_ids=tokens, labels=tokens)
        (said.loss + F.cross_entropy(said.logits[:, :-1].flatten(0, 1), answers)).backward()
        optimizer.step()
    decoder.save_pretrained(out)
    return byte_tokenizer(out)


def byte_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer.json whose 256 tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def drawn(make: Callable[[], Any]) -> Any:
    """A small random model, the same each time; its norms and biases are drawn as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        for weight in model.parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, 1.0, 0.2)
    return model
