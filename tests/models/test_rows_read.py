"""Which rows of the last layer a head reads: said of every type, and seen in the logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from masksearch import GlueEvaluator, attach, detach, masks
from masksearch.evaluators.squad import SquadEvaluator
from masksearch.evaluators.swag import SwagEvaluator
from masksearch.models.encoders import ChoiceScorer, SequenceClassifier, SpanPredictor
from masksearch.models.pretrained import TunedHead, rows_read

SIZES = {
    **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5},
    **{"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}
OWN = {  # kind of task -> our head, and the evaluator that builds it
    "SequenceClassification": (lambda body: SequenceClassifier(body, 2, seed=0), GlueEvaluator),
    "MultipleChoice": (lambda body: ChoiceScorer(body, seed=0), SwagEvaluator),
    "QuestionAnswering": (lambda body: SpanPredictor(body, seed=0), SquadEvaluator),
}
LENGTH = 6
FIRST_ROW = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert")


def config(kind: str, **changes: Any) -> Any:
    """A tiny model of that type."""
    return hf.AutoConfig.for_model(kind, **(SIZES | changes))


def rows_that_matter(head: torch.nn.Module, kind: str) -> list[int]:
    """Rows of the last layer whose keys change a logit."""
    shape = (1, 2, LENGTH) if kind == "MultipleChoice" else (1, LENGTH)
    ids = torch.randint(3, 40, shape, generator=torch.Generator().manual_seed(0))
    head.eval()
    found = []
    for row in range(LENGTH):
        logits = []
        for kept in (True, False):
            table = torch.ones(2, 2, LENGTH, LENGTH, dtype=torch.bool)
            table[-1, :, row] = kept
            table[-1, :, row, (row + 1) % LENGTH] = True
            attach(head, masks.table(table))
            with torch.no_grad():
                logits.append(head(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
            detach(head)
        if not torch.equal(*logits):
            found.append(row)
    return found


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("name", FIRST_ROW)
@pytest.mark.nightly
def test_rows_that_are_not_read_reach_no_logit(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, evaluator = OWN[kind]
    read = evaluator.head_reads
    whole = getattr(hf, f"AutoModelFor{kind}").from_config(config(name))
    whole.config.architectures = [type(whole).__name__]
    whole.config.save_pretrained(tmp_path)
    body = hf.AutoModel.from_config(config(name))
    for head, tuned in ((own(body), False), (TunedHead(whole, kind), True)):
        matter = rows_that_matter(head, kind)
        assert matter == [*range(rows_read(tmp_path, read, tuned=tuned) or LENGTH)]


@pytest.mark.parametrize(
    ("name", "changes", "made"),
    [
        ("modernbert", {"classifier_pooling": "mean"}, "ModernBertForSequenceClassification"),
        ("electra", {"summary_type": "mean"}, "ElectraForMultipleChoice"),
        ("albert", {}, "AlbertForSequenceClassification"),
        ("xlnet", {}, "XLNetForSequenceClassification"),
    ],
)
def test_heads_that_pool_otherwise_read_all_rows(name, changes, made, tmp_path):
    hf.AutoConfig.for_model(name, **changes, architectures=[made]).save_pretrained(tmp_path)
    assert rows_read(tmp_path, None, tuned=True) is None


def test_one_layer_that_runs_twice_is_read_whole(tmp_path: Path) -> None:
    config("albert").save_pretrained(tmp_path)
    assert rows_read(tmp_path, SwagEvaluator.head_reads, tuned=False) is None
