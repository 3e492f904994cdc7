"""A published embedding model under masks that were found without a label: does search pay there?

    python experiments/23_no_labels/embedder.py --data FOLDER [--parts squad sts-b] [--seeds 0 ..]

For each part and seed: texts that searches read; a search of each arm and budget; opponents chosen
on query texts that gates and searches have not read; all that was chosen judged by retrieval
(nDCG@10 of each question of SQuAD's development set) or by STS-B's development pairs. What has
ended is a line of results/.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import texts
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
sys.path.append(str(HERE.with_name("22_as_it_is")))
import lines  # noqa: E402
import run  # noqa: E402
from run import Named  # noqa: E402

import masksearch as ms  # noqa: E402
from masksearch import masks  # noqa: E402
from masksearch.contracts import Split  # noqa: E402
from masksearch.evaluators.embedding import EmbeddingEvaluator  # noqa: E402
from masksearch.gates.discretise import at_sparsity, weights_of  # noqa: E402
from masksearch.masks.measure import effective_density  # noqa: E402
from masksearch.models.embedding import open_embedding  # noqa: E402

PLAN, PARTS = texts.PLAN, texts.PARTS
SPLITS: dict[str, Split] = {"search": "validation", "choice": "holdout"}
OTHERS = PLAN["others"]  # where arms beside DAM search
SAMPLERS = ("random", "tpe")
RANKED = 10  # of nDCG


class Embedded(run.Model):
    """The searches of one seed on the embedding model, for texts as long as those of a part.

    Args:
        given: The command line.
        part: A table of the plan's `parts`; `"sts-b, own"` reads STS-B's training sentences. Or
            the amendment's, whose texts are as long as paragraphs.
        seed: Of the texts that searches read, and of the searches.
    """

    def __init__(self, given: argparse.Namespace, part: str, seed: int) -> None:
        self.given, self.part, self.seed = given, part, seed
        self.plan = PARTS[part] | (PLAN["smoke"] if given.smoke else {})
        self.judging = part.partition(",")[0]
        self.runs = given.runs / f"{part}_{seed}"
        self.lines = lines.Lines(given.results / f"{part}_{seed}.jsonl")

    @cached_property
    def model(self) -> Any:
        """The dense model."""
        return open_embedding(Path(self.given.weights))

    @cached_property
    def read(self) -> Path:
        """The file of the texts that searches read."""
        path = self.runs / "texts.txt"
        if not path.is_file():
            length, count = self.plan["length"], self.plan["texts"]
            if self.part.endswith(", own"):
                pairs = texts.sts(self.given.data, "train")
                found = [*dict.fromkeys([*pairs.ones, *pairs.others])][:count]
            else:
                how = self.model.tokenizer, length, count, self.seed
                found = texts.like(self.given.data, self.part, *how)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(found) + "\n", encoding="utf-8")
        return path

    def evaluator(self, read: str, **settings: Any) -> EmbeddingEvaluator:
        """Judges a mask by how near texts are ranked."""
        how = {"length": self.plan["length"], "dev_rows": self.plan["query_texts"]}
        return EmbeddingEvaluator(self.read, self.given.weights, split=SPLITS[read], **how)

    @cached_property
    def judged_shape(self) -> ms.Shape:
        """What budgets are shares of on the texts that judge."""
        judging = texts.judging_texts(self.given.data, self.judging)[:: self.plan["every"]]
        how = {"truncation": True, "max_length": self.shape.length}
        rows = self.model.tokenizer(judging, **how)["input_ids"]
        step = -(-len(rows) // 500)
        ids = [torch.tensor(row) for row in rows[::step]]
        padded = [F.pad(row, (0, self.shape.length - len(row)), value=-1) for row in ids]
        return replace(self.shape, lengths=Counter(map(len, rows)), tokens=torch.stack(padded))

    # -- judgement -----------------------------------------------------------------------------
    def score(self, named: Mapping[str, ms.Mask], read: str, **about: Any) -> None:
        """Writes the score of masks on texts, where it is missing."""
        known = {"stage": "score", "rows": read, **about}
        for name, mask in named.items():
            if self.lines.of(**known, name=name):
                continue
            begun = time.process_time()
            line = known | {"name": name, "density": round(effective_density(mask, self.shape), 5)}
            line["density_judged"] = round(effective_density(mask, self.judged_shape), 5)
            if read == "judge":
                value, each = self.judged_by(mask)
                packed = base64.b85encode(each.astype("<f2").tobytes()).decode()
                line |= {"score": value, "each": f"{len(each)}f{packed}"}
            else:
                workdir = self.runs / "scored"
                shutil.rmtree(workdir, ignore_errors=True)
                workdir.mkdir(parents=True)
                *_, last = self.evaluator(read)(mask, seed=self.seed, workdir=workdir)
                line["score"] = float(f"{last.values['spearman']:.7g}")
            self.lines.add(line | {"seconds": round(time.process_time() - begun, 1)})

    def judged_by(self, mask: ms.Mask) -> tuple[float, np.ndarray]:
        """The score of a part, and what it is made of: nDCG@10 of each question, or the cosine of
        each pair."""
        model = self.model if mask == masks.full() else self.masked(mask)
        if self.judging == "squad":
            found, every = texts.squad(self.given.data), self.plan["every"]
            questions, right = found.questions[::every], torch.tensor(found.right[::every])
            asked, there = (self.embed(model, each) for each in (questions, found.paragraphs))
            each = gains(asked @ there.T, right)
            return float(f"{each.mean():.7g}"), each
        pairs = texts.sts(self.given.data, "dev")
        ones, others = (self.embed(model, each) for each in (pairs.ones, pairs.others))
        cosines = (ones * others).sum(1).numpy()
        return float(f"{spearman(cosines, np.array(pairs.scores)):.7g}"), cosines

    def masked(self, mask: ms.Mask) -> Any:
        """Another copy of the model, under the mask."""
        return ms.attach(open_embedding(Path(self.given.weights)), mask)

    def embed(self, model: Any, some: list[str]) -> torch.Tensor:
        """Embeddings of length 1, of texts cut to the part's length."""
        model.max_seq_length = self.plan["length"]
        found = model.encode(some, convert_to_tensor=True, normalize_embeddings=True)
        return found.double().cpu()

    def consensus(self, others: list[Embedded], budget: float) -> None:
        """Judges the mean of the gates of several searches, cut at the budget."""
        gates = torch.stack([each.gates(budget) for each in others]).mean(0)
        how = {"weights": weights_of(self.shape), "within": True}
        mask = masks.table(at_sparsity(gates, 1 - budget, **how))
        ms.save_mask(mask, self.runs / "masks" / f"consensus_{budget}.safetensors")
        self.score({f"dam {budget}, consensus of {len(others)}": mask}, "judge", arm="consensus")

    def work(self, arms: list[str], budget: float) -> None:
        """Searches, chooses and judges, where that has not ended."""
        self.given.arms = arms
        for arm in arms:
            run.PLAN["arms"][arm] |= {"trials": OTHERS["trials"]} if arm in SAMPLERS else {}
            self.search(arm, budget)
        self.choose(budget)
        self.judge(budget)

    def judge(self, budget: float) -> None:
        """Scores on what judges what the plan compares, once all is chosen."""
        hand: Named = self.hand_designed(budget)
        name = lines.best_hand(self.lines.lines, budget)
        first = self.seed == min(self.plan["seeds"])  # the dense model is the same for all
        dense = {"dense": masks.full()} if first else {}
        self.score(self.found(budget) | {name: hand[name]} | dense, "judge")


def gains(scores: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """nDCG@10 of each question with one paragraph that is right: float64 `[questions]`.

    Args:
        scores: float `[questions, paragraphs]`.
        right: int64 `[questions]`, the number of each one's paragraph.
    """
    own = scores.gather(1, right[:, None])
    rank = (scores > own).sum(1) + 1
    return torch.where(rank <= RANKED, 1 / torch.log2(rank + 1.0), 0.0).double().numpy()


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """The correlation of ranks."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, two).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="squad/, glue/, wikitext-2/")
    parser.add_argument("--weights", help="a sentence-transformers folder; default: offline extra")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=PLAN["embedder"]["seeds"])
    parser.add_argument("--runs", type=Path, default=Path("runs/23_no_labels"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs, given.arms = given.runs.resolve(), []
    given.weights = given.weights or run.offline_model()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for part in given.parts:
        plan = PLAN["embedder"] | PARTS[part]
        budgets = (plan | PLAN["smoke"] if given.smoke else plan)["budgets"]
        models = [Embedded(given, part, seed) for seed in given.seeds if seed in plan["seeds"]]
        for model, budget in product(models, budgets):
            model.work(["dam"], budget)
        for model, budget in product(models, budgets):
            if given.smoke or (model.seed in OTHERS["seeds"] and budget in OTHERS["budgets"]):
                model.work(plan["arms"], budget)
        for budget in budgets if len(models) > 1 else ():
            models[0].consensus(models, budget)


if __name__ == "__main__":
    main()
