"""Decoders: of a few architectures with random weights, or checkpoints; what scores their tokens.

body = decoder("llama", "4x128x4", vocabulary=4096, length=256, seed=0)
stored = open_decoder("models/smollm2")                # or a name on the Hugging Face Hub
model = NextTokenModel(stored.decoder())
model(input_ids, labels=input_ids).loss                # mean over the tokens, in nats
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
import transformers
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from masksearch.attention.attach import in_force
from masksearch.attention.probe import probe
from masksearch.contracts import Shape
from masksearch.errors import DataError, check_name
from masksearch.files import cache_folder
from masksearch.masks.core import Mask
from masksearch.models.checkpoints import (
    CONFIG,
    UNREADABLE,
    StoredCheckpoint,
    find_files,
    find_folder,
    hash_file,
    hash_files,
    quiet,
    read_config,
    read_model,
)
from masksearch.models.encoders import Output
from masksearch.models.pretrained import count_positions
from masksearch.models.sizes import AnySize, find_size, initial_spread
from masksearch.training.loop import device_memory

DECODERS = {"llama": "Llama", "qwen3": "Qwen3", "gpt2": "GPT2"}  # name -> class name's beginning
HELD = 1 << 23  # logits that are in memory at once: 32 MB of float32
Model = TypeVar("Model", bound=nn.Module)


def decoder_config(
    architecture: str,
    size: AnySize,
    vocabulary: int,
    length: int,
    *,
    kv_heads: int | None = None,
    initializer_range: float | None = None,
) -> PreTrainedConfig:
    """The configuration of a decoder.

    Feed-forward parts hold about as many weights as a plain one of 4 x width: 8/3 x width, gated,
    of Llama and Qwen3.

    Args:
        architecture: A name of `DECODERS`.
        size: Layers x width x heads, as `masksearch.models.sizes.find_size` takes it.
        vocabulary: Number of token ids.
        length: Longest sequence, in positions.
        kv_heads: Key-value heads of a layer (grouped queries), a divisor of the heads; None = as
            many. GPT-2 has no grouped queries.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a width
            of 768, scaled by 1 / sqrt(width).

    Raises:
        UnknownNameError: If there is no such architecture or size.
        ValueError: If a head's width is odd where positions are rotary, or `kv_heads` divides
            nothing.
    """
    size = find_size(size)
    check_name("architecture of a decoder", architecture, DECODERS)
    groups = size.heads if kv_heads is None else kv_heads
    if groups < 1 or size.heads % groups:
        raise ValueError(f"kv_heads divides the heads ({size.heads}), got {kv_heads}")
    spread = initial_spread(size.width) if initializer_range is None else initializer_range
    settings: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": spread}
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if architecture == "gpt2":
        if groups != size.heads:
            raise ValueError("gpt2 has no grouped queries: leave kv_heads out")
        settings |= {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads}
        settings |= {"n_positions": length, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        settings |= {"attn_pdrop": 0.0}
    else:
        head_dim = size.width // size.heads
        if head_dim % 2:
            raise ValueError(
                f"a head of {architecture} is an even number wide (rotary positions come in "
                f"pairs), got {head_dim} in {size}"
            )
        settings |= {"hidden_size": size.width, "num_hidden_layers": size.layers}
        settings |= {"num_attention_heads": size.heads, "num_key_value_heads": groups}
        settings |= {"head_dim": head_dim, "max_position_embeddings": length}
        settings |= {"intermediate_size": 8 * size.width // 3, "tie_word_embeddings": True}
    made: PreTrainedConfig = getattr(transformers, f"{DECODERS[architecture]}Config")(**settings)
    return made


def decoder(
    architecture: str,
    size: AnySize,
    vocabulary: int,
    length: int,
    *,
    seed: int,
    kv_heads: int | None = None,
    initializer_range: float | None = None,
) -> PreTrainedModel:
    """A Hugging Face decoder with random weights drawn from `seed` alone.

    The global generator is left as it was; the other arguments are those of `decoder_config`.
    """
    config = decoder_config(
        *(architecture, size, vocabulary, length),
        kv_heads=kv_heads,
        initializer_range=initializer_range,
    )
    cls: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: PreTrainedModel = cls.from_config(config)
    return made


# -- checkpoints -------------------------------------------------------------------------------
@dataclass(frozen=True)
class StoredDecoder(StoredCheckpoint):
    """A checkpoint of a decoder."""

    def shape(self, length: int) -> Shape:
        """The sizes of a mask at that length; raises LengthError as `StoredCheckpoint`."""
        plain = super().shape(length)
        return Shape(plain.length, plain.layers, plain.heads, causal=True)

    @property
    def config(self) -> PreTrainedConfig:
        """Its configuration, read from the folder."""
        return read_config(self.locate())

    def decoder(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A fresh model with the stored weights in that type, in eval mode."""
        return _read_decoder(self.locate(), dtype)


def _read_decoder(folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """The model of a folder with its next-token head, in eval mode, its weights in that type;
    `"auto"`: as they are stored.

    Raises:
        DataError: If it is no decoder, or the files cannot be read or do not fit.
    """
    find_files(folder)
    config = read_config(folder)
    kind = config.model_type
    both = getattr(config, "is_encoder_decoder", False)
    decodes = getattr(config, "is_decoder", False) or kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or both or not decodes:
        raise _refuse_encoder(folder, kind)
    with quiet():
        model, _ = read_model(AutoModelForCausalLM, folder, config=config, dtype=dtype)
    made: PreTrainedModel = model.eval()
    return made


def copy_beside(
    model: Model, weight: Callable[[nn.Parameter], nn.Parameter] = lambda weight: weight
) -> Model:
    """A copy whose modules are its own, so that masks can be put on it, and whose weights are the
    model's, or what `weight` makes of each."""
    return copy.deepcopy(model, {id(each): weight(each) for each in model.parameters()})


def _refuse_encoder(folder: Path, kind: str) -> DataError:
    """The error for a model that does not predict the next token."""
    return DataError(
        f"{folder / CONFIG}: {kind!r} is not a decoder that predicts the next token; give one "
        "such as llama, qwen3, gpt2, olmo2 or smollm3. Encoders are judged by MlmEvaluator and "
        "GlueEvaluator"
    )


def convert_gguf(path: Path, cache: Path | None = None) -> Path:
    """The folder with configuration, safetensors and tokenizer of a GGUF file (llama.cpp).

    transformers' own reader turns quantised weights into float32. That takes minutes for a small
    model, so the folder stays in the cache, under a hash of the file's bytes.

    Args:
        path: The file.
        cache: Folder of the cache; default `$MASKSEARCH_CACHE` or `~/.cache/masksearch`.

    Raises:
        DataError: If there is no such file, the packages gguf or accelerate are missing,
            transformers cannot read the file (not every architecture has a reader) or all of it,
            or the folder cannot be written.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    target = cache_folder(cache) / f"gguf-{hash_file(path)[:16]}"
    partial = target.with_suffix(".partial")
    models: Any = AutoModelForCausalLM
    tokenizers: Any = AutoTokenizer
    how = {"gguf_file": path.name, "trust_remote_code": False, "local_files_only": True}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")), quiet():
            if target.is_dir():
                return target
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            try:
                read = models.from_pretrained(path.parent, dtype=torch.float32, **how)
                for name in ("quantization_config", "_pre_quantization_dtype"):
                    vars(read.config).pop(name, None)  # else the folder is taken for quantised
                made = models.from_config(read.config)
                made.load_state_dict(read.state_dict())
                tokenizer = tokenizers.from_pretrained(path.parent, **how)
            except (ImportError, *UNREADABLE) as error:
                reason = str(error).strip().splitlines()[0]
                raise DataError(
                    f"{path}: transformers cannot read this GGUF file ({reason}); it needs the "
                    "packages gguf and accelerate (pip install gguf accelerate); or give a folder "
                    "with config.json and model.safetensors"
                ) from error
            _refuse_dropped(path, made)
            made.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            partial.rename(target)
    except OSError as error:
        raise DataError(
            f"the model of {path} cannot be kept in {target.parent}: {error}; set "
            "MASKSEARCH_CACHE to a folder that can be written and has room"
        ) from error
    return target


def _refuse_dropped(path: Path, model: PreTrainedModel) -> None:
    """Refuses a GGUF file of which transformers' reader drops what llama.cpp computes with.

    Args:
        path: The file.
        model: What was read of it.

    Raises:
        DataError: Names tensors (such as the scales of Llama 3's positions), or how positions are
            turned.
    """
    from gguf import GGUFReader

    file = GGUFReader(path)
    settings = {name.partition(".")[2]: field.contents() for name, field in file.fields.items()}
    ropes = model.config.rope_parameters or {}
    whole, near = (ropes.get(kind, ropes) for kind in ("full_attention", "sliding_attention"))
    own, dropped = {id(each) for each in model.state_dict(keep_vars=True).values()}, ""
    theta, factor = settings.get("rope.freq_base_swa"), settings.get("rope.scaling.factor", 1.0)
    if len(file.tensors) > len(own):
        dropped = f"{len(file.tensors) - len(own)} of its {len(file.tensors)} tensors"
    elif factor != 1 and "factor" not in whole:
        dropped = f"positions that are scaled by {factor:g}"
    elif theta is not None and abs(theta / near["rope_theta"] - 1) > 1e-6:
        dropped = f"the base {theta:g} of positions in sliding layers"
    if dropped:
        raise DataError(
            f"{path}: transformers' reader drops {dropped}, and would compute another model; give "
            "the folder with config.json and model.safetensors that the file was made from"
        )


def open_decoder(name_or_folder: str | Path) -> StoredDecoder:
    """Opens a checkpoint of a decoder: reads it once, checks that all of it fits.

    Args:
        name_or_folder: A folder with `config.json` and `*.safetensors`, or a name on the Hugging
            Face Hub, as `models.pretrained.open_pretrained` takes them; or a GGUF file, see
            `convert_gguf`.

    Raises:
        DataError: If there is no such folder, the Hub cannot be reached, the weights are a pickle,
            damaged or do not fit the configuration, or it is no decoder.
        AttachError: If no mask can be put on it.
    """
    if Path(name_or_folder).suffix.lower() == ".gguf":
        name_or_folder = convert_gguf(Path(name_or_folder))
    name, folder = find_folder(name_or_folder)
    digest = hash_files(folder)
    model: Any = _read_decoder(folder, "auto")
    calls = probe(model, [model], None)
    if not all(call.causal for call in calls):
        raise _refuse_encoder(folder, model.config.model_type)
    return StoredDecoder(
        name=name,
        folder=folder,
        digest=digest,
        architecture=model.config.model_type,
        layers=len({id(call.module) for call in calls}),
        heads=calls[0].heads,
        width=model.config.get_text_config().hidden_size,
        positions=count_positions(model)[0],
        vocabulary=model.get_input_embeddings().num_embeddings,
    )


def check_fit(name_or_folder: str | Path, each: int, device: torch.device) -> None:
    """Refuses a checkpoint that a device has no room for; reads the heads of its files alone.

    Args:
        name_or_folder: As of `open_decoder`.
        each: Bytes in memory of each stored number, such as 2 of one in bfloat16.
        device: That holds it.

    Raises:
        DataError: If they are more than the device has, or there is no such folder.
    """
    if Path(name_or_folder).suffix.lower() == ".gguf":
        name_or_folder = convert_gguf(Path(name_or_folder))
    name, folder = find_folder(name_or_folder)
    numbers, memory = 0, device_memory(device)
    for path in find_files(folder):
        if path.suffix == ".safetensors":
            with (
                suppress(SafetensorError),
                safe_open(path, "pt") as file,
            ):  # damaged: refused later
                numbers += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    if memory is not None and each * numbers > memory:
        raise DataError(
            f"{name} takes {each * numbers / 1e9:,.1f} GB ({numbers:,} numbers of {each} bytes), "
            f"and {device} has {memory / 1e9:,.1f} GB; take a device with more, "
            "precision='bfloat16' (2 bytes where nothing is trained), or a smaller model: one "
            "over several cards is not supported"
        )


# -- the model that is judged ------------------------------------------------------------------
class NextTokenModel(nn.Module):
    """A decoder whose logits are made in pieces, so that a long sequence under a large vocabulary
    needs no table of all of them (4,096 tokens of 49,152 logits are .8 GB).

    The pieces come from the body's hidden states and the output embeddings. Where the model does
    more than that (it scales or caps its logits), all logits of a batch are made at once.

    Args:
        model: A decoder of transformers with its next-token head; not copied.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.plain = _has_plain_head(model)

    @property
    def config(self) -> Any:
        """The decoder's configuration."""
        return self.model.config

    def features(self, input_ids: Tensor) -> Tensor:
        """The input of `logits`: `[batch, length, width]`; the logits themselves, where
        the head is more than a matrix."""
        if not self.plain:
            whole: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return whole
        body: Any = self.model.base_model
        states: Tensor = body(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    def logits(self, features: Tensor) -> Tensor:
        """Logits of some features, `[.., vocabulary]`."""
        if not self.plain:
            return features
        scores: Tensor = cast(Any, self.model).get_output_embeddings()(features)
        return scores

    def pieces(self, features: Tensor) -> Iterator[slice]:
        """Parts of `features` `[tokens, width]` whose logits fit into memory."""
        vocabulary = features.shape[-1]
        if self.plain:
            vocabulary = cast(Any, self.model).get_output_embeddings().weight.shape[0]
        size = max(1, HELD // vocabulary)
        for start in range(0, len(features), size):
            yield slice(start, start + size)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Output:
        """Logits, or the loss.

        Args:
            input_ids: Token ids `[batch, length]`.
            labels: The ids again, -100 where a token is not scored; `labels[:, t]` is predicted
                from the tokens before `t`, as in transformers.
            target: `features` of a model with the same output layer, whose predictions are to be
                learnt in place of the labels; these then only say of which tokens.
            hidden: Such `features` that are to be learnt themselves, without the output layer.

        Returns:
            Without labels the logits `[batch, length, vocabulary]`; with labels those of the
            scored tokens, `[scored, vocabulary]`, and the mean loss in nats. With `hidden` the
            features of these tokens, and their squared distance as a share of its square.
        """
        features = self.features(input_ids)
        if labels is None:
            return Output(self.logits(features))
        following = labels[:, 1:]
        scored = following != -100
        if hidden is not None:
            target_states, learnt = (each[:, :-1][scored].float() for each in (features, hidden))
            return Output(
                target_states, F.mse_loss(target_states, learnt) / learnt.square().mean()
            )
        logits = self.logits(features[:, :-1][scored])
        if target is None:
            return Output(logits, F.cross_entropy(logits.float(), following[scored]))
        with torch.no_grad():
            learnt = self.logits(target[:, :-1][scored])
        return Output(logits, divergence(logits.float(), learnt.float()).mean())


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the target's distribution, in nats.

    Args:
        logits: `[tokens, vocabulary]`.
        target: The same shape.

    Returns:
        `[tokens]`, at least 0 but for rounding.
    """
    log_target, log_probabilities = target.log_softmax(-1), logits.log_softmax(-1)
    return (log_target.exp() * (log_target - log_probabilities)).sum(-1)


def _has_plain_head(model: Any) -> bool:
    """Whether the logits are the output embeddings' of the body's last hidden states."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    tokens = torch.ones(1, 3, dtype=torch.int64, device=next(model.parameters()).device)
    training = model.training
    body = model.base_model
    try:
        with torch.no_grad():
            model.eval()
            theirs = model(input_ids=tokens, use_cache=False).logits
            ours = head(body(input_ids=tokens, use_cache=False).last_hidden_state)
    finally:
        model.train(training)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


# -- hidden states of lower layers, kept from one mask to the next -------------------------------
# The masks of a search often agree in their lowest layers: of those with one layer local the first
# layers are dense, of those with one layer full they are local. What such layers compute need not
# be computed again. Kept are the outputs of layers under the mask that was judged last, batch by
# batch; a mask that shares its first k layers goes on from there.
KEPT_BYTES = 1 << 30  # of hidden states: of more tokens those of every second, third, .. layer


class LayerStates:
    """Outputs of the layers of one model with frozen weights, over one list of batches.

    Which batches they are must not change. The outputs are those of a run without reuse, bit for
    bit: a layer's output depends on its input and on its own mask, which is checked when this is
    made (a model whose layers hand each other more than that gets no reuse).

    Args:
        model: With a mask on it.
        tokens: Ids that all batches have together.
    """

    def __init__(self, model: NextTokenModel, tokens: int) -> None:
        self.layers = _layers_of(model)
        self.masks: list[str] = []  # digests of the masks under which the outputs were made
        self.outputs: dict[tuple[int, int], Any] = {}  # batch, layer -> what the layer returned
        self.computed = 0  # layers that were run, over all batches, for those who count
        size = 4 * tokens * int(model.config.get_text_config().hidden_size)
        self.every = 1
        if not self.repeats(model):
            self.layers = []
        self.every = max(1, -(-size * len(self.layers) // KEPT_BYTES))
        self.outputs, self.computed = {}, 0

    @contextmanager
    def reused(self, model: NextTokenModel) -> Iterator[None]:
        """While it is open, the mask on the model is the one that is judged: `batch` may be used.
        Where the block ends in an error, what was made before stays."""
        attachment = in_force(model)
        mask = None if attachment is None else next(iter(attachment.what.values()))
        names: list[str] = []
        if isinstance(mask, Mask):
            names = [mask.of_layer(layer).digest for layer in range(len(self.layers))]
        shared = 0
        while shared < min(len(names), len(self.masks)) and names[shared] == self.masks[shared]:
            shared += 1
        self.masks = self.masks[:shared]
        self.outputs = {at: kept for at, kept in self.outputs.items() if at[1] < shared}
        yield
        self.masks = names

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """One forward pass of a batch: layers whose output is kept are passed over."""
        layers = [layer for at, layer in self.outputs if at == number]
        first = 1 + max(layers, default=-1)  # the lowest layer that is run
        hooks = []
        try:
            for index, layer in enumerate(self.layers):
                if index < first:
                    kept = self.outputs[number, first - 1]
                    layer.__dict__["forward"] = lambda *_, _kept=kept, **__: _kept
                else:
                    hooks.append(layer.register_forward_hook(self.keeper(number, index)))
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("forward", None)
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def repeats(self, model: NextTokenModel) -> bool:
        """Whether a layer's output is all that those above it need, tried on a few tokens."""
        tokens: Tensor = torch.arange(1, 5, device=next(model.parameters()).device)[None]
        with self.batch(0):
            whole = model.features(tokens)
        kept = self.outputs
        for index in {0, len(self.layers) // 2 - 1, len(self.layers) - 2} & {at for _, at in kept}:
            self.outputs = {(0, index): kept[0, index]}
            try:
                with self.batch(0):
                    again = model.features(tokens)
            except (KeyError, AttributeError, TypeError, RuntimeError):
                return False  # an upper layer looks for what a lower one would have left
            if not torch.equal(again, whole):
                return False
        return True

    def keeper(self, number: int, index: int) -> Any:
        """A forward hook that keeps a layer's output, of every so many layers."""

        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            self.computed += 1
            if index + 1 < len(self.layers) and index % self.every == self.every - 1:
                self.outputs[number, index] = output

        return keep


def _layers_of(model: NextTokenModel) -> list[nn.Module]:
    """The layers of a decoder, each with one of the attention modules that carry the mask, in
    order; empty where they are not found."""
    attachment = in_force(model)
    attentions = [] if attachment is None else list(attachment.states)
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) == len(attentions) > 1:
            inside = [[each for each in layer.modules() if each in attentions] for layer in stack]
            if inside == [[each] for each in attentions]:
                return list(stack)
    return []
