"""A model and its tokenizer as one GGUF file, which llama.cpp and all that is built on it read.

    native = to_native(model, mask)
    to_gguf(native, "model.gguf", tokenizer="folder")

Layers with windows are an array in the file, so any pattern can be served. What llama.cpp would
not read, or would read as something else, is refused: nothing is served that was not asked for.
What its reader wants was read in the llama.cpp of llama-cpp-python 0.3.36 (`src/models`,
`src/llama-vocab.cpp`); tests/test_llama_cpp.py runs that version.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from masksearch.attention.attach import in_force
from masksearch.errors import NativeError, install_command, warn
from masksearch.files import write_in_one_move
from masksearch_decoders.engine import FULL, SLIDING, Serving
from masksearch_decoders.engines.llama_cpp import LLAMA_CPP, OLDEST, LlamaCpp

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Family:
    """How llama.cpp reads a family of models.

    Args:
        names: The entry of `gguf.MODEL_ARCH` that has its tensors' names.
        arch: What the file says it is.
        fixed: What llama.cpp computes with, whatever the configuration says.
        ropes: Kinds of rotary positions, of the layers that see everything.
        windows: Whether it reads which layers slide.
        pairs: Whether it turns neighbouring numbers of a head, not the two halves.
        biases: Whether it reads biases.
        any_width: Whether heads may be of another width than hidden size / heads.
        eps: Field of the configuration with the norms' epsilon.
    """

    names: str
    arch: str
    fixed: tuple[tuple[str, Any], ...] = (("hidden_act", "silu"),)
    ropes: tuple[str, ...] = ("default",)
    windows: bool = True
    pairs: bool = False
    biases: bool = False
    any_width: bool = False
    eps: str = "rms_norm_eps"


LLAMA: dict[str, Any] = {"pairs": True, "biases": True, "any_width": True}
LLAMA |= {"ropes": ("default", "linear", "llama3", "yarn")}
SCALED = ("default", "linear", "yarn")
GEMMA3: tuple[tuple[str, Any], ...] = (("hidden_activation", "gelu_pytorch_tanh"),)
GEMMA3 += (("attn_logit_softcapping", None), ("use_bidirectional_attention", False))
GELU = (("hidden_activation", "gelu"),)
FAMILIES = {  # by model_type
    "llama": Family("LLAMA", "llama", windows=False, **LLAMA),
    "qwen2": Family("QWEN2", "qwen2", ropes=SCALED, windows=False, biases=True),
    "granite_swa": Family("GRANITE", "granite_swa", **LLAMA),
    "gemma3_text": Family("GEMMA3", "gemma3", GEMMA3, ("default", "linear"), any_width=True),
    "olmo2": Family("OLMO2", "olmo2", ropes=SCALED, windows=False),
    "olmo3": Family("OLMO2", "olmo2", ropes=("default", "yarn")),
    "exaone4": Family("EXAONE4", "exaone4", ropes=("default", "llama3")),
    "cohere2": Family("COHERE2", "cohere2", eps="layer_norm_eps"),
    "modernbert": Family("MODERN_BERT", "modern-bert", GELU, eps="norm_eps"),
}

REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ANY = {"trim_offsets": True}  # of offsets, which a file does not have
BYTES = ANY | {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
DIGITS = ANY | {"type": "Digits", "individual_digits": True}
SPLIT = ANY | {"type": "Split", "behavior": "Isolated", "invert": False}
QWEN2 = SPLIT | {"pattern": {"Regex": REGEX}}
LLAMA3 = SPLIT | {"pattern": {"Regex": REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")}}
PRE_TOKENIZERS = {  # llama.cpp's name: what cuts the text, and `ignore_merges`
    "gpt-2": ([GPT2], False),
    "smollm": ([DIGITS, GPT2], False),
    "qwen2": ([QWEN2, BYTES], False),
    "llama-bpe": ([LLAMA3, BYTES], True),
    "dbrx": ([LLAMA3, BYTES], False),
}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SENTENCEPIECE = {  # whether a space comes before the text: how it is normalised
    False: [SPACES],
    True: [{"type": "Prepend", "prepend": "▁"}, SPACES],
}


def to_gguf(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model of transformers, with the windows of its configuration, as one GGUF file.

    llama.cpp computes the model's logits from it; of ModernBERT the encoder alone is written,
    for embeddings. Norms, biases and sinks stay float32.

    Args:
        model: A Llama, Qwen2, OLMo 2 (without windows), GraniteSWA, Gemma 3 (text), OLMo 3,
            EXAONE 4, Cohere 2 or ModernBERT; to put a mask into its configuration see
            `to_native`.
        path: The file; there is none yet.
        tokenizer: Folder with the tokenizer.json; None = where the model was loaded from.
        dtype: Of the matrices: float32, float16 or bfloat16; None = the model's.

    Returns:
        The path.

    Raises:
        NativeError: If llama.cpp would not read the family, one of its settings, a weight or the
            tokenizer as transformers does. Nothing has been written then.
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no tokenizer.json.
        ImportError: If the package gguf is missing.

    >>> import masksearch as ms
    >>> to_gguf(model, "model.gguf", tokenizer="checkpoint/")  # doctest: +SKIP
    """
    writer, family, tensors = begin_file(model, tokenizer, dtype)
    import gguf

    if reason := _too_old(model.config):
        warn(reason)

    config, dtype, path = model.config, dtype or model.dtype, Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it, or give another path")
    writer.add_name(path.stem)
    stored = {name: dtype if each.ndim > 1 else torch.float32 for name, each in tensors.items()}
    for name, each in tensors.items():
        quant = gguf.GGMLQuantizationType[DTYPES[stored[name]]]
        size = each.numel() * stored[name].itemsize  # bytes
        writer.add_tensor_info(name, each.shape, np.dtype("f4"), size, raw_dtype=quant)
    count = {"q": "num_attention_heads", "k": "num_key_value_heads"}
    with write_in_one_move(path) as beside, closing(writer):
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            values = tensor.to("cpu", stored[name])
            if family.pairs and (matched := re.search(r"attn_([qk])\.", name)):
                heads = getattr(config, count[matched[1]])
                halves = values.reshape(heads, 2, -1, *tensor.shape[1:])
                values = halves.transpose(1, 2).reshape(tensor.shape)
            if family.arch == "gemma3" and name.endswith("norm.weight"):
                values = values + 1
            if not values.isfinite().all():
                raise NativeError(f"{name} is not finite in {DTYPES[dtype]}; give another dtype")
            writer.write_tensor_data(values.contiguous().view(torch.uint8).numpy())
    return path


def _too_old(config: PreTrainedConfig) -> str:
    """Why the llama-cpp-python that is installed need not read which layers slide; or empty."""
    row, types = LLAMA_CPP.readings.get(config.model_type), getattr(config, "layer_types", None)
    if find_spec("llama_cpp") is None or not (row and row.since and SLIDING in (types or ())):
        return ""
    installed = version("llama-cpp-python")
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) >= OLDEST:
        return ""
    return (
        f"llama-cpp-python {installed} may slide other layers of this {config.model_type}, "
        f"without a word: it needs {row.since}"
    )


def try_gguf(path: Path, tokens: Tensor, config: PreTrainedConfig) -> tuple[str, float | None]:
    """Opens a file, where a llama-cpp-python is installed that reads it.

    Returns:
        What opened it, and its mean loss of each token but the first; None where nothing did.
    """
    if find_spec("llama_cpp") is None:
        return "nothing: llama-cpp-python is not installed", None
    if reason := _too_old(config):
        return f"nothing: {reason}", None
    with LlamaCpp(path, Serving(length=len(tokens), ubatch=64)) as engine:
        return f"llama-cpp-python {engine.version}", float(engine.losses(tokens).mean())


def begin_file(
    model: PreTrainedModel, tokenizer: str | Path | None, dtype: torch.dtype | None
) -> tuple[Any, Family, dict[str, Tensor]]:
    """The head of a file, before its tensors, and these by their names; see `to_gguf`."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"to_gguf needs the package gguf: {install_command('decoders')}"
        ) from error
    family, config, dtype = family_of(model), model.config, dtype or model.dtype
    if dtype not in DTYPES:
        raise NativeError(f"to_gguf takes dtype={', '.join(map(str, DTYPES))}, got {dtype!r}")
    writer = gguf.GGUFWriter(None, family.arch)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    _add_settings(writer, family, config, width)
    tensors = _named_tensors(model, family) | _add_rope(writer, family, config, width)
    _add_tokenizer(writer, tokenizer or model.name_or_path, config.vocab_size)
    kind = DTYPES[dtype]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    return writer, family, tensors


def family_of(model: PreTrainedModel) -> Family:
    """How llama.cpp reads a model.

    Raises:
        NativeError: If it does not, or would compute something else.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise NativeError(f"to_gguf takes a model of transformers, got {name}")
    config = model.config
    if in_force(model) is not None:
        raise NativeError(f"{name} has a mask attached; give to_native(model, mask)")
    if config.model_type not in FAMILIES:
        raise NativeError(f"{name} is a {config.model_type}; to_gguf knows {', '.join(FAMILIES)}")
    family = FAMILIES[config.model_type]
    slides = SLIDING in (types := getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    width = getattr(config, "head_dim", None)
    whole = config.hidden_size / config.num_attention_heads
    settings = tuple((key, getattr(config, key)) for key, _ in family.fixed)
    scale = whole if len(types) == 62 else width  # of Gemma 3
    wrong = ""
    if family.arch != "modern-bert" and not hasattr(model, "lm_head"):
        wrong = "needs its output layer; give the model ..ForCausalLM"
    elif settings != family.fixed:
        wrong = f"has {dict(settings)}, and llama.cpp computes with {dict(family.fixed)}"
    elif slides and not family.windows:
        wrong = f"slides, and llama.cpp reads no windows of {family.arch}; make it a GraniteSWA"
    elif slides and not window:
        wrong = f"has sliding layers and sliding_window {window}; give a window"
    elif not slides and family.arch in ("granite_swa", "cohere2"):
        wrong = "has no sliding layer, and llama.cpp wants one in this family; give one a window"
    elif family.arch == "exaone4" and (len(types) == 64, window is not None) != (slides, slides):
        wrong = f"has {types.count(SLIDING)} sliding layers, sliding_window {window}; llama.cpp "
        wrong += "takes some and a window at 64 layers, none and None at other numbers"
    elif width and width != whole and not family.any_width:
        wrong = f"has head_dim {width}; llama.cpp takes hidden size / heads = {whole:g}"
    elif family.arch == "gemma3" and config.query_pre_attn_scalar != scale:
        wrong = f"has query_pre_attn_scalar {config.query_pre_attn_scalar}, llama.cpp {scale}"
    if wrong:
        raise NativeError(f"{name} {wrong}")
    return family


def _named_tensors(model: PreTrainedModel, family: Family) -> dict[str, Tensor]:
    """The weights by their names in the file.

    Raises:
        NativeError: If llama.cpp has no place for one of them.
    """
    import gguf

    state = (model.base_model if family.arch == "modern-bert" else model).state_dict()
    head = state.get("lm_head.weight")  # whatever tie_word_embeddings says; olmo2 wants both
    if head is not None and family.arch != "olmo2":
        if torch.equal(head, model.get_input_embeddings().weight):
            del state["lm_head.weight"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.names], model.config.num_hidden_layers)
    sinks = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ATTN_SINKS]
    tensors = {}
    for name, tensor in state.items():
        name_there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if matched := re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.sinks", name):
            name_there = sinks.format(bid=matched[1]) + ".weight"
        if name_there is None or (name.endswith(".bias") and not family.biases):
            raise NativeError(
                f"{type(model).__name__} has the weight {name}, for which llama.cpp has no place "
                f"in {family.arch}; merge adapters and undo quantisation first"
            )
        tensors[name_there] = tensor
    return tensors


def _add_settings(writer: Any, family: Family, config: PreTrainedConfig, width: int) -> None:
    """Writes sizes, scales and windows."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if family.arch != "modern-bert":
        writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config.vocab_size)
    eps = {"rms_norm_eps": writer.add_layer_norm_rms_eps}
    eps.get(family.eps, writer.add_layer_norm_eps)(getattr(config, family.eps))
    if family.arch == "granite_swa":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if family.arch == "cohere2":
        writer.add_logit_scale(config.logit_scale)
    if family.arch == "gemma3" and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.arch == "modern-bert":
        writer.add_causal_attention(False)
    if SLIDING in (getattr(config, "layer_types", None) or []):
        both = 2 if family.arch == "modern-bert" else 1  # its window lies on both sides
        writer.add_sliding_window(both * config.sliding_window)
        writer.add_sliding_window_pattern([kind == SLIDING for kind in config.layer_types])


def _add_rope(
    writer: Any, family: Family, config: PreTrainedConfig, width: int
) -> dict[str, Tensor]:
    """Writes rotary positions.

    Returns:
        Of the kind llama3 what divides each frequency, float32 `[width / 2]`, by its name.

    Raises:
        NativeError: If llama.cpp turns positions by other angles.
    """
    ropes = config.rope_parameters
    whole = {key: value for key, value in ropes.get(FULL, ropes).items() if value is not None}
    near = ropes.get(SLIDING, whole)
    kind, factor, theta = whole["rope_type"], whole.get("factor", 1.0), whole["rope_theta"]
    usual = {"partial_rotary_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    usual["attention_factor"] = 0.1 * math.log(factor) + 1.0
    two_thetas = family.arch in ("gemma3", "modern-bert")  # sliding layers with another theta
    thetas = {theta, *getattr(config, "layer_rope_theta", ())}
    if (
        kind not in family.ropes
        or (kind == "yarn" and whole.get("factor", 0.0) < 1)
        or any(abs(whole.get(key, value) - value) > 1e-6 for key, value in usual.items())
        or {"mscale", "mscale_all_dim"} & {*whole}
        or (FULL in ropes and near["rope_type"] != "default")
        or len(thetas if two_thetas else thetas | {near["rope_theta"]}) > 1
    ):
        kinds = f"it takes {' or '.join(family.ropes)}"
        kinds += ", the last with a factor from 1 on" * (family.ropes[-1] == "yarn")
        raise NativeError(f"llama.cpp turns {family.arch} otherwise than {ropes}; {kinds}")
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(theta)
    if two_thetas:
        writer.add_rope_freq_base_swa(near["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_string(f"{family.arch}.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(factor)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(whole["original_max_position_embeddings"])
    if kind != "llama3":
        return {}
    turned = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    return {"rope_freqs.weight": torch.pow(theta, -torch.arange(0, width, 2) / width) / turned}


def _read_cuts(file: Path, data: dict[str, Any]) -> tuple[str | None, bool | None]:
    """How llama.cpp cuts text as a tokenizer does: its name of what cuts bytes, or of
    sentencepiece whether a space comes before the text.

    Raises:
        NativeError: If it has no such tokenizer.
    """
    model, cut, normal = data["model"], data["pre_tokenizer"] or {}, data["normalizer"] or {}
    cuts = [dict(each, trim_offsets=True) for each in cut.get("pretokenizers", [cut])]
    bpe, steps = model["type"] == "BPE", normal.get("normalizers", [normal])
    pre = prefix = None
    if bpe and not model["byte_fallback"] and normal in ({}, {"type": "NFC"}):
        how = (cuts, model["ignore_merges"])
        pre = next((name for name, form in PRE_TOKENIZERS.items() if form == how), None)
    elif bpe and model["byte_fallback"] and (not cut or cut.get("pattern") == {"String": " "}):
        prefix = next((space for space, form in SENTENCEPIECE.items() if form == steps), None)
    if prefix and any(each["normalized"] for each in data["added_tokens"]):
        prefix = None  # the space would come before them as well
    if pre is None and prefix is None:
        raise NativeError(
            f"llama.cpp has no tokenizer like {file}: model {model['type']}, normalizer "
            f"{json.dumps(normal)}, pre_tokenizer {json.dumps(cut)}"
        )
    return pre, prefix


def _add_tokenizer(writer: Any, folder: str | Path | None, rows: int) -> None:
    """Writes the vocabulary, and how text is cut.

    Args:
        writer: The file.
        folder: Where the tokenizer.json is.
        rows: Tokens that the model has embeddings for.

    Raises:
        FileNotFoundError: If there is none.
        NativeError: If llama.cpp has no such tokenizer.
    """
    import gguf

    file = Path(folder or "") / "tokenizer.json"
    if not folder or not file.is_file():
        raise FileNotFoundError(f"no {file}; give the folder of the tokenizer as tokenizer=")
    whole = Tokenizer.from_file(str(file))
    data = json.loads(whole.to_str())
    model, added = data["model"], {each["id"]: each for each in data["added_tokens"]}
    pre, prefix = _read_cuts(file, data)
    ids = {index: token for token, index in model["vocab"].items()}
    ids |= {index: each["content"] for index, each in added.items()}
    if not model["merges"]:
        raise NativeError(f"{file} has no merges, without which llama.cpp opens no file")
    if max(ids) >= rows:
        raise NativeError(f"{file} has the token {max(ids)}, and the model {rows} embeddings")
    pairs, made = {*map(tuple, model["merges"])}, [*map("".join, model["merges"])]
    ranks = {token: -float(rank) for rank, token in reversed(list(enumerate(made)))}
    if prefix is not None and (
        len([token for token, _ in groupby(made)]) > len(ranks)
        or any(
            (token[:at], token[at:]) not in pairs
            for token, index in model["vocab"].items()
            for at in range(1, len(token) * (index not in added))
            if token[:at] in model["vocab"] and token[at:] in model["vocab"]
        )
    ):
        raise NativeError(f"{file} has other merges than sentencepiece, and llama.cpp reads those")
    types = gguf.TokenType
    kinds = [types.NORMAL if index in ids else types.UNUSED for index in range(rows)]
    for index, token in ids.items():
        if index in added:
            kinds[index] = types.CONTROL if added[index]["special"] else types.USER_DEFINED
        if prefix is not None and re.fullmatch("<0x[0-9A-F]{2}>", token):
            kinds[index] = types.BYTE
        if prefix is not None and token == model["unk_token"]:
            kinds[index] = types.UNKNOWN
    writer.add_tokenizer_model("gpt2" if prefix is None else "llama")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list([ids.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types(kinds)
    if prefix is not None:
        writer.add_token_scores([ranks.get(ids.get(index, ""), -1e9) for index in range(rows)])
        writer.add_add_space_prefix(prefix)
    special = gguf.SpecialVocab(file.parent, load_merges=prefix is None, n_vocab=rows)
    bare, every = whole.encode("a", add_special_tokens=False).ids, whole.encode("a").ids
    start = every.index(bare[0]) if bare else 0
    for role, ends in (("bos", every[:start]), ("eos", every[start + len(bare) :])):
        if len(ends) > 1:
            raise NativeError(f"{file} puts {len(ends)} tokens at an end; llama.cpp puts one")
        special.add_special_token[role] = bool(ends)
        special.special_token_ids |= dict(zip([role], ends, strict=False))
    special.add_to_gguf(writer, quiet=True)
