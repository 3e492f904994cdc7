import pytest
import torch

from masksearch import attach, masks
from masksearch.positions.attention_maps import attention_maps
from tests.positions.conftest import HEADS, LAYERS, LENGTH, bert, random_batches


def eager_weights(batch):
    """P of Hugging Face's own eager attention, per layer `[batch, heads, n, n]`."""
    model = bert(implementation="eager")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def test_maps_match_eager_attention_with_padding(model):
    batches = random_batches(2)
    found = attention_maps(model, batches, special={"three": 3, "many": (4, 5, 6)})
    total = torch.zeros(LAYERS, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    count = torch.zeros_like(total)
    mass, chance, own, queries = (torch.zeros(LAYERS, HEADS, dtype=torch.float64) for _ in "abcd")
    for batch in batches:
        for layer, weights in enumerate(eager_weights(batch)):
            for b, length in enumerate(batch["attention_mask"].sum(1).tolist()):
                real = weights[b, :, :length, :length].double()
                total[layer, :, :length, :length] += real
                count[layer, :, :length, :length] += 1
                there = (batch["input_ids"][b, :length, None] == torch.tensor([4, 5, 6])).any(-1)
                mass[layer] += real[..., there].sum((-2, -1))
                chance[layer] += there.sum() * length / length
                own[layer] += real.diagonal(dim1=-2, dim2=-1).sum(-1)
                queries[layer] += length
    torch.testing.assert_close(found.maps, (total / count.clamp_min(1)).float())
    torch.testing.assert_close(found.special["many"], (mass / queries).float())
    torch.testing.assert_close(found.special_chance["many"], (chance / queries).float())
    torch.testing.assert_close(found.diagonal, (own / queries).float())
    assert found.sequences == 6
    for offset, mean in zip(found.offsets, found.by_offset.unbind(-1), strict=True):
        sums = total.diagonal(offset, -2, -1).sum(-1) / count.diagonal(offset, -2, -1).sum(-1)
        torch.testing.assert_close(mean, sums.float())


def test_rows_of_real_queries_sum_to_one(model):
    found = attention_maps(model, random_batches(2, padded=False), special={"all": range(13)})
    torch.testing.assert_close(found.maps.sum(-1), torch.ones(LAYERS, HEADS, LENGTH))
    torch.testing.assert_close(found.special["all"], torch.ones(LAYERS, HEADS))
    torch.testing.assert_close(found.diagonal_chance, torch.full((LAYERS, HEADS), 1 / LENGTH))


def test_a_mask_on_the_model_stays_in_force(model):
    window = masks.window(1)
    attach(model, window)
    found = attention_maps(model, random_batches(1, padded=False))
    assert torch.equal(found.maps[0, 0] > 0, window.dense(LENGTH)[0, 0])
    assert found.by_offset[..., LENGTH - 3].isnan().all()  # offset -2 has no pair
    ends, middle = 2 * 0.5, (LENGTH - 2) / 3
    expected = torch.full((LAYERS, HEADS), (ends + middle) / LENGTH)
    torch.testing.assert_close(found.diagonal_chance, expected)


def test_frame_has_a_row_for_each_measurement(model):
    found = attention_maps(model, random_batches(1), special={"three": 3})
    even, three = found.diagonal_chance.mean().item(), found.special["three"].mean().item()
    assert repr(found).startswith(f"AttentionMaps({LAYERS} x {HEADS} x {LENGTH} x {LENGTH}, 3 seq")
    assert f"(evenly {even:.3g}), three {three:.3g} (evenly" in repr(found)
    frame = found.frame()
    chances = frame.loc[frame["kind"] == "diagonal", "chance"].tolist()
    assert chances == pytest.approx(found.diagonal_chance.flatten().tolist())
    assert len(frame) == LAYERS * HEADS * (2 * LENGTH - 1 + 1 + 1)
    assert set(frame["kind"]) == {"offset", "diagonal", "special"}
    assert frame.loc[frame["kind"] == "offset", "chance"].isna().all()
