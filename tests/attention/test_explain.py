"""explain says what computes each layer, and what the attached model then does."""

from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, gpt2_config, made, states
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.attention.explain import explain
from masksearch.errors import AttachError, LengthError
from masksearch.gates.gates import Gates


def bert(layers: int = 3) -> nn.Module:
    return ARCHITECTURES["bert"].made(layers, 2048)


def wide_bert() -> nn.Module:
    """Heads of 16 numbers, which FlexAttention takes on CUDA."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "max_position_embeddings": 2048}
    return hf.BertModel(hf.BertConfig(num_hidden_layers=1, num_attention_heads=4, **sizes))


def run(model: nn.Module, length: int) -> None:
    with torch.no_grad():
        model(torch.ones(1, length, dtype=torch.int64))


def only(model: nn.Module, length: int | None = None, trains: bool | None = None) -> Any:
    [row] = explain(model, length, trains).rows
    return row


def test_a_long_window_is_gathered_in_all_layers():
    model = attach(bert(), masks.window(16))
    row = only(model, 2048)
    assert (row.part, row.layers, row.backend, row.length) == ("self", "0-2", "gather", 2048)
    assert row.names[0] == "encoder.layer.0.attention.self"
    assert len(row.names) == 3
    assert row.mask == "window(16)"
    assert row.density == pytest.approx(masks.window(16).density(2048))
    assert row.block_density == pytest.approx(94 / 1024)


@pytest.mark.slow
def test_layers_with_backends_of_their_own():
    several = [masks.window(16), masks.full(), masks.strided(4)]
    model = attach(bert(), masks.per_layer(several))
    explained = explain(model, 1024)
    assert [(r.layers, r.backend) for r in explained.rows] == [
        ("0", "gather"),
        ("1", "dense"),
        ("2", "sdpa"),
    ]
    text = " ".join(str(explained).split())
    assert "the mask keeps everything: plain SDPA" in text
    assert "nothing sparse pays, at any length" in text


@pytest.mark.slow
def test_what_is_explained_is_what_runs():
    model = attach(bert(2), masks.per_layer([masks.window(16), masks.strided(4)]))
    expected = [row.backend for row in explain(model, 1024, trains=False).rows]
    run(model, 1024)
    assert expected == ["gather", "sdpa"]
    assert ["gather" in lowered for lowered in made(model)] == [True, False]


def test_without_a_length_those_that_were_run():
    model = attach(bert(), masks.window(8))
    with pytest.raises(ValueError, match=r"has not been run yet.*ms.explain\(model, length=512\)"):
        explain(model)
    explain(model, 700)  # leaves no trace
    run(model, 300)
    run(model, 40)
    assert [row.length for row in explain(model).rows] == [40, 300]


def test_without_a_length_the_only_one():
    table = masks.table(torch.eye(48, dtype=torch.bool))
    model = attach(bert(), table)
    assert only(model).length == 48
    with pytest.raises(LengthError, match="48"):
        explain(model, 49)


def test_short_inputs_say_from_where_a_sparse_kernel_pays():
    text = " ".join(str(explain(attach(bert(), masks.window(8)), 128)).split())
    assert "below 256 positions nothing sparse pays" in text
    assert "window(8): block gather pays from about 256 positions on." in text
    model = attach(bert(), masks.longformer(24, 1))
    assert "pays from about 512 positions on." in " ".join(str(explain(model, 256)).split())
    assert [only(model, length).backend for length in (256, 512)] == ["sdpa", "gather"]


def test_a_table_of_one_length_says_whether_auto_would_gather():
    tiles = torch.eye(8).repeat_interleave(64, -1).repeat_interleave(64, -2)
    model = attach(bert(), masks.table(tiles > 0), backend="sdpa")
    assert 'backend="auto" would take block gather.' in " ".join(str(explain(model)).split())


def test_parts_of_an_encoder_decoder():
    model = attach(
        ARCHITECTURES["bart-cross"].made(),
        {"encoder": masks.window(8), "decoder": masks.window(9), "cross": masks.window(10)},
    )
    rows = {row.part: row for row in explain(model, 1024).rows}
    assert {part: row.backend for part, row in rows.items()} == {
        "encoder": "gather",
        "decoder": "gather",
        "cross": "sdpa",
    }
    assert "cross-attention" in rows["cross"].reason
    assert rows["decoder"].density == pytest.approx(
        (masks.window(9) & masks.causal()).density(1024)
    )
    assert rows["decoder"].layers == "0-1"


def test_biases_on_the_scores_are_named():
    row = only(
        attach(
            ARCHITECTURES["t5-encoder"].made(), masks.window(8), part="encoder", backend="gather"
        ),
        1024,
    )
    assert row.backend == "sdpa"
    assert "the model adds a bias to the scores" in row.reason


def test_a_request_is_shown_and_a_fallback_named():
    model = hf.GPT2Model(gpt2_config(2, 64)).eval()
    attach(model, masks.window(3), backend="gather")
    ids = torch.ones(1, 20, dtype=torch.int64)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    assert only(model, 20).reason == 'backend="gather" was asked for'
    with torch.no_grad():
        model(ids[:, :1], past_key_values=cache)
    assert "in the last call: keys come from a cache" in only(model, 20).reason


def test_on_cuda_the_blocks_are_those_of_its_kernels():
    """One parameter is on a card that nobody has: fake tensors have a device and no values."""
    model = attach(wide_bert(), masks.window(64))
    with FakeTensorMode():
        model.embeddings.word_embeddings.weight = nn.Parameter(torch.empty(1, device="cuda"))
    on_cuda = explain(model, 4096, trains=True)
    assert "share of the cells, and of the 128 x 128 blocks" in on_cuda.title
    assert (on_cuda.rows[0].backend, on_cuda.rows[0].block_density) == ("flex", 94 / 1024)


def test_dropout_of_attention_weights_is_left_to_sdpa():
    model = attach(wide_bert().train(), masks.window(9), backend="flex")
    run(model, 96)
    assert states(model)[0].fallback == "FlexAttention has no dropout: SDPA computes"


def test_padding_is_planned_once_in_a_pass(monkeypatch):
    """For all layers with one mask."""
    plans: list[Any] = []

    def keep(query: Tensor, key: Tensor, value: Tensor, visible: Any, plan: Any, *_: Any) -> Any:
        plans.append(plan)
        return query

    monkeypatch.setattr("masksearch.attention.interface.compute", keep)
    model = attach(bert(), masks.window(9), backend="flex")
    padding = torch.ones(2, 96, dtype=torch.int64)
    for real in (90, 40):
        padding[1, real:] = 0
        with torch.no_grad():
            model(torch.ones_like(padding), attention_mask=padding)
    assert [len({*map(id, plans[at : at + 3])}) for at in (0, 3)] == [1, 1]
    assert plans[0] is not plans[3]


def test_training_follows_the_mode_unless_given():
    model = attach(bert(), masks.window(16), backend="flex")
    assert "no backward" not in only(model, 512).reason
    assert "no backward" in only(model, 512, trains=True).reason
    assert "forward and backward" in str(explain(model.train(), 512))
    assert "no backward" in only(model, 512).reason


def test_gates_say_so():
    model = attach(bert(), Gates(length=16, heads=4, layers=3))
    row = only(model)
    assert (row.mask, row.backend, row.layers, row.length) == ("gates", "gates", "0-2", None)
    assert "trainable gates" in str(explain(model))


@pytest.mark.parametrize("leaf", [masks.special_tokens(2), masks.same_token()], ids=str)
def test_masks_by_content_say_so(leaf):
    model = attach(bert(), leaf | masks.window(3))
    row = only(model)
    assert (row.backend, row.density, row.length) == ("sdpa", None, None)
    assert "another one in each batch" in row.reason


@pytest.mark.slow
def test_tables_are_narrow():
    long = masks.per_head([masks.bigbird(17, 2, 3, seed=at) for at in range(4)])
    for model, length in (
        (attach(bert(), long), 1024),
        (attach(ARCHITECTURES["bart-cross"].made(), long, part="cross"), 64),
    ):
        lines = str(explain(model, length)).splitlines()
        assert max(map(len, lines)) <= 100
        assert any("per_head" in line and ".." in line for line in lines)


def test_nothing_attached_is_refused():
    with pytest.raises(AttachError, match=r"nothing is attached to this BertModel; ms.attach"):
        explain(bert(), 8)
    with pytest.raises(ValueError, match="length must be at least 1 position, got 0"):
        explain(attach(bert(), masks.window(1)), 0)
