"""Small random models of the families that are written as GGUF, and tokenizers for them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_encoders import sizes
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts
from tokenizers.processors import TemplateProcessing

SLIDE, FULL = "sliding_attention", "full_attention"
TYPES = {"layer_types": [SLIDE, FULL, SLIDE, SLIDE], "sliding_window": 16}  # no period
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WEIGHTS = {"initializer_range": 0.2, "attn_implementation": "eager"}
SIZES = sizes(310, 64, 4, 4, 96, 512, num_key_value_heads=2, **IDS, **WEIGHTS)
WIDE = {"head_dim": 32}  # not 64 / 4
START = {"rope_theta": 10000.0, "original_max_position_embeddings": 128, "factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", **START}
LLAMA3 = {"rope_type": "llama3", **START, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NEAR = {"rope_type": "default", "rope_theta": 5000.0}
SAME = {"rope_type": "default", "rope_theta": 10000.0}
MULTIPLIERS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.5,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, all": ("Llama", WIDE | BIASES | {"rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR, "tie_word_embeddings": True}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "granite": ("GraniteSWA", TYPES | {"attention_multiplier": 0.25}),
    "granite, all": (
        "GraniteSWA",
        TYPES
        | WIDE
        | BIASES
        | MULTIPLIERS
        | {"rope_parameters": LLAMA3, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "Gemma3",
        TYPES
        | WIDE
        | {"query_pre_attn_scalar": 32, "final_logit_softcapping": 15.0}
        | {"initializer_range": 0.04}  # ggml's GELU is a table of half precision
        | {"rope_parameters": {FULL: LINEAR, SLIDE: NEAR}},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", TYPES | {"tie_word_embeddings": True}),
    "olmo3, yarn": ("Olmo3", TYPES | {"rope_parameters": {FULL: YARN, SLIDE: SAME}}),
    "exaone4": ("Exaone4",
        {"sliding_window": None, "layer_types": [FULL] * 4} | {"rope_parameters": LLAMA3}),
    "exaone4, 64 layers": ("Exaone4",
        TYPES | {"num_hidden_layers": 64, "layer_types": TYPES["layer_types"] * 16}),
    "cohere2": ("Cohere2", TYPES | {"logit_scale": 0.7}),
    "modernbert": (
        "ModernBert",
        {
            "layer_types": [FULL, SLIDE, SLIDE, FULL],
            "local_attention": 16,
            "initializer_range": 0.1,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
}  # fmt: skip


def build(name: str, **changes: Any) -> Any:
    """A model of a row of `MODELS`; norms, biases and sinks are drawn as well."""
    family, own = MODELS[name]
    text = "Text" if family == "Gemma3" else ""
    cls = getattr(hf, family + ("ForMaskedLM" if family == "ModernBert" else "ForCausalLM"))
    config = getattr(hf, f"{family}{text}Config")(**SIZES | own | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                mean = 0.0 if name.endswith("bias") or family == "Gemma3" else 1.0
                torch.nn.init.normal_(weight, mean, 0.3)
    return model


# -- tokenizers --------------------------------------------------------------------------------
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("gpt-2", "smollm", "qwen2", "llama-bpe", "dbrx", "spm", "spm, space before")
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
LEARNT = Path(__file__).parents[2]  # README and code of this repository


def tokenizer_folder(folder: Path, kind: str) -> Path:
    """Learns a tokenizer of 1,000 tokens (300 of kind gpt-2) and writes it."""
    texts = [(LEARNT / name).read_text() for name in ("README.md", "masksearch/driver.py")]
    texts += [*TEXTS] * 5
    spm = kind.startswith("spm")
    made = Tokenizer(models.BPE(byte_fallback=spm, ignore_merges=kind == "llama-bpe"))
    if spm:
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Replace("▁", " ")
    else:
        pattern = WORDS.replace("{1,3}", "") if kind == "qwen2" else WORDS
        bytes_alone = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = {
            "gpt-2": cuts.ByteLevel(add_prefix_space=False),
            "smollm": cuts.Sequence(
                [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
            ),
        }.get(kind) or cuts.Sequence([cuts.Split(Regex(pattern), "isolated"), bytes_alone])
        made.decoder = decoders.ByteLevel()
        if kind == "qwen2":
            made.normalizer = normalizers.NFC()
    alphabet = [] if spm else cuts.ByteLevel.alphabet()
    size = 300 if kind == "gpt-2" else 740 if spm else 1000
    learn = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        **({"limit_alphabet": 120} if spm else {}),
    )
    made.train_from_iterator(texts, learn)
    if kind in ("llama-bpe", "spm"):
        made.post_processor = TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    made.add_tokens([AddedToken("<mine>", normalized=kind != "spm, space before")])
    data = json.loads(made.to_str())
    if spm:  # as sentencepiece has them: bytes, and every way to make a token is a merge
        vocabulary = data["model"]["vocab"]
        for byte in range(256):
            vocabulary[f"<0x{byte:02X}>"] = len(vocabulary) + 1
        data["model"]["unk_token"] = "<unk>"
        data["model"]["merges"] = [
            [token[:at], token[at:]]
            for token in vocabulary
            for at in range(1, len(token))
            if token not in SPECIAL and {token[:at], token[at:]} <= {*vocabulary}
        ]
        if kind != "spm":
            before = {"type": "Prepend", "prepend": "▁"}
            data["normalizer"] = {"type": "Sequence", "normalizers": [before, data["normalizer"]]}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


PARTS = [
    "", " ", "  ", "   \n", "\n\n", "\t", " \r\n ", "a", "Ab", " word", "words", "I'm", "WE'LL",
    "don't", "x1", "2024", " 1234567", "3.14", "1,000", "é", "naïve", "Å", "ß", "Привет", "漢字",
    "日本語です", "🦙", "👩\u200d🚀", "...", "?!", "--", "def f(x):\n    return x", "a_b", "#!",
    "{'k': [1]}", "<eos>", "<mine>", "<|x|>", "▁", "\u00a0", "İ", "ﬁ", "½", "x²", "٣", "'S", "`x`",
]  # fmt: skip
TEXTS = [left + right for left in PARTS for right in PARTS[::6]] + [
    f"{left} {right}" for left in PARTS[::9] for right in PARTS
]
