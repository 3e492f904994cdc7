"""Writes schemas/: a JSON schema of each file that other programs read.

    PYTHONPATH=. python docs/programs/write_schemas.py

A mask's is generated from the classes of the masks, a result's from those of tables and recipes
and from the types below, which say what the functions of `masksearch.report` write. Objects may
gain fields in later versions (promises.md), so none is closed, but for those of masks.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from torch import Tensor

from masksearch import masks
from masksearch.masks import Mask
from masksearch.report.layout import Cell
from masksearch.report.section import Recipe
from masksearch_decoders.engine import Serving
from masksearch_decoders.engines import ENGINES

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Number: TypeAlias = float | None
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Lines: TypeAlias = list[str]
Pairs: TypeAlias = list[tuple[str, str]]
Digest: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


def about(text: str) -> Meta:
    """What a field means."""
    return Meta(description=text)


# -- result.json ---------------------------------------------------------------------------------
class Table(Struct):
    """What readers of a page see; what is at its default in a cell is left out."""

    head: list[Cell]
    rows: list[list[Cell]]


class Point(Struct):
    """A mask of a front's figure."""

    name: str
    group: Annotated[str, about("Its strategy, or its kind in a comparison.")]
    search: Annotated[str, about("The search that has found it; empty of one that is no trial.")]
    seeds: Annotated[int, Meta(ge=1)]
    score: float
    low: Number
    high: Number
    front: Annotated[
        bool, about("Whether it is on the joint front of the searches, or its kind's.")
    ]
    nothing: Annotated[bool, about("Whether it scores no better than constant answers.")]
    promised: Annotated[
        Number, about("The score that the search gave a mask that is judged again.")
    ]
    expression: str
    fingerprint: str
    sparsity: Annotated[float, about("Percent of the non-padding query-key pairs.")]
    saved: Annotated[float, about("Percent of dense attention's cost that the front is over.")]


class Comparison(Struct):
    """Masks that were judged side by side, over seeds."""

    name: str
    key: str
    judged_again: Annotated[bool, about("Whether it is of the front of a search.")]
    seedless: Annotated[bool, about("Whether every seed gives the same; intervals are over rows.")]
    margin: Annotated[
        Number,
        about(
            "How much a mask may lose to the reference, in units of the score; "
            "null = a test of no difference."
        ),
    ]
    margins: Annotated[bool, about("Whether a finding is about such a loss.")]
    points: list[Point]
    table: Table
    tasks: Table
    findings: Table


class Kept(Struct):
    """What the layers and heads of a mask keep."""

    name: str
    kept: Annotated[
        list[list[Share]], about("[layers][heads], share of the non-padding query-key pairs.")
    ]


class Allocation(Struct):
    """Masks of the front, densest first, by layers and heads."""

    masks: list[Kept]
    notes: Lines


class DamCard(Struct):
    """A run of DAM."""

    title: str
    problems: Lines
    notes: Lines
    table: Table
    health: dict[str, Any]
    curve: list[dict[str, Number]]
    warmup_steps: int


class Dam(Struct):
    """Runs of DAM, and what they say together."""

    cards: list[DamCard]
    notes: Lines
    together: bool
    agreements: dict[str, Any]
    missing: Lines


class Proxy(Struct):
    """Whether a cheap measure ranks masks as the dear one does."""

    verdict: Lines
    table: Table
    card: dict[str, Any]


class Figure(Struct):
    """A file of figures/ that the page holds."""

    file: str
    alt: str
    caption: str
    width: Annotated[float, about("In inches of print.")]
    card: int | None


class Picture(Struct):
    """A mask as a page shows it."""

    title: str
    text: str
    mask: Annotated[str, about("Its expression, shortened.")]
    png: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]


class Objective(Struct):
    """A quantity that a search improves, and the value that its hypervolume counts from."""

    name: str
    goal: Literal["min", "max"]
    worst: Number


class Section(Struct):
    """What is said of one protocol."""

    key: Annotated[str, about("Begins the names of its figures and tables.")]
    title: str
    verdicts: Lines
    facts: Pairs
    objectives: list[Objective]
    shape: dict[str, Any] | None
    runs: Table
    finished: bool
    comparisons: list[Comparison]
    points: list[Point]
    front: Table
    cautions: Lines
    lead: Annotated[list[Picture], about("The masks that the page begins with.")]
    gallery: list[Picture]
    searches: Table
    allocation: Allocation
    dam: Dam
    proxy: Proxy | None
    figures: dict[str, Figure]
    importance: Table | UnsetType = UNSET


class Failure(Struct):
    """A failed trial: its title, its reason in a line, and the full text."""

    title: str
    reason: str
    error: str


class Result(Struct):
    """What the page of `masksearch report` says.

    Numbers have every digit; null is not known. Sparsities of points are in percent, all other
    shares in [0, 1].
    """

    format: Literal["masksearch result"]
    version: Literal[1]
    title: str
    about: Annotated[Lines, about("What it is about, where its maker says so.")]
    verdicts: Lines
    unread: Annotated[Lines, about("Run folders that could not be read, and why.")]
    sections: list[Section]
    trials: Count
    failed: Count
    failures: list[Failure]
    recipes: list[Recipe]
    command: str
    versions: Pairs


# -- masks and plans -----------------------------------------------------------------------------
class Bits(Struct):
    """Cells, row by row, eight to a byte."""

    shape: list[int]
    zlib: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]


FIELDS = {
    **{int: int, bool: bool, Mask: "AnyMask", Tensor: Bits},
    **{Collection[int]: list[int], tuple[Mask, ...]: "list[AnyMask]"},
    Sequence[Mask]: "list[AnyMask]",
}


def mask_types() -> Any:
    """A type for each kind of mask, with the fields of its class; returns their union."""
    union: Any = None
    for kind, cls in sorted(Mask.kinds.items()):
        if not cls.__module__.startswith(masks.__name__):
            continue  # the user's, or a test's
        hints = get_type_hints(cls)
        fields = [(each.name, FIELDS[hints[each.name]]) for each in dataclasses.fields(cls)]
        first = (cls.__doc__ or kind).splitlines()[0]
        made = msgspec.defstruct(
            f"mask_{kind}", fields, tag_field="kind", tag=kind, forbid_unknown_fields=True,
            namespace={"__doc__": first}, module=__name__,
        )  # fmt: skip
        union = made if union is None else union | made
    return union


AnyMask = mask_types()


class Model(Struct):
    """For which model: the digest is of the bytes of its configuration and weights."""

    name: str
    architecture: str
    digest: str


class PlanMasks(Struct):
    """The whole mask, and that of each level."""

    whole: AnyMask
    levels: list[AnyMask]


class Plan(Struct):
    """Which units of one model keep full attention, as `masksearch allocate` writes it."""

    kind: Literal["masksearch-plan"]
    format: Literal[1]
    model: Model
    unit: Literal["layer", "kv_head", "head"]
    levels: Annotated[Lines, about("Expressions of a unit's masks, the local one first.")]
    units: Annotated[dict[str, Count], about("Unit, such as l0 -> its level.")]
    expression: Annotated[str, about("Of the whole mask.")]
    found: Annotated[
        dict[str, Any],
        about("How it was found: budget, scores, cache, losses in nats a token, .."),
    ]
    masks: PlanMasks


# -- folders of models ---------------------------------------------------------------------------
class MaskOfPart(Struct):
    """A mask file beside the manifest."""

    file: str
    digest: Digest


class Saved(Struct):
    """`masksearch.json` of a folder that `save_pretrained` wrote."""

    format: Literal[1]
    model_class: Annotated[str, about("Of transformers.")]
    options: dict[str, bool]
    adapter: Annotated[bool, about("Whether it is a PEFT adapter.")]
    backend: str
    masks: Annotated[dict[str, MaskOfPart], about("Part -> mask; of a plain model 'self'.")]
    weights: Annotated[dict[str, Digest], about("File -> SHA-256.")]
    versions: dict[str, str]
    drop_tokens: Annotated[bool | int, about("As `attach` was given it.")] = False


class Served(Struct):
    """`serving.json` of a folder for an engine."""

    engine: Literal[tuple(ENGINES)]
    folder: str
    model: str
    mask: str
    units: str
    form: str
    settings: Serving
    kv_bytes: Count
    dense_kv_bytes: Count
    losses: Annotated[
        dict[str, Any],
        about("Nats a token on unseen documents: dense, masked, served, difference."),
    ]
    tried: dict[str, Any]
    rival: Annotated[
        dict[str, Any] | None,
        about("The widest window in all layers within the budget: mask, losses, difference."),
    ] = None
    format: Annotated[
        Literal["masksearch-served-1"] | UnsetType, about("Not in folders of earlier versions.")
    ] = UNSET
    slides: Annotated[
        list[bool] | UnsetType,
        about("Whether each layer slides. Not in earlier versions' folders."),
    ] = UNSET


FILES = {
    **{"result": Result, "plan": Plan, "mask": AnyMask},
    **{"masksearch": Saved, "serving": Served},
}


def schema_text(kind: Any) -> str:
    """The schema of a type, as it is kept."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        if not isinstance(value, dict):
            return value
        known = {name: clean(each) for name, each in value.items() if name != "discriminator"}
        if isinstance(text := known.get("description"), str):
            text = inspect.cleandoc(text).partition("\n\nArgs:")[0]
            known["description"] = " ".join(text.split())
        return known

    return json.dumps({"$schema": DRAFT} | clean(msgspec.json.schema(kind)), indent=1) + "\n"


def main(folder: Path) -> None:
    """Writes all of them into that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in FILES.items():
        (folder / f"{name}.schema.json").write_text(schema_text(kind), encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "schemas")
