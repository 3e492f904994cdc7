"""Every model class of transformers that a generic tiny configuration builds, under attach.

    python -m tests.attention.families                  the tables of docs/supported_models.md
    python -m tests.attention.families LlamaForCausalLM GPT2LMHeadModel       a line for each

A class is *exact* where all checks hold, *refused* where attach says why; all else is a fault:

    full()        equals the model without a mask
    causality     no later token moves an earlier output of a causal model
    window(3)     equals the model's own eager attention, with its scores in float64 and a written
                  mask of -inf: without padding, with left and with right padding; causal models
                  also with a dynamic, a static and a masked cache, and with beams
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.auto import modeling_auto

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, MaskSearchError
from masksearch_decoders import MaskedCache
from tests.attention.own_attention import masked_by_hand

KINDS = {  # kind -> mappings of transformers; a class is of the first that has it
    "decoder": ("MODEL_FOR_CAUSAL_LM_MAPPING",),
    "encoder-decoder": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",),
    "encoder": ("MODEL_FOR_MASKED_LM_MAPPING", "MODEL_FOR_TEXT_ENCODING_MAPPING"),
    "vision": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_IMAGE_MAPPING"),
}
LARGEST = 30_000_000  # parameters; what stays larger is not tiny
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "num_tokens"), 64),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "embed_dim", "projection_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("attention_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("max_target_positions", "max_source_positions"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "moe_num_shared_experts", "expert_capacity"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout", "dropout_rate"), 0.0),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "activation_dropout"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_chunk_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **{"num_experts_per_tok": 2, "top_k": 2, "sliding_window": 64, "attention_window": 8},
    **{"image_size": 64, "patch_size": 4, "window_size": 2, "num_channels": 3, "mamba_expand": 2},
    **{"full_attention_interval": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    **{"attn_layer_indices": [1], "rotary_dim": 8, "mamba_d_ssm": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"hidden_size_per_layer_input": 0},
}
PLACES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
HINTS: dict[str, dict[str, Any]] = {  # what no general rule gives
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "GPTNeoConfig": {"attention_types": [[["global"], 2]], "num_layers": 2},
    "BigBirdConfig": {"attention_type": "original_full"},
    "BigBirdPegasusConfig": {"attention_type": "original_full"},
    "EsmcConfig": {"num_key_value_heads": 4},
    "ZayaConfig": {"num_experts_per_tok": 1},
    "ReformerConfig": {"axial_pos_embds_dim": (16, 16)},
    **dict.fromkeys(("DebertaConfig", "DebertaV2Config"), PLACES),
}
LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}
LISTS = {
    "image_size": 64,
    "num_heads": 2,
    "num_attention_heads": 2,
    "depths": 1,
    "hidden_sizes": 32,
}
WINDOW = masks.window(3)
ROWS, TEXT, TARGET, PADDED, NEW = 2, 14, 11, 3, 5
Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Outcome:
    """What came of one class: `verdict` is exact, refused, not run or wrong."""

    name: str
    kind: str
    verdict: str
    note: str = ""


class Wrong(AssertionError):
    """A check that does not hold."""


def classes() -> dict[str, str]:
    """Name of a class -> kind; all that transformers maps, none of which is imported."""
    out: dict[str, str] = {}
    for kind, mappings in KINDS.items():
        for mapping in mappings:
            for several in getattr(modeling_auto, f"{mapping}_NAMES").values():
                for name in several if isinstance(several, (list, tuple)) else (several,):
                    out.setdefault(name, kind)
    return dict(sorted(out.items()))


def settings(config: type, kind: str) -> dict[str, Any]:
    """The sizes that a configuration names, of the configurations inside it as well."""
    default = config()
    sizes = SIZES | ({"is_decoder": True} if kind == "decoder" else {})
    names = {*vars(default), *(getattr(config, "attribute_map", None) or {})}
    chosen: dict[str, Any] = {}
    for name in names & {*sizes, *LISTS}:
        try:
            value = getattr(default, name, None)
        except Exception:  # of transformers: it differs by layer
            continue
        if not isinstance(value, (list, tuple)):
            chosen |= {name: sizes[name]} if name in sizes else {}
        elif name in LISTS:
            chosen[name] = [LISTS[name]] * len(value)
    if "kv_lora_rank" in names:  # as many KV heads as heads
        chosen |= dict.fromkeys(names & {"num_key_value_heads"}, 4)
    if kinds := list(dict.fromkeys(vars(default).get("layer_types") or ())):
        chosen["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        chosen |= dict.fromkeys(names & LAYERS, len(chosen["layer_types"]))
    for name in getattr(config, "sub_configs", None) or {}:
        if isinstance(inner := getattr(default, name, None), hf.PreTrainedConfig):
            chosen[name] = {"model_type": inner.model_type} | settings(type(inner), kind)
    chosen |= HINTS.get(config.__name__, {})
    return chosen


def build(name: str) -> nn.Module:
    """A tiny model of a class, in evaluation mode, whose attention is far from uniform."""
    kind = classes()[name]
    torch.manual_seed(0)
    try:
        made = getattr(hf, name)
        config = made.config_class
        with torch.device("meta"):
            empty = made(config(**settings(config, kind)))
        if (size := sum(each.numel() for each in empty.parameters())) > LARGEST:
            raise NotRun(f"{size:,} parameters")
        model = made(config(**settings(config, kind))).eval()
    except Exception as error:
        raise NotRun(f"{type(error).__name__}: {error}") from error
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(weight)
    return model


class NotRun(Exception):
    """Another configuration, or other inputs, are needed: transformers itself fails."""


# -- the oracle --------------------------------------------------------------------------------
def written(sizes: tuple[int, int] | None, own: Callable[..., Any]) -> Callable[..., Any]:
    """A model's own eager attention with window(3) written out, and its scores in float64.

    Args:
        sizes: Queries and keys of the calls that are masked; None = where they are as many.
        own: The function of the model's file.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **rest: Any,
    ) -> Any:
        mask = attention_mask
        queries, keys = query.shape[2], key.shape[2]
        if (queries, keys) != sizes and (sizes is not None or queries != keys):
            return own(module, query, key, value, mask, **rest)
        far = (torch.arange(queries)[:, None] - torch.arange(keys)).abs() > 3
        hidden = torch.zeros(1, 1, queries, keys, dtype=torch.float64)
        if mask is not None:
            hidden = torch.zeros_like(mask, dtype=torch.float64) + (
                torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask
            )
        states = (each.double() for each in (query, key, value))
        out, weights = own(module, *states, hidden.masked_fill(far, -torch.inf), **rest)
        return out.to(value.dtype), weights

    return attend


OWN = (  # attention of models that do not ask the interface, and that attach takes all the same
    *("MPNetSelfAttention", "DisentangledSelfAttention", "MegatronBertSelfAttention"),
    *("RemBertSelfAttention", "RoFormerSelfAttention", "TapasSelfAttention"),
)


@contextmanager
def oracle(model: nn.Module, sizes: tuple[int, int] | None = None) -> Iterator[None]:
    """The model computes by `written`, or, all of it in float64, under a mask that its own code
    is handed; then all is as it was."""
    if own := [each for each in model.modules() if type(each).__name__ in OWN]:
        with masked_by_hand(dict.fromkeys(own, WINDOW.dense(TEXT)[0])):
            yield model.double()
        model.float()
        return
    before = AttentionInterface.get_interface

    def get_interface(self: Any, name: str, default: Callable[..., Any]) -> Any:
        return written(sizes, default)

    config = model.config
    was = config._attn_implementation
    model.set_attn_implementation("eager")
    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = before
        model.set_attn_implementation(was)


def without_mask(run: Run) -> Tensor:
    """What a model gives by itself, where it takes such inputs at all."""
    try:
        return run()
    except Exception as error:
        raise NotRun(f"{type(error).__name__}: {error}") from error


def close(found: Tensor, wanted: Tensor, what: str, atol: float = 2e-5) -> None:
    """Raises Wrong unless they are close, relative to the largest number."""
    off = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
    if not off <= atol:  # NaN too
        raise Wrong(f"{what}: off by {off:.1e}")


def attach(model: nn.Module, mask: masks.Mask, part: str | None = None) -> None:
    """Puts a mask on; where a model takes no made-up image, its text is given, as attach says."""
    try:
        ms.attach(model, mask, part=part)
    except AttachError as error:
        if "made-up inputs" not in str(error) or "pixel_values" not in str(error):
            raise
        given = {"input_ids": tokens(7)[:1]}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = tokens(5)[:1]
        ms.attach(model, mask, given, part=part)


# -- the checks --------------------------------------------------------------------------------
def tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 50, (ROWS, length), generator=torch.Generator().manual_seed(seed))


def seen(length: int, side: str) -> Tensor:
    """An attention mask whose second row is padded on that side."""
    out = torch.ones(ROWS, length, dtype=torch.int64)
    if side == "left":
        out[1, :PADDED] = 0
    elif side == "right":
        out[1, -PADDED:] = 0
    return out


def states(out: Any) -> Tensor:
    """What a model gives for each position."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(value := getattr(out, name, None), Tensor):
            return value
    return next(value for value in out.values() if isinstance(value, Tensor))


def check_text(model: nn.Module, causal: bool) -> None:
    """A plain model of texts: decoders and encoders."""
    ids = tokens(TEXT)
    how = {"use_cache": False} if causal else {}

    def run(side: str = "", ids: Tensor = ids) -> Tensor:
        real = seen(TEXT, side)
        with torch.no_grad():
            return states(model(ids, attention_mask=real, **how)) * real[..., None]

    later = ids.clone()
    later[:, TEXT // 2 :] = 51
    before = slice(TEXT // 2)
    dense = without_mask(run)
    moves = (dense - run(ids=later))[:, before].abs().max().item()
    attach(model, masks.full())
    close(run(), dense, "full()")
    attach(model, WINDOW)
    found = {side: run(side) for side in ("", "left", "right")}
    if causal:
        moved = (found[""] - run(ids=later))[:, before].abs().max().item()
        if moved > moves + 1e-5:
            raise Wrong(f"earlier outputs move by {moved:.1e} ({moves:.1e} without a mask)")
    if (found[""] - dense).abs().max() < 1e-4:
        raise Wrong("window(3) changes nothing")
    ms.detach(model)
    with oracle(model):
        wanted = {side: run(side) for side in found}
    for side, each in wanted.items():
        close(found[side], each, f"window(3), {side or 'no'} padding")


def check_generation(model: nn.Module) -> str:
    """A decoder's caches and beams; says what is not offered."""
    prompt, missing = tokens(TEXT), []
    config = model.config.get_text_config(decoder=True)

    def generate(side: str, **how: Any) -> Tensor:
        out = model.generate(
            **{"inputs": prompt, "attention_mask": seen(TEXT, side), "max_new_tokens": NEW},
            **{"min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0},
            **{"output_logits": True, "return_dict_in_generate": True, **how},
        )
        return torch.stack(out.logits, 1).float()

    def caches() -> dict[str, Callable[[], Any]]:
        most = TEXT + NEW
        return {
            "dynamic": lambda: hf.DynamicCache(config=config),
            "static": lambda: hf.StaticCache(config=config, max_cache_len=most),
            "masked": lambda: MaskedCache(model, length=most),
        }

    beams = {"num_beams": 3, "num_return_sequences": 1}
    sides, dense = ("", "left"), generate("", use_cache=False)
    with oracle(model):
        wanted = {side: generate(side, use_cache=False) for side in sides}
        wanted["beams"] = generate("", use_cache=False, **beams)
    for name, make in caches().items():
        if name != "masked":
            try:
                close(generate("", past_key_values=make()), dense, "without a mask", 1e-4)
            except Exception as error:  # of transformers, or its own cache is not exact
                missing.append(f"{name} cache: {type(error).__name__} {error}")
                continue
        attach(model, WINDOW)
        try:
            for side in sides:
                try:
                    found = generate(side, past_key_values=make())
                except Exception as error:  # of masksearch, or of a model with its own cache
                    if name != "masked" or not isinstance(error, (MaskSearchError, ValueError)):
                        raise
                    missing.append(f"masked cache: {error}")
                    break
                close(found, wanted[side], f"{name} cache, {side or 'no'} padding", 1e-4)
            if name == "dynamic":
                found = generate("", past_key_values=make(), **beams)
                close(found, wanted["beams"], "beams", 1e-4)
        finally:
            ms.detach(model, missing_ok=True)
    return "; ".join(missing)


def check_pairs(model: nn.Module) -> str:
    """An encoder-decoder, part by part; says which parts it has."""
    source, target = tokens(TEXT), tokens(TARGET, 1)
    sizes = {"encoder": (TEXT, TEXT), "decoder": (TARGET, TARGET), "cross": (TARGET, TEXT)}
    later = target.clone()
    later[:, TARGET // 2 :] = 51

    def run(side: str = "", target: Tensor = target) -> Tensor:
        padding = {"attention_mask": seen(TEXT, side)}
        given = {"input_ids": source, "decoder_input_ids": target, "use_cache": False}
        with torch.no_grad():
            return states(model(**given, **padding))

    dense, parts, refused = without_mask(run), [], {}
    moves = (dense - run(target=later))[:, : TARGET // 2].abs().max().item()
    for part, lengths in sizes.items():
        try:
            attach(model, masks.full(), part=part)
        except MaskSearchError as error:
            refused[part] = error
            continue
        close(run(), dense, f"full(), {part}")
        attach(model, WINDOW, part=part)
        found = {side: run(side) for side in ("", "left", "right")}
        moved = (found[""] - run(target=later))[:, : TARGET // 2].abs().max().item()
        if moved > moves + 1e-5:
            raise Wrong(f"{part}: earlier outputs move by {moved:.1e} ({moves:.1e} without)")
        if torch.equal(found[""], dense):
            raise Wrong(f"window(3) on the {part} changes nothing")
        ms.detach(model)
        with oracle(model, lengths):
            wanted = {side: run(side) for side in found}
        for side, each in wanted.items():
            close(found[side], each, f"window(3), {part}, {side or 'no'} padding")
        parts.append(part)
    if not parts:
        raise next(iter(refused.values()))
    why = "; ".join(f"{part}: {error}" for part, error in refused.items())
    return "" if not why else f"{', '.join(parts)} alone ({why})"


def check_images(model: nn.Module) -> None:
    """A vision tower."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 64)
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    source = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 3, *sides, generator=source)

    def run() -> Tensor:
        torch.manual_seed(1)  # ViT-MAE leaves out patches by chance
        with torch.no_grad():
            return states(model(pixel_values=pixels))

    dense = without_mask(run)
    attach(model, masks.full())
    close(run(), dense, "full()")
    attach(model, WINDOW)
    found = run()
    ms.detach(model)
    with oracle(model):
        close(found, run(), "window(3)")


def check(name: str) -> Outcome:
    """All checks of one class."""
    kind = classes()[name]
    outcome = Outcome(name, kind, "exact")
    try:
        model = build(name)
        if kind == "vision":
            check_images(model)
        elif model.config.is_encoder_decoder:
            outcome = replace(outcome, note=check_pairs(model))
        else:
            check_text(model, kind != "encoder")
            if kind != "encoder":
                outcome = replace(outcome, note=check_generation(model))
    except NotRun as error:
        return Outcome(name, kind, "not run", str(error))
    except Wrong as error:
        return Outcome(name, kind, "wrong", str(error))
    except MaskSearchError as error:
        return Outcome(name, kind, "refused", str(error))
    return outcome


# -- the page ----------------------------------------------------------------------------------
VERDICTS = {"exact": "attached exactly", "refused": "refused", "not run": "not run"}
REASONS = {  # part of what attach says -> what the page says
    "does not use transformers' attention interface": "no call of transformers' interface",
    "soft cap": "a soft cap on the scores",
    "cuts its sequence": "attends within pieces of its sequence",
    "no sequence of the model has": "attends to pooled keys, or its own choice of them",
    "and the text has": "attends with other positions than those of the text",
    "heads cannot share one mask": "layers differ in their number of heads",
    "made-up inputs": "fails with a few tokens or one image: give attach inputs=",
    "of equal length": "the decoder shows no cross-attention",
}


def reason(note: str) -> str:
    """A refusal in the few words of the page."""
    return next((few for part, few in REASONS.items() if part in note), note.split(";")[0])


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def page(outcomes: list[Outcome]) -> str:
    """The tables, as Markdown."""
    lines = ["| kind | " + " | ".join(VERDICTS.values()) + " |", "|---|---|---|---|"]
    for kind in KINDS:
        mine = [each.verdict for each in outcomes if each.kind == kind]
        lines.append(f"| {kind} | " + " | ".join(str(mine.count(v)) for v in VERDICTS) + " |")
    for verdict in dict.fromkeys([*VERDICTS, *(each.verdict for each in outcomes)]):
        lines += ["", f"### {VERDICTS.get(verdict, verdict).capitalize()}", ""]
        rows = [each for each in outcomes if each.verdict == verdict]
        by: dict[str, list[str]] = {}
        for each in rows:
            by.setdefault(reason(each.note) if verdict == "refused" else each.kind, []).append(
                each.name
            )
        lines += [
            "| kind | classes |" if verdict != "refused" else "| why | classes |",
            "|---|---|",
        ]
        lines += [f"| {which} | {listed(names)} |" for which, names in by.items()]
    lines += ["", "### Exact, with a limit", "", "| class | limit |", "|---|---|"]
    limits = [each for each in outcomes if each.verdict == "exact" and each.note]
    lines += [f"| `{each.name}` | {' '.join(each.note.split())[:200]} |" for each in limits]
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    asked = sys.argv[1:]
    results = []
    for each in asked or classes():
        results.append(check(each))
        print(*vars(results[-1]).values(), sep=": ", file=sys.stdout if asked else sys.stderr)
    if not asked:
        print(f"## transformers {hf.__version__}\n\n{page(results)}")
