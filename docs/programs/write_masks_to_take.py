"""Writes docs/masks_to_take.md: masks that are files of the experiments' results, with scores.

python docs/programs/write_masks_to_take.py
"""

from pathlib import Path

import pandas as pd

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CLASSIFIERS, EMBEDDER = "22_as_it_is", "23_no_labels"
TASKS = {
    "SST-2": "is a film liked? (accuracy)",
    "QNLI": "does a sentence answer a question? (accuracy)",
    "STS-B": "how alike are two sentences? (Pearson)",
    "QQP": "are two questions one? (accuracy)",
}
PARTS = {
    "sts-b": "pairs of sentences, STS-B (Spearman)",
    "squad": "retrieval of paragraphs, SQuAD (nDCG)",
    "squad, paragraphs": "the same, learnt from long texts",
}
HEAD = f"""# Masks to take

*Written by a program, docs/programs/write_masks_to_take.py, from the results of experiments.*

Each is a file of this repository, for
[all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), 6 layers of 12
heads. A share of the pairs of tokens is no time
([what saves time](inference.md#how-fast-the-whole-model-is)).

```python
import masksearch as ms

FOLDER = "experiments/{CLASSIFIERS}/results/masks"
model = ms.attach(model, ms.load_mask(f"{{FOLDER}}/SST-2_12.json"))
```

On the command line:
`masksearch attach MODEL experiments/.../SST-2_12.json --length 64 --out sparse/`. Texts must be
cut at the mask's tokens: the model refuses longer ones.
"""


def number(value: float) -> str:
    """A score or a share to three decimals, as pages print it; nothing where there is none."""
    return "" if pd.isna(value) else f"{value:.3f}".removeprefix("0")


def table(head: list[str], rows: list[list[object]]) -> str:
    """A table of a page."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def link(experiment: str, file: str) -> str:
    """A file of masks."""
    return f"[{file}](../experiments/{experiment}/results/masks/{file})"


def classifiers() -> str:
    """Masks of fine-tuned classifiers."""
    found = pd.read_csv(EXPERIMENTS / CLASSIFIERS / "results" / "masks.csv")
    columns = ["share", "score", "dense", "score_of_others", "dense_of_others"]
    rows = [
        [
            *(link(CLASSIFIERS, line["file"]), TASKS[line["task"]], line["length"]),
            *(number(line[column]) for column in columns),
        ]
        for line in found.to_dict("records")
    ]
    head = ["mask", "task", "tokens", "share", "score", "dense", "on others", "dense there"]
    return table(head, rows)


def embedder() -> str:
    """Masks of the embedding model as it is."""
    results = EXPERIMENTS / EMBEDDER / "results"
    found = pd.read_csv(results / "masks.csv")
    kept = pd.read_csv(results / "kept.csv").query("arm == 'dense'")
    dense = kept.set_index(["of", "budget"])["score"]
    rows = [
        [
            *(link(EMBEDDER, line["file"]), PARTS[line["of"]], line["arm"].replace("dam", "DAM")),
            line["length"],
            *map(number, (line["share"], line["score"], dense[line["of"], line["budget"]])),
        ]
        for line in found.to_dict("records")
    ]
    return table(["mask", "task", "by", "tokens", "share", "score", "dense"], rows)


def main(docs: Path) -> None:
    """Writes `masks_to_take.md` into that folder."""
    text = f"""{HEAD}
## For MiniLM fine-tuned as a classifier

DAM's masks of [experiment 22](../experiments/{CLASSIFIERS}/README.md), for
`AutoModelForSequenceClassification`. *Score* is on the model that was searched, on development
rows; *on others* the mean over other fine-tunings by the same recipe, where the mask was put on as
it is (QQP's was not). On a model of your own judge it first.

{classifiers()}
## For MiniLM as it is, an embedding model

Masks of [experiment 23](../experiments/{EMBEDDER}/README.md), for a `SentenceTransformer`, which
`ms.attach` takes.

{embedder()}"""
    (docs / "masks_to_take.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[1])
