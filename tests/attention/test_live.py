"""Tokens that no one will look at again are left out, and nothing else changes."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, HEADS, TEXT
from peft import LoraConfig, get_peft_model
from tiny_encoders import seeded, sizes
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import masksearch as ms
from masksearch import masks
from masksearch.attention.live import HEADS as KINDS
from masksearch.attention.live import OTHERS, READ_FIRST
from masksearch.attention.live_tokens import rounded
from masksearch.errors import EmptyRowError, LayerCountError

LAYERS = 3
CLS = 3
KEPT = [CLS, *range(4, 20)]
MASKS = {
    "full": masks.full(),
    "thin": masks.per_layer([masks.full(), masks.columns(9), masks.columns(positions=[0, 3, 7])]),
    "window": masks.window(2),
    "heads": masks.per_layer(
        [
            masks.full(),
            masks.per_head([masks.columns(5), masks.window(1), masks.columns(2), masks.stride(4)]),
            masks.window(3) | masks.columns(1),
        ]
    ),
    "words": masks.per_layer(
        [masks.full(), masks.token_columns(range(3, 35)), masks.token_columns(KEPT)]
    ),
    "words by head": masks.per_layer(
        [
            masks.token_columns(range(3, 40)),
            masks.per_head([masks.token_columns(range(3, 3 + 8 * n)) for n in range(1, 5)]),
            masks.token_columns([CLS]) | masks.window(0),
        ]
    ),
}


class Head(nn.Module):
    """A head of one's own, which reads the first rows."""

    def __init__(self, encoder: nn.Module, rows: int = 1, mean: bool = False) -> None:
        super().__init__()
        self.encoder, self.rows, self.mean = encoder, rows, mean

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states: Tensor = self.encoder(input_ids, attention_mask=attention_mask)[0]
        return states.mean(1) if self.mean else states[:, : self.rows]


def texts(length: int = TEXT, left: bool = False) -> dict[str, Tensor]:
    """Six texts of different lengths, the first row of each `CLS`."""
    ids = torch.randint(4, 50, (6, length), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    for row in range(1, 6):
        real[row, slice(0, 2 * row) if left else slice(length - 2 * row, None)] = 0
    ids[:, 0] = CLS
    return {"input_ids": ids, "attention_mask": real}


def bert(kind: Any = hf.BertForSequenceClassification, **more: Any) -> Any:
    config = hf.BertConfig(**sizes(50, 32, LAYERS, HEADS, 32, 40), initializer_range=0.4, **more)
    return seeded(lambda: kind(config)).double().eval()


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Any = model(**inputs)
    return out if isinstance(out, Tensor) else out.logits


def widths(model: nn.Module, inputs: dict[str, Tensor]) -> list[int]:
    """How many tokens of all texts come out of each layer."""
    found: list[int] = []

    def note(layer: nn.Module, positional: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).shape[:2].numel())

    listed = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS)
    hooks = [layer.register_forward_hook(note) for layer in listed]
    logits(model, inputs)
    for hook in hooks:
        hook.remove()
    return found


def unpadded(length: int = TEXT) -> dict[str, Tensor]:
    """The same texts, none of them shorter."""
    return {"input_ids": texts(length)["input_ids"]}


WHOLE = [6 * TEXT] * LAYERS
THIN = [6 * 9, 6 * 3, 6]  # what comes out of the layers of `unpadded` under "thin"


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "name",
    [
        *("bert", "modernbert"),
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in "roberta distilbert electra esm".split()
        ),
    ],
)
@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_left_out_changes_nothing(name, mask, rows):
    model = Head(ARCHITECTURES[name].made(LAYERS).double(), rows)
    for inputs in (texts(), texts(left=True), unpadded()):
        ms.attach(model, mask)
        whole = logits(model, inputs)
        ms.attach(model, mask, drop_tokens=rows)
        assert torch.allclose(logits(model, inputs), whole, rtol=0, atol=1e-12), inputs.keys()
        assert widths(model, inputs)[-1] == 6 * rows, ms.explain(model, length=TEXT)


def test_layers_compute_the_live_tokens():
    model, inputs = bert(), texts()
    ms.attach(model, MASKS["thin"], drop_tokens=True)
    assert widths(model, unpadded()) == THIN
    assert widths(model, unpadded(length=8)) == [6 * 8, 6 * 3, 6]  # each length has its own
    ms.attach(model, MASKS["words"], drop_tokens=True)
    tokens = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -1)
    shape = ms.Shape(TEXT, LAYERS, HEADS, read=1, tokens=tokens)
    live = masks.live_tokens(MASKS["words"], shape)
    *early, last = live.sum((0, 2))[1:].tolist()
    assert widths(model, inputs) == [*map(rounded, early), last]


def test_padding_is_left_out_from_the_first_layer_on():
    model, inputs = bert(), texts()
    real = int(inputs["attention_mask"].sum())
    ms.attach(model, masks.full(), drop_tokens=True)
    assert "Padding is left out" in str(ms.explain(model, length=TEXT))
    assert widths(model, inputs) == [rounded(real), rounded(real), 6]
    assert widths(model, texts(left=True)) == [6 * TEXT, 6 * TEXT, 6]  # the first row is padding
    ms.attach(model, MASKS["thin"], drop_tokens=True)
    assert widths(model, inputs) == [rounded(5 * 9 + 7), rounded(5 * 3 + 2), 6]
    with torch.no_grad():
        assert torch.equal(model(*inputs.values()).logits, logits(model, inputs))


def test_shorter_than_what_is_kept():
    model, inputs = bert(), texts(length=12)
    mask = masks.per_layer([masks.full(), masks.columns(30), masks.columns(20)])
    ms.attach(model, mask)
    whole = logits(model, inputs)
    ms.attach(model, mask, drop_tokens=True)
    assert torch.allclose(logits(model, inputs), whole, rtol=0, atol=1e-12)
    assert widths(model, unpadded(12)) == [6 * 12, 6 * 12, 6]


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_texts_of_every_length(mask):
    """That of the texts by which `attach` tries whether tokens can be left out among them."""
    model, dropping = (ms.attach(bert(), mask, drop_tokens=drop) for drop in (False, True))
    for length in range(1, 25):
        inputs = unpadded(length)
        off = (logits(dropping, inputs) - logits(model, inputs)).abs().max()
        assert off < 1e-12, length


def test_without_it_nothing_is_left_out():
    model = ms.attach(bert(), MASKS["thin"])
    assert widths(model, texts()) == WHOLE


def test_the_encoder_alone_computes_all():
    model, inputs = bert(), texts()
    ms.attach(model, MASKS["thin"])
    with torch.no_grad():
        whole = model.bert(**inputs).last_hidden_state
        every = model(**inputs, output_hidden_states=True).hidden_states
        ms.attach(model, MASKS["thin"], drop_tokens=True)
        assert torch.equal(model.bert(**inputs).last_hidden_state, whole)
        again = model(**inputs, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, again, every))
    assert widths(model, unpadded()) == THIN  # and it is as it was


def test_a_failed_pass_leaves_no_trace():
    model, inputs = ms.attach(bert(), MASKS["thin"], drop_tokens=True), texts()
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 99))  # beyond the vocabulary
    with torch.no_grad():
        assert model.bert(**inputs).last_hidden_state.shape[1] == TEXT


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_equal(reentrant):
    model, inputs = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), texts()
    model.train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**inputs, labels=torch.tensor([0, 1] * 3)).loss.backward()
        return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]

    for mask in (MASKS["thin"], MASKS["words"]):
        ms.attach(model, mask)
        whole = gradients()
        ms.attach(model, mask, drop_tokens=True)
        for one, other in zip(gradients(), whole, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_adapters_put_on_before_and_after():
    inputs, rank = texts(), LoraConfig(target_modules=["key", "value"], init_lora_weights=False)
    model = ms.attach(bert(), MASKS["thin"], drop_tokens=True)
    adapted = get_peft_model(model, rank).eval()  # the projections are looked up at each call
    after = logits(adapted, inputs)
    assert widths(adapted, unpadded()) == THIN
    ms.attach(adapted, MASKS["thin"])
    whole = logits(adapted, inputs)
    ms.attach(adapted, MASKS["thin"], drop_tokens=True)
    before = logits(adapted, inputs)
    assert torch.allclose(after, whole, rtol=0, atol=1e-12)
    assert torch.allclose(before, whole, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["thin", "words"])
def test_copies_and_saved_folders_leave_out_too(mask, tmp_path):
    model, inputs = ms.attach(bert(), MASKS[mask], drop_tokens=True), texts()
    left, expected = widths(model, inputs), logits(model, inputs)
    ms.save_pretrained(model, tmp_path)
    opened = ms.load_pretrained(tmp_path)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), opened):
        assert widths(other, inputs) == left
        assert torch.allclose(logits(other, inputs), expected, rtol=0, atol=1e-12)
    ms.save_pretrained(ms.attach(model, MASKS[mask]), tmp_path)
    assert widths(ms.load_pretrained(tmp_path), inputs) == WHOLE
    ms.detach(model)
    assert widths(model, inputs) == WHOLE


def test_autocast_and_half():
    model, inputs = bert().float(), texts()
    ms.attach(model, MASKS["words"])
    with torch.autocast("cpu", torch.bfloat16):
        whole = logits(model, inputs)
        ms.attach(model, MASKS["words"], drop_tokens=True)
        assert torch.allclose(logits(model, inputs), whole, atol=0.1)
    assert widths(model, inputs)[-1] == 6
    half = ms.attach(bert().bfloat16(), MASKS["words"], drop_tokens=True)
    assert widths(half, inputs)[-1] == 6


@pytest.mark.nightly
def test_one_graph_of_a_compiled_model():
    model, inputs = bert().float(), texts()
    ms.attach(model, MASKS["thin"])
    whole = logits(model, inputs)
    ms.attach(model, MASKS["thin"], drop_tokens=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    assert torch.allclose(logits(compiled, inputs), whole, atol=1e-4)
    ms.attach(model, MASKS["words"])
    whole = logits(model, inputs)
    ms.attach(model, MASKS["words"], drop_tokens=True)
    assert torch.allclose(logits(torch.compile(model), inputs), whole, atol=1e-4)


def test_a_table_of_one_length():
    table = torch.ones(LAYERS, 1, TEXT, TEXT, dtype=torch.bool)
    table[1, :, :, 9:] = table[2, :, :, 3:] = False
    model = ms.attach(bert(), masks.table(table), drop_tokens=True)
    assert widths(model, unpadded()) == THIN
    assert widths(model, unpadded(length=8)) == [6 * 8, 6 * 3, 6]


def test_rows_without_a_key_are_refused_as_ever():
    model = ms.attach(bert(), masks.token_columns([CLS]), drop_tokens=True)
    with pytest.raises(EmptyRowError, match="example 1"):
        model(torch.tensor([[CLS, 5, 6], [5, 6, 7]]))


# -- where all is computed ---------------------------------------------------------------------
def all_computed(model: nn.Module, why: str, **how: Any) -> None:
    """All tokens are, `explain` says why, and outputs are those without the argument."""
    inputs = texts()
    ms.attach(model, masks.window(4))
    whole = logits(model, inputs)
    ms.attach(model, masks.window(4), **how)
    assert torch.equal(logits(model, inputs), whole)
    notes = " ".join(ms.explain(model, length=TEXT).notes)
    assert re.search(f"All tokens are computed: .*{why}", notes), notes


def test_a_head_that_reads_all():
    all_computed(Head(bert(hf.BertModel), mean=True), "computes otherwise", drop_tokens=1)
    all_computed(Head(bert(hf.BertModel), rows=2), "computes otherwise", drop_tokens=1)
    all_computed(Head(bert(hf.BertModel)), "head of Head reads is not known", drop_tokens=True)
    all_computed(bert(hf.BertForMaskedLM), "drop_tokens=1 says so", drop_tokens=True)


def test_other_pooling():
    model = seeded(
        lambda: hf.ModernBertForSequenceClassification(
            hf.ModernBertConfig(
                **{"vocab_size": 50, "hidden_size": 32, "num_attention_heads": HEADS},
                **{"num_hidden_layers": LAYERS, "intermediate_size": 32, "pad_token_id": 1},
                **{"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2},
                classifier_pooling="mean",
            )
        )
    ).eval()
    all_computed(model, "is not known", drop_tokens=True)


def test_layers_that_run_several_times_and_decoders():
    albert = Head(ARCHITECTURES["albert"].made(LAYERS))
    all_computed(albert, "no list of layers that attend once each", drop_tokens=1)
    gpt2 = Head(ARCHITECTURES["gpt2"].made(LAYERS))
    all_computed(gpt2, "is not one encoder", drop_tokens=1)


def test_it_says_what_is_left_out():
    model = ms.attach(bert(), MASKS["thin"], drop_tokens=True)
    assert "Of 17 tokens the layers compute 9, 3, 1" in str(ms.explain(model, length=TEXT))
    model = ms.attach(model, MASKS["words"], drop_tokens=True)
    assert "each row's own" in str(ms.explain(model))
    gates = ms.Gates(length=TEXT, heads=HEADS)
    assert "gates take part" in str(ms.explain(ms.attach(model, gates, drop_tokens=True)))


@pytest.mark.parametrize("number", [0, -1, "all", None, 1.5])
def test_other_numbers_of_rows_are_refused(number):
    model = ms.attach(bert(), masks.window(1))
    with pytest.raises(ValueError, match=r"drop_tokens .* must be a whole number >= 1"):
        ms.attach(model, masks.window(2), drop_tokens=number)
    assert ms.attached(model) == {"self": masks.window(1)}


def test_a_refused_mask_leaves_the_earlier_one():
    model = ms.attach(bert(), MASKS["thin"], drop_tokens=True)
    with pytest.raises(LayerCountError):
        ms.attach(model, masks.per_layer([masks.full()] * 2), drop_tokens=True)
    assert widths(model, unpadded()) == THIN


# -- the table of heads ------------------------------------------------------------------------
SMALL: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 37, "max_position_embeddings": 64, "embedding_size": 32},
    **{"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "initializer_range": 0.2},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1},
    **{"sep_token_id": 2, "num_labels": 3},
}


def heads_in_the_table() -> list[tuple[str, str]]:
    """The model type and the name of every class of transformers that leaves tokens out by
    `drop_tokens=True`; nothing of them is imported."""
    found = {}
    for name in ("SEQUENCE_CLASSIFICATION", "MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION"):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")
        for model_type, kind in mapping.items():
            if model_type in READ_FIRST and kind not in OTHERS:
                assert kind.endswith(KINDS)
                found[kind] = model_type
    return [(found[kind], kind) for kind in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "name"), heads_in_the_table())
def test_heads_read_the_first_row_alone(model_type, name):
    """By the gradient of the last layer's states, for any padding."""
    config, kind = CONFIG_MAPPING[model_type], getattr(hf, name)
    default = config()
    sizes = {name: value for name, value in SMALL.items() if hasattr(default, name)}
    model = seeded(lambda: kind(config(**sizes))).eval()
    last = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[-1]
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    for hidden in (slice(0), slice(6, None), slice(3)):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["attention_mask"][:, hidden] = 0
        if name.endswith("MultipleChoice"):
            inputs = {key: value[None] for key, value in inputs.items()}
        states: list[Tensor] = []

        def keep(layer: Any, positional: Any, output: Any, states: list[Tensor] = states) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)
            states[-1].retain_grad()

        hook = last.register_forward_hook(keep)
        model(**inputs).logits.square().sum().backward()
        hook.remove()
        assert states[0].grad is not None
        assert states[0].grad.abs().sum((0, 2)).nonzero().tolist() == [[0]]
