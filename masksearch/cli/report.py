"""The commands that tell what there is: report (of runs, or of a mask), status."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from masksearch.cli.options import (
    OUTPUT,
    RUN,
    Json,
    OptionsError,
    RunArgument,
    Storage,
    argument,
    option,
    takes,
)

if TYPE_CHECKING:
    from masksearch.analysis.compare import ComparedMasks
    from masksearch.masks.core import Mask

LONGEST_TABLE = 4096  # positions up to which every cell of a mask is looked at
DOTS = 1024  # rows of tiles in the picture of a longer one
A_MASK = "Of a mask"


def _read_verdict(
    comparison: ComparedMasks, run: Path, reference: str, against: str | None
) -> dict[str, Any]:
    """The sentences of a comparison's verdict, and the differences behind them."""
    from masksearch.analysis.compare import check_against
    from masksearch.errors import SearchError
    from masksearch.report.tables import findings_table

    if comparison.mixture:
        raise SearchError(f"{run}: {comparison.mixture}")
    opponents = (
        comparison.against if against is None else check_against(against, comparison.entries)
    )
    rows = findings_table(comparison, reference, opponents).frame().to_json(orient="records")
    text = comparison.verdict(reference, opponents)
    return {"verdict": text.splitlines(), "findings": json.loads(rows)}


def _show_mask(text: str, options: ReportOptions) -> None:
    """Prints what a mask is, and draws it."""
    from masksearch.cli.build import read_mask
    from masksearch.cli.output import sketch
    from masksearch.masks.lower import block_view
    from masksearch.masks.text import short_text

    out, length, block = options.out, options.length, options.block
    mask = read_mask(text, options.storage)
    layers, heads = mask.layers or 1, mask.heads or 1
    side = 1 if length <= LONGEST_TABLE else -(-length // DOTS)
    if side == 1:
        table = mask.dense(length, layers, heads)
    else:  # a picture of tiles: the table of all cells would not fit in memory
        table = block_view(mask, length, side)
    facts = facts_of_mask(mask, length, block)
    facts["shape"] = [*table.shape[:2], length, length]
    if out is not None:
        from matplotlib import rc_context

        from masksearch.report.pictures import plot_masks
        from masksearch.report.style import PRINT

        out.parent.mkdir(parents=True, exist_ok=True)
        title = short_text(mask, 60)
        title = title if side == 1 else f"tiles of {side}: {short_text(mask, 40)}"
        picture = plot_masks({title: table}, table.shape[-1], *table.shape[:2])
        kind = out.suffix[1:] or "png"
        with rc_context(PRINT):
            picture.savefig(out, format=kind, dpi=150, bbox_inches="tight")
        facts["picture"] = str(out)
    if options.as_json:
        typer.echo(json.dumps(facts))
        return
    for line in mask_lines(facts):
        typer.echo(line)
    for line in [f"picture: {out}"] if out is not None else sketch(table):
        typer.echo(line)


def facts_of_mask(mask: Mask, length: int, block: int) -> dict[str, Any]:
    """The counts of a mask of a length."""
    from masksearch.errors import UncountedHops
    from masksearch.masks.lower import block_view, row_counts
    from masksearch.masks.measure import hops

    counts = row_counts(mask, length)
    empty = int((counts == 0).sum())
    steps, uncounted = math.inf, ""
    if not empty:
        try:
            steps = hops(mask, length)
        except UncountedHops as error:
            uncounted = str(error)
    facts: dict[str, Any] = {
        "mask": str(mask),
        "shape": [],  # of the table that is drawn
        "sparsity": 1 - int(counts.sum()) / (counts.numel() * length),
        "block_density": float(block_view(mask, length, block).double().mean()),
        "block": block,
        "empty_rows": empty,
        "hops": int(steps) if steps < math.inf else None,  # JSON knows no infinity
    }
    return facts | ({"hops_uncounted": uncounted} if uncounted else {})


def mask_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The same for people, a line at a time."""
    size = "x".join(map(str, facts["shape"]))
    yield f"{facts['mask']}  [layers x heads x queries x keys: {size}]"
    yield f"sparsity {facts['sparsity']:.5f}   block density {facts['block_density']:.3f} "
    reach = "infinite" if facts["hops"] is None else facts["hops"]  # as under a causal mask
    if "hops_uncounted" in facts:
        reach = f"not counted ({facts['hops_uncounted']})"
    yield f"(blocks of {facts['block']})   empty rows {facts['empty_rows']}   hops {reach}"
    if facts["empty_rows"]:
        yield "a mask with empty rows cannot be attached; add for example | window(0)"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of report."""

    runs: list[str] = argument(
        "Folders of searches and comparisons, or folders that hold several. Or one mask: "
        "an expression, a family, a file, RUN#7 or RUN@0.9.",
        *(RUN, "RUN... | MASK"),
    )
    out: Path | None = option(
        "Write the page to this file; of a mask, its picture (NAME.png).",
        *(OUTPUT, "report.html in the folder; here, where there are several", "FILE"),
    )
    storage: Storage = None
    against: str | None = option(
        "What masks are set against in the verdict of a comparison: named, nearest or all (see "
        "compare --against), or a mask's name.",
        *(RUN, "as the comparison was made", "NAME"),
    )
    reference: str = option(
        "A mask that others are also compared with there.", RUN, "", "NAME", default="dense"
    )
    length: int = option("Length of the sequence, in positions.", A_MASK, "", "N", default=128)
    block: int = option(
        "Side of a kernel's block, for the block density.", A_MASK, "", "POSITIONS", default=64
    )
    as_json: Json = False


@takes()
def report(options: ReportOptions) -> None:
    """Write an HTML page on runs, and print a comparison's verdict; or describe a mask.

    Each sentence on a comparison has its seeds, rows, interval and p-value (docs/statistics.md has
    the rules, and how often they err). Of a mask: its sparsity, block density, empty rows, and a
    picture.

    Examples:
        masksearch report runs/search
        masksearch report runs/a runs/b --out runs/all.html
        masksearch report runs/compare --against all
        masksearch report "bigbird(2,1,2) | window(3)" --length 48
    """
    runs, out, storage, against = options.runs, options.out, options.storage, options.against
    folders = [Path(run) for run in runs if Path(run).is_dir()]
    if not folders and len(runs) == 1:
        _show_mask(runs[0], options)
        return
    if len(folders) < len(runs):
        stray = next(run for run in runs if not Path(run).is_dir())
        raise FileNotFoundError(f"{stray}: no such run folder")
    from masksearch.report.collect import report_on, studies_in

    path = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    result: dict[str, Any] = {"report": str(report_on(folders, path, storage=storage).resolve())}
    studies = studies_in(folders[0], storage) if len(folders) == 1 else []
    if [study.kind for study in studies] == ["compare"]:
        from masksearch.analysis.compare import ComparedMasks

        one = studies[0]
        judged = ComparedMasks.of(
            one.records, one.objectives, one.facts, run=one.run, shape=one.shape
        )
        result |= _read_verdict(judged, folders[0], options.reference, against)
    elif against is not None:
        raise OptionsError(
            "--against belongs to the verdict of one comparison; a search has none, since its "
            "scores chose the masks: judge them again by masksearch compare RUN"
        )
    if options.as_json:
        typer.echo(json.dumps(result))
        return
    for line in result.get("verdict", []):
        typer.echo(line)
    typer.echo(f"report: {result['report']}")


def status(run: RunArgument, as_json: Json = False) -> None:
    """Print what runs, what failed and why, the best so far, and the time left; of a folder of
    runs a line each.

    Examples:
        masksearch status runs/search
        masksearch status runs/search --json
    """
    from masksearch.study.status import NAME, read_status, status_lines

    parts = [] if (run / NAME).is_file() else sorted(run.glob(f"*/{NAME}"))
    states = {str(each.parent): read_status(each.parent) for each in parts}
    state = states or read_status(run)
    if as_json:
        typer.echo(json.dumps(state))
        return
    lines = [status_lines(Path(name), each)[0] for name, each in states.items()]
    typer.echo("\n".join(lines or status_lines(run, state)))
