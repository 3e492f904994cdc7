"""Every architecture that attach must serve, tiny and random, behind one interface."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_encoders import seeded
from torch import Tensor, nn

from masksearch.attention.layer import STATE

Make = Callable[[int, int], nn.Module]  # layers and positions -> the model
HEADS, VOCABULARY, WIDTH = 4, 50, 32
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "attn_implementation": "sdpa",
    "pad_token_id": 1,
    "eos_token_id": None,
}
PLAIN: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
}
DRY: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**SMALL, **PLAIN, **DRY}
IMAGE: dict[str, Any] = {
    **PLAIN,
    **DRY,
    "initializer_range": 0.2,
    "attn_implementation": "sdpa",
    "patch_size": 1,
    "num_channels": 3,
}
TEXT = 17  # positions of a text; of an image there are side * side and its special tokens
SIDE = 4
TARGET = 11  # positions of a decoder's text where there is an encoder as well


def text(kind: Any, beyond: int, fields: dict[str, Any], **how: Any) -> Make:
    """A maker of encoders of one text; `beyond` positions more than the text has."""

    def make(layers: int, length: int) -> nn.Module:
        places = {"max_position_embeddings": length + beyond, "num_hidden_layers": layers}
        return kind(kind.config_class(**fields | places), **how)

    return make


GROUPED = {**SMALL, **PLAIN}
NARROW = BERT | {"embedding_size": 16}
BARE = {"add_pooling_layer": False}
bert = text(hf.BertModel, 2, BERT, **BARE)
roberta = text(hf.RobertaModel, 2, BERT, **BARE)
electra = text(hf.ElectraModel, 0, NARROW)
albert = text(hf.AlbertModel, 0, NARROW, **BARE)
DISTIL = {"dim": WIDTH, "n_heads": HEADS, "hidden_dim": WIDTH, "attention_dropout": 0.0}
distilbert = text(hf.DistilBertModel, 0, SMALL | DISTIL | {"dropout": 0.0})
MODERN = {"local_attention": 2000, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0}
modernbert = text(hf.ModernBertModel, 0, GROUPED | MODERN)  # its windows hold every text here
ROTARY = {"position_embedding_type": "rotary", "token_dropout": False, "mask_token_id": 2}
esm = text(hf.EsmModel, 2, BERT | ROTARY, **BARE)
OWN = BERT | {"attn_implementation": "eager"}  # code of their own: sdpa is no choice
mpnet = text(hf.MPNetModel, 2, OWN, **BARE)
PLACES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
deberta = text(hf.DebertaModel, 0, OWN | PLACES)
BUCKETS = PLACES | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
deberta_v3 = text(hf.DebertaV2Model, 0, OWN | BUCKETS | {"position_biased_input": False})
roformer = text(hf.RoFormerModel, 0, OWN)


def gpt2_config(layers: int, length: int) -> hf.GPT2Config:
    sizes = {"n_embd": WIDTH, "n_head": HEADS, "n_positions": length, "n_layer": layers}
    return hf.GPT2Config(
        **SMALL, **sizes, bos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )


def llama_config(layers: int, length: int) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        **GROUPED, num_key_value_heads=2, num_hidden_layers=layers, max_position_embeddings=length
    )


def qwen3_config(layers: int, length: int) -> hf.Qwen3Config:
    return hf.Qwen3Config(
        **GROUPED,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=layers,
        max_position_embeddings=length,
    )


def t5_config(layers: int, length: int) -> hf.T5Config:
    return hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=layers,
        num_heads=HEADS,
        initializer_factor=1.0,
        dropout_rate=0.0,
        pad_token_id=1,
        eos_token_id=None,
        decoder_start_token_id=1,
        attn_implementation="sdpa",
    )


def bart_config(layers: int, length: int) -> hf.BartConfig:
    return hf.BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        max_position_embeddings=length,
        init_std=0.2,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=2,
        attn_implementation="sdpa",
    )


def image_side(length: int) -> int:
    """Of the square images whose patches, with a few special tokens, are about that many."""
    return SIDE if length == TEXT else int(length**0.5)


def image(kind: Any, fields: dict[str, Any], **how: Any) -> Make:
    """A maker of encoders of square images."""

    def make(layers: int, length: int) -> nn.Module:
        places = {"image_size": image_side(length), "num_hidden_layers": layers}
        model = kind(kind.config_class(**fields | places), **how)
        if kind is hf.DeiTModel:  # zeros by default: equal states, steep norms
            nn.init.normal_(model.embeddings.cls_token)
            nn.init.normal_(model.embeddings.distillation_token)
        return model

    return make


vit = image(hf.ViTModel, IMAGE, **BARE)
deit = image(hf.DeiTModel, IMAGE, **BARE)
dinov2 = image(hf.Dinov2Model, IMAGE | {"mlp_ratio": 1, "layerscale_value": 1.0})


def clip(layers: int, length: int) -> nn.Module:
    tower = {**PLAIN, "num_hidden_layers": layers, "projection_dim": WIDTH}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": length}
    text |= {"bos_token_id": 0, "eos_token_id": 2}
    image = {"image_size": image_side(length), "patch_size": 1}
    config = hf.CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, **image},
        projection_dim=WIDTH,
        initializer_factor=5.0,
        attn_implementation="sdpa",
    )
    return hf.CLIPModel(config)


@dataclass(frozen=True)
class Architecture:
    """One kind of attention layer of one model, and how to run it.

    Args:
        name: Of the test.
        make: Layers and positions -> the model.
        modules: Regular expression of the attention modules' names.
        takes: `"text"`, `"image"`, `"texts"` (of an encoder and a decoder) or `"both"` (CLIP).
        part: What `attach` is told; None for a plain model.
        causal: Whether the model itself hides the future.
        reads: The output that these layers make, as a dotted name.
        extra: Positions of an image besides its patches.
        own: Whether its attention is code of its own, which an adapter leads to the interface.
    """

    name: str
    make: Make
    modules: str
    takes: str = "text"
    part: str | None = None
    causal: bool = False
    reads: str = "last_hidden_state"
    extra: int = 1
    own: bool = False

    @property
    def cross(self) -> bool:
        """Whether keys come from another text than queries."""
        return self.part == "cross"

    @property
    def padded(self) -> bool:
        """Whether keys can be padding."""
        return self.takes != "image" and self.part != "vision_model"

    def made(self, layers: int = 2, length: int = TEXT) -> nn.Module:
        """A random model in evaluation mode, the same each time."""
        model: nn.Module = seeded(lambda: self.make(layers, length))
        return model

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The attention modules, in their order."""
        return [m for name, m in model.named_modules() if re.search(self.modules, name)]

    def inputs(
        self, padding: int = 0, left: bool = False, length: int = TEXT
    ) -> dict[str, Tensor]:
        """Two examples; `padding` positions of the second one's text are padding."""
        source = torch.Generator().manual_seed(0)

        def tokens(prefix: str, size: int, padding: int) -> None:
            real = torch.ones(2, size, dtype=torch.int64)
            real[1, slice(0, padding) if left else slice(size - padding, None)] = 0
            rows = [torch.randperm(max(size, VOCABULARY - 3), generator=source) for _ in range(2)]
            different = torch.stack(rows)[:, :size] % (VOCABULARY - 3) + 3
            given[f"{prefix}input_ids"] = different
            given[f"{prefix}attention_mask"] = real

        given: dict[str, Tensor] = {}
        if self.takes in ("text", "both"):
            tokens("", length, padding)
        if self.takes in ("image", "both"):
            side = image_side(length)
            given["pixel_values"] = torch.randn(2, 3, side, side, generator=source)
        if self.takes == "texts":
            decodes = self.part == "decoder"
            tokens("", length, 0 if decodes else padding)
            tokens("decoder_", length - TEXT + TARGET, padding if decodes else 0)
        return given

    def read(self, out: Any) -> Tensor:
        """The hidden states behind these layers, `[batch, queries, width]`."""
        for name in self.reads.split("."):
            out = getattr(out, name)
        assert isinstance(out, Tensor)
        return out

    def run(self, model: nn.Module, given: dict[str, Tensor]) -> Tensor:
        """Those states of a forward pass without gradient."""
        with torch.no_grad():
            return self.read(model(**given))

    def real(self, given: dict[str, Tensor]) -> Tensor:
        """Queries that are no padding, bool `[batch, queries]`."""
        seen = self.visible(given)
        if self.cross:
            return torch.ones(seen.shape[:2], dtype=torch.bool)
        return seen.any(1)

    def visible(self, given: dict[str, Tensor]) -> Tensor:
        """What the model itself lets attend, bool `[batch, queries, keys]`."""
        if not self.padded:
            pixels = given["pixel_values"]
            size = pixels.shape[-1] ** 2 + self.extra
            return torch.ones(len(pixels), size, size, dtype=torch.bool)
        name = "decoder_attention_mask" if self.part == "decoder" else "attention_mask"
        keys = given[name].bool()
        queries = given["decoder_input_ids" if self.cross else name].shape[1]
        seen = keys[:, None, :].expand(-1, queries, -1)
        return seen.tril() if self.causal else seen


def states(model: nn.Module) -> list[Any]:
    """What lies behind the attached layers of a model, in their order."""
    return [m.__dict__[STATE] for m in model.modules() if STATE in m.__dict__]


def made(model: nn.Module) -> list[set[str]]:
    """What each layer's mask was lowered to: "table", "choice", "gather", "flex"."""
    return [
        {what for lowered in state.lowered.lowered.values() for what, *_ in lowered}
        for state in states(model)
    ]


def built(model: nn.Module) -> set[str]:
    """Sparse backends that have computed something."""
    return set().union(*made(model)) & {"gather", "flex"}


def plain(make: Callable[..., Any], config: Callable[[int, int], Any]) -> Any:
    """A maker from a class and its configuration."""
    return lambda layers, length: make(config(layers, length))


T5 = plain(hf.T5Model, t5_config)
BART = plain(hf.BartModel, bart_config)
ENCODED = "encoder_last_hidden_state"
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("bert", bert, r"attention\.self$"),
        Architecture("roberta", roberta, r"attention\.self$"),
        Architecture("distilbert", distilbert, r"\.attention$"),
        Architecture("electra", electra, r"attention\.self$"),
        Architecture("albert", albert, r"\.attention$"),
        Architecture("modernbert", modernbert, r"\.attn$"),
        Architecture("esm", esm, r"attention\.self$"),
        Architecture("mpnet", mpnet, r"attention\.attn$", own=True),
        Architecture("deberta", deberta, r"attention\.self$", own=True),
        Architecture("deberta-v3", deberta_v3, r"attention\.self$", own=True),
        Architecture("roformer", roformer, r"attention\.self$", own=True),
        Architecture("vit", vit, r"\.attention$", "image"),
        Architecture("deit", deit, r"\.attention$", "image", extra=2),
        Architecture("dinov2", dinov2, r"\.attention$", "image"),
        Architecture("clip-text", clip, r"text_model.*self_attn$", "both", part="text_model",
            causal=True, reads="text_model_output.last_hidden_state"),
        Architecture("clip-vision", clip, r"vision_model.*self_attn$", "both", part="vision_model",
            reads="vision_model_output.last_hidden_state"),
        Architecture("gpt2", plain(hf.GPT2Model, gpt2_config), r"\.attn$", causal=True),
        Architecture("llama", plain(hf.LlamaModel, llama_config), r"self_attn$", causal=True),
        Architecture("qwen3", plain(hf.Qwen3Model, qwen3_config), r"self_attn$", causal=True),
        Architecture("t5-encoder", T5, r"encoder.*SelfAttention$", "texts", part="encoder",
            reads=ENCODED),
        Architecture("t5-decoder", T5, r"decoder.*SelfAttention$", "texts", part="decoder",
            causal=True),
        Architecture("t5-cross", T5, r"EncDecAttention$", "texts", part="cross"),
        Architecture("bart-encoder", BART, r"encoder.*self_attn$", "texts", part="encoder",
            reads=ENCODED),
        Architecture("bart-decoder", BART, r"decoder.*self_attn$", "texts", part="decoder",
            causal=True),
        Architecture("bart-cross", BART, r"encoder_attn$", "texts", part="cross"),
    )
}  # fmt: skip

SERVED = (  # by the default run
    *("bert", "modernbert", "mpnet", "deberta-v3", "vit", "llama", "bart-encoder", "t5-cross"),
)
EVERY = [
    each if name in SERVED else pytest.param(each, marks=pytest.mark.nightly)
    for name, each in ARCHITECTURES.items()
]
GENERATORS: dict[str, Any] = {
    "gpt2": plain(hf.GPT2LMHeadModel, gpt2_config),
    "llama": plain(hf.LlamaForCausalLM, llama_config),
    "qwen3": plain(hf.Qwen3ForCausalLM, qwen3_config),
    "t5": plain(hf.T5ForConditionalGeneration, t5_config),
    "bart": plain(hf.BartForConditionalGeneration, bart_config),
}  # name -> layers and positions -> a model that generates
