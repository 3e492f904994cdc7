"""Proxy encoders from scratch: BERT and its relatives, of any size, and the heads on them.

encoder("tiny", vocabulary=4096, length=128, seed=0)
encoder("4x128x4", vocabulary=4096, length=128, seed=0)  # layers x width x heads
encoder("base", vocabulary=50_265, length=512, seed=0, architecture="roberta", pad=1)
MaskedLanguageModel(encoder, seed=1)                     # pre-training
StateImitator(encoder)                                   # pre-training by distillation
SequenceClassifier(encoder, 3, seed=1)                   # GLUE

Every head takes any Hugging Face encoder, shares it with the caller, and returns an `Output`
whose `loss` is what `masksearch.training.loop.train` needs.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.errors import check_name
from masksearch.models.sizes import AnySize, find_size, initial_spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ARCHITECTURES = {  # name -> first part of the class names in transformers
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}


def encoder(
    size: AnySize,
    vocabulary: int,
    length: int,
    *,
    seed: int,
    dropout: float = 0.0,
    initializer_range: float | None = None,
    architecture: str = "bert",
    pad: int = 0,
) -> PreTrainedModel:
    """A bare Hugging Face encoder with random weights drawn from `seed` alone.

    Where architectures differ, the published base model's choice scales with the width:
    ModernBERT's gated feed-forward part is 1.5 x width, ELECTRA's embeddings are as wide as its
    hidden states. ModernBERT's layers are all global here (the released ones alternate with
    local windows), so that a mask is the only limit on who attends to whom.

    Args:
        size: A name such as "tiny", "4x128x4" (layers x width x heads), a mapping or a `Size`;
            see `masksearch.models.sizes.find_size`.
        vocabulary: Number of token ids.
        length: Longest sequence, in positions.
        seed: Seed of the weights; the global generator is left as it was.
        dropout: Probability, for hidden states and attention weights alike.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width): narrow models learn sooner from it.
        architecture: A name of `ARCHITECTURES`.
        pad: Token id of the padding. RoBERTa numbers its positions from `pad` + 1 and gives
            that token none, so it must be the tokenizer's.

    Raises:
        UnknownNameError: If there is no such size or architecture.
        ValueError: If `pad` is not a token id, or no model has that size.
    """
    import transformers

    size = find_size(size)
    check_name("architecture", architecture, ARCHITECTURES)
    if architecture == "modernbert" and size.width // size.heads % 2:
        raise ValueError(
            f"a head of modernbert is an even number wide (rotary positions come in pairs), got "
            f"{size.width // size.heads} in {size}"
        )
    if not 0 <= pad < vocabulary:
        raise ValueError(f"pad must be a token id in 0..{vocabulary - 1}, got {pad}")
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": length,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": initial_spread(size.width)
        if initializer_range is None
        else initializer_range,
        "pad_token_id": pad,
    }
    bare = {"add_pooling_layer": False} if architecture in ("bert", "roberta") else {}
    if architecture == "roberta":  # one segment, as released; no sequence starts at position 0
        settings |= {"max_position_embeddings": length + pad + 1, "type_vocab_size": 1}
        settings |= {"bos_token_id": None, "eos_token_id": None}
    elif architecture == "electra":
        settings["embedding_size"] = size.width
    elif architecture == "distilbert":
        settings["hidden_dim"] = settings.pop("intermediate_size")
        settings["dropout"] = settings.pop("hidden_dropout_prob")
        settings["attention_dropout"] = settings.pop("attention_probs_dropout_prob")
    elif architecture == "modernbert":
        del settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]
        settings |= {f"{part}_dropout": dropout for part in ("attention", "embedding", "mlp")}
        settings |= {"intermediate_size": 3 * size.width // 2}
        settings |= {"layer_types": ["full_attention"] * size.layers}
        settings |= {f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")}
    name = ARCHITECTURES[architecture]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: PreTrainedModel = getattr(transformers, f"{name}Model")(config, **bare)
    return made


# -- published settings of whole runs, to be trained again as they were ------------------------
MICRO = 64  # sequences of a batch here; the published batch is many of them
PRESETS: dict[str, dict[str, Any]] = {
    # BERT-base as SparseBERT's authors trained it, on books and Wikipedia: the defaults of their
    # repository (github.com/han-shi/SparseBERT: run_pretraining.py, run_glue.py, the shell scripts
    # and bert_config.json), first phase. The second phase at 512 positions is left out: the
    # published tables of gates end at 128.
    # Reference: SparseBERT, arXiv 2102.12871; You et al., arXiv 1904.00962 (LAMB).
    "sparsebert": {
        "size": "base",
        "length": 128,  # positions of a pre-training sequence
        "vocabulary": 30_522,  # token ids, uncased WordPiece
        "batch": MICRO,
        "micro_batches": 65_536 // MICRO,  # sequences of one update, over all machines
        "steps": 7_038,  # updates of pre-training
        "lr": 6e-3,  # its peak
        "optimiser": "lamb",
        "warmup": 0.2843,  # share of the updates in which the rate rises linearly
        "schedule": "sqrt",  # then it falls as in `masksearch.gates.sparsebert.published_rate`
        "pretraining": "mlm+next",  # next-sentence prediction is part of the loss
        "dropout": 0.1,  # of hidden states and attention weights
        "initializer_range": 0.02,
        "finetune_lr": 2.4e-5,  # peak
        "finetune_batch": 16,  # rows
        "epochs": 3,  # passes over a task's training rows
        "tasks": ("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE", "WNLI"),
        "rows": None,  # all training rows
        "dev_rows": None,  # all development rows, of both splits
        "split": "all",
        "finetune_seeds": 3,  # fine-tuning runs of a pre-training; the paper does not say how many
        "convention": "bert",  # F1 of QQP and MRPC, Spearman of STS-B
    }
}


# -- heads -------------------------------------------------------------------------------------
@dataclass
class Output:
    """The output of every head.

    Args:
        logits: Rows for the scored tokens, the sequences, the positions or the choices.
        loss: Mean loss of the batch; None without labels.
        pair_logits: `[batch, 2]`, index 0 = the second segment follows the first; None where
            the model has no sentence-pair head.
    """

    logits: Tensor
    loss: Tensor | None = None
    pair_logits: Tensor | None = None


class Head(nn.Module):
    """The base of all heads: an encoder, given only the inputs that it takes.

    Segment ids are left out where the encoder's forward has no such argument (DistilBERT,
    ModernBERT), or knows one segment only (RoBERTa).

    Args:
        encoder: Any Hugging Face encoder whose output has `last_hidden_state`; not copied.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        takes = inspect.signature(encoder.forward).parameters
        segments = getattr(encoder.config, "type_vocab_size", 2)
        self.takes_segments = "token_type_ids" in takes and segments > 1

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """The encoder's last hidden states, `[batch, length, width]`."""
        segments = {"token_type_ids": token_type_ids} if self.takes_segments else {}
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments)
        hidden: Tensor = out.last_hidden_state
        return hidden


class _NoEncoder(nn.Module):
    """Stands in a model of transformers for its encoder: its states are what it is given."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = (encoder,)  # in a tuple, so that it is no module of this one

    @property
    def embeddings(self) -> Any:
        """The encoder's, for which some heads ask (DeBERTa's with `legacy=False`)."""
        return self.encoder[0].embeddings

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        """The states, `[batch, length, width]`, as an encoder's output; Longformer's, which has
        most parts."""
        from transformers.models.longformer.modeling_longformer import LongformerBaseModelOutput

        return LongformerBaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedLanguageModel(Head):
    """An encoder with the prediction head of its architecture, applied to masked positions alone.

    The head is transformers' `ForMaskedLM` without the encoder, its output embedding tied to the
    encoder's where theirs is.

    Args:
        model: The encoder; or a `ForMaskedLM` with a head of its own, which stays. Shared, not
            copied; a `ForMaskedLM` loses its encoder to this model.
        seed: Seed of the head's weights.
        pairs: Whether to add BERT's next-sentence head: a tanh layer on [CLS], then two classes.

    Raises:
        ValueError: If transformers has no such head for the encoder.

    Reference: BERT, arXiv 1810.04805, Section 3.1 (masked LM, tied output embedding; next
    sentence prediction), Appendix A.2 (the loss is the sum of both means).
    """

    def __init__(self, model: PreTrainedModel, *, seed: int, pairs: bool = False) -> None:
        from transformers import AutoModelForMaskedLM

        super().__init__(encoder := cast(Any, model.base_model))
        width, spread = encoder.config.hidden_size, encoder.config.initializer_range
        self.head: Any = model
        self.pooler: Any = None
        self.pair: Any = None
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            if model is encoder:
                with torch.device("meta"):  # another encoder's weights are not drawn
                    kind = cast(Any, AutoModelForMaskedLM)
                    self.head = kind.from_config(encoder.config, dtype=encoder.dtype)
                setattr(self.head, self.head.base_model_prefix, nn.Identity())
                for part in self.head.to_empty(device="cpu").parameters():
                    part.zero_()  # as data2vec's bias stays
                self.head.apply(self.head._init_weights)
                setattr(self.head, self.head.base_model_prefix, encoder)
                self.head.tie_weights()
            if pairs:
                self.pooler = draw_linear(width, width, spread)
                self.pair = draw_linear(width, 2, spread)
        setattr(self.head, self.head.base_model_prefix, _NoEncoder(encoder))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> Output:
        """Scores the tokens whose label is not -100 (every token where `labels` is None).

        Args:
            input_ids: int64 `[batch, length]`.
            labels: int64 `[batch, length]`, -100 = not scored.
            attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.
            token_type_ids: Segment ids, `[batch, length]`.
            next_sentence_label: int64 `[batch]`, 0 = the second segment follows the first, 1 =
                it was drawn from elsewhere.
            scored: Where the labels of each row stand, int64 `[batch, scored tokens of a row]`,
                rising; None = they are looked for, for which the CPU waits for a GPU.

        Returns:
            logits `[scored tokens, vocabulary]` in reading order; the loss is the sum of the
            mean cross-entropies of what is labelled: tokens, sentence pairs or both.

        Raises:
            ValueError: If `next_sentence_label` is given to a model without `pairs=True`.
        """
        full = self.hidden(input_ids, attention_mask, token_type_ids)
        hidden = full.flatten(0, 1)
        if labels is not None:
            if scored is None:
                at = (labels.flatten() != -100).nonzero().squeeze(1)
            else:
                starts = torch.arange(0, labels.numel(), labels.shape[1], device=labels.device)
                at = (scored + starts.unsqueeze(1)).flatten()
            hidden = hidden.index_select(0, at)
        logits = self.head(inputs_embeds=hidden.unsqueeze(0)).logits.squeeze(0)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels.flatten().index_select(0, at))
        if self.pair is None:
            if next_sentence_label is not None:
                raise ValueError(
                    "next_sentence_label was given to a model without a sentence-pair head; "
                    "build it with MaskedLanguageModel(encoder, seed=.., pairs=True)"
                )
            return Output(logits, loss)
        pair_logits = self.pair(torch.tanh(self.pooler(full[:, 0])))
        if next_sentence_label is not None:
            pair_loss = F.cross_entropy(pair_logits.float(), next_sentence_label)
            loss = pair_loss if loss is None else loss + pair_loss
        return Output(logits, loss, pair_logits)


class StateImitator(Head):
    """An encoder whose last hidden states are to be those of another one.

    Args:
        encoder: The encoder; shared, not copied.

    Reference: TinyBERT, arXiv 1909.10351, Section 3.1, Equation 8 (hidden states; of the last
    layer here, each error divided by the square of its target, so that scale does not matter).
    """

    def forward(self, input_ids: Tensor, target: Tensor | None = None) -> Output:
        """Holds the hidden states against those of the other encoder.

        Args:
            input_ids: int64 `[batch, length]`, without padding.
            target: States of the other encoder, `[batch, length, width]`.

        Returns:
            logits: each token's `|state - target|^2 / |target|^2`, `[batch, length]` (1 where all
            states are zero), and the loss, their mean; without a target the states alone.
        """
        states = self.hidden(input_ids, None, None)
        if target is None:
            return Output(states)
        errors = (states.float() - target).square().sum(-1) / target.square().sum(-1)
        return Output(errors, errors.mean())


ReadOut = Literal["first+mean", "pair", "own"]
READ_OUT: ReadOut = "first+mean"  # the default


class SequenceClassifier(Head):
    """An encoder with a two-layer head on what is read out of its last hidden states.

    Args:
        encoder: The (pre-trained) encoder; shared, not copied.
        labels: Number of classes; 1 = regression with a squared loss.
        seed: Seed of the head's weights.
        read_out: `"first+mean"`: [CLS] and the mean of all tokens. `"pair"`: [u; v; |u - v|], the
            means of the tokens of the first and of the second text, special tokens left out.

    Raises:
        UnknownNameError: For another read-out.

    Reference: Sentence-BERT, arXiv 1908.10084, Section 3 (`"pair"`, there of separate passes).
    """

    def __init__(
        self, encoder: PreTrainedModel, labels: int, *, seed: int, read_out: ReadOut = READ_OUT
    ) -> None:
        super().__init__(encoder)
        check_name("read-out", read_out, ("first+mean", "pair"))
        self.read_out, width = read_out, encoder.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.dense = nn.Linear((3 if read_out == "pair" else 2) * width, width)
            self.out = nn.Linear(width, labels)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """Returns logits `[batch, labels]` and, given labels `[batch]`, the mean loss."""
        hidden = self.hidden(input_ids, attention_mask, token_type_ids)
        every = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.read_out == "pair":
            u, v = _text_means(hidden, every, token_type_ids)
            read = [u, v, (u - v).abs()]
        else:
            read = [hidden[:, 0], _mean_over(hidden, every)]
        return class_output(self.out(torch.tanh(self.dense(torch.cat(read, -1)))), labels)


def _text_means(hidden: Tensor, visible: Tensor, types: Tensor | None) -> list[Tensor]:
    """Means of the hidden states over each text of `[CLS] a [SEP] b [SEP]`, `[batch, width]`.

    Args:
        hidden: `[batch, length, width]`.
        visible: 1 for tokens, 0 for padding, `[batch, length]`.
        types: 1 for the second segment, `[batch, length]`; None = there is none.
    """
    second = visible * (torch.zeros_like(visible) if types is None else types)
    first = visible - second
    first[:, 0] = 0  # [CLS]; the last token of each is [SEP]
    return [
        _mean_over(hidden, of_text * F.pad(of_text[:, 1:], (0, 1))) for of_text in (first, second)
    ]


def _mean_over(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the hidden states over chosen tokens, `[batch, width]`; 0 where there are none."""
    weight = chosen.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def class_output(logits: Tensor, labels: Tensor | None) -> Output:
    """Logits `[batch, classes]` and, given labels `[batch]`, the mean loss: the cross-entropy, or
    of a single class (a regression) the squared distance."""
    if labels is None:
        return Output(logits)
    if logits.shape[-1] == 1:
        return Output(logits, F.mse_loss(logits.squeeze(-1).float(), labels.float()))
    return Output(logits, F.cross_entropy(logits.float(), labels))


def span_output(
    logits: Tensor,
    attention_mask: Tensor | None,
    start_positions: Tensor | None,
    end_positions: Tensor | None,
) -> Output:
    """The output of a head that points at an answer: the mean of two cross-entropies.

    Args:
        logits: `[batch, length, 2]` (start, end); -inf on padding in the output.
        attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.
        start_positions: int64 `[batch]`; one outside 0..length - 1, or on padding, is ignored.
        end_positions: The same for the last token, inclusive.

    Raises:
        ValueError: If only one of the two positions is given.
    """
    if (start_positions is None) != (end_positions is None):
        raise ValueError("start_positions and end_positions come together; one is missing")
    length = logits.shape[1]
    visible = torch.ones_like(logits[..., 0]) if attention_mask is None else attention_mask
    visible = visible.bool()
    logits = logits.masked_fill(~visible.unsqueeze(-1), -torch.inf)
    if start_positions is None or end_positions is None:
        return Output(logits)
    loss = logits.new_zeros((), dtype=torch.float32)
    for part, positions in enumerate((start_positions, end_positions)):
        inside = (positions >= 0) & (positions < length)
        inside &= visible.gather(1, positions.where(inside, 0).unsqueeze(1)).squeeze(1)
        targets = positions.where(inside, -100)
        total = F.cross_entropy(logits[..., part].float(), targets, reduction="sum")
        loss = loss + total / inside.sum().clamp(min=1) / 2
    return Output(logits, loss)


def draw_linear(inputs: int, outputs: int, spread: float) -> nn.Linear:
    """A linear layer with N(0, spread^2) weights from the global generator, and no bias yet."""
    made = nn.Linear(inputs, outputs)
    nn.init.normal_(made.weight, std=spread)
    nn.init.zeros_(made.bias)
    return made
