"""A leaf and a family in a file of one's own: everything works without a line in the package."""

import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES

import masksearch as ms
from masksearch import masks
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.testing import MaskContract

OWN = '''
from dataclasses import dataclass

from masksearch import masks


@dataclass(frozen=True)
class Neighbourhood(masks.Mask):
    """Keep the keys within `reach` rows and columns of a grid."""

    kind = "neighbourhood"
    columns: int
    reach: int = 1
    rule: str = "square"
    scale: float = 1.5

    def allows(self, at):
        rows = (at.query // self.columns - at.key // self.columns).abs()
        return (rows <= self.reach) & ((at.query - at.key) % self.columns <= self.reach)


@masks.family
def natten(columns: int = 4, reach: int = 1) -> masks.Mask:
    return Neighbourhood(columns, reach) | masks.global_tokens(1)


def space(trial):
    columns = trial.suggest_int("columns", 2, 5)
    return masks.parse(f"neighbourhood({columns}) | window(0)")
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The module of that file; forgotten afterwards."""
    path = tmp_path_factory.mktemp("own") / "own_masks.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_masks", path)
    module = sys.modules["own_masks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_masks"], masks.Mask.kinds["neighbourhood"]
    del ms.masks.FAMILIES["natten"], masks.core.RECIPES["natten"]


class TestNeighbourhood(MaskContract):
    @pytest.fixture
    def make(self, own):
        return lambda: own.Neighbourhood(3)


def test_it_prints_parses_and_stores(own, tmp_path: Path):
    leaf = own.Neighbourhood(4, 2, "disc", 0.5)
    for mask in (leaf, leaf | masks.window(0), masks.per_head([~leaf, masks.full()])):
        assert masks.parse(str(mask)) == mask
        assert ms.Mask.from_json(mask.to_json()) == mask
        assert pickle.loads(pickle.dumps(mask)) == mask
        for suffix in (".json", ".safetensors"):
            assert ms.load_mask(ms.save_mask(mask, tmp_path / f"mask{suffix}")) == mask
    assert str(leaf) == "neighbourhood(4, 2, 'disc', 0.5)"
    assert masks.parse("neighbourhood(4, reach=2, rule='disc', scale=0.5)") == leaf


def test_it_is_measured_like_the_others(own):
    mask = own.Neighbourhood(4)
    table = mask.dense(300)[0, 0]
    assert mask.kept(300) == int(table.sum())
    assert torch.equal(lower(mask, ms.Shape(300, 1, 1))[0, 0], table)
    assert flex_block_mask(mask, 300).shape == (1, 1, 300, 300)


def test_its_family_is_found_by_name(own):
    assert masks.natten is own.natten
    assert masks.neighbourhood is own.Neighbourhood
    assert ms.masks.FAMILIES["natten"] == masks.parse("natten") == own.natten(4, 1)
    assert str(own.natten()) == "natten()"
    assert masks.parse("natten(3) & causal()") == own.natten(3) & masks.causal()


def test_it_is_put_on_a_model(own):
    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs(1)
    plain = at.run(model, given)
    ms.attach(model, own.natten())
    assert not torch.allclose(at.run(model, given), plain, atol=1e-4)
    assert torch.equal(at.run(ms.detach(model), given), plain)


def test_it_is_searched(own, tmp_path: Path):
    judge = ms.CostEvaluator(length=32, measure=("sparsity", "block_density"))
    study = ms.search(own.space, judge, run=tmp_path / "run", trials=3)
    assert [record.status for record in study.records()].count("failed") == 0
    again = ms.Study(tmp_path / "run").records()
    assert {str(record.mask)[:14] for record in again} == {"neighbourhood("}
