"""A target of time: a table of plain ways, then masks under which tokens are left out; what is
taken has the better mean on rows that no choice has read."""

from __future__ import annotations

import html
import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from masksearch import masks
from masksearch.analysis.stats import PairedDifference, paired_difference
from masksearch.driver import Study
from masksearch.errors import SearchError
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.masks.leaves import Columns, Full
from masksearch.masks.live import work
from masksearch.masks.schedules import token_schedules
from masksearch.sparsifier.answers import TIMES, difference_as_json, rows_as_json, with_times
from masksearch.sparsifier.files import Sparsified, write_folder
from masksearch.sparsifier.request import KEPT, TIME_BATCH, SparsifyRequest
from masksearch.sparsifier.stages import Shortlist, choose_candidates, judge_masks, search_masks
from masksearch.sparsifier.ways import Measurements, Table, Way, layer_sets, layers_of
from masksearch.training.loop import find_precision

CUTS, SHORTEST = (0.75, 0.5, 0.25), 8  # of the longest row, timed first; tokens of a row, at least
WORKS, PROBED = (0.7, 0.5, 0.3), ("first tokens, late", "rarest words, late")  # timed first
LOWER = 2  # times that a cut or a limit is lowered where it misses the target
LARGE_LOSS = 0.05  # of the score, above which the dense model is recommended


def meet_target(request: SparsifyRequest, full: GlueEvaluator) -> Sparsified:
    """Times and scores plain ways, searches masks that meet the target too, and saves the better.

    Args:
        request: With the target.
        full: Judges masks on the dense model.

    Raises:
        ValueError: If nothing meets the target; says what is to be had.
    """
    batch, shown = request.settings.get(TIME_BATCH, 8), request.progress is not None
    measured = Measurements(full, request.seed, request.run / KEPT, batch, shown)
    target, found, study = request.times_as_fast, Shortlist({}, [], {}), None
    table = _plain_ways(measured, target)
    request.say(
        f"{measured.about}; times as fast as dense (quartiles), score on rows that choose:"
    )
    request.say(f"  dense: 1, score {measured.score(Way()):.4f}")
    for name, row in table.items():
        request.say(f"  {name}: {row.describe()}; {row.way.line}")
    if full.shape.read is None:
        request.say("the head reads all tokens, so none dies under a mask: plain ways alone")
    elif _is_met_free(table, measured.score(Way()), target):
        request.say("a plain way meets the target at the dense model's score: no mask is searched")
    else:
        request, found, study, searched = _search_within(request, measured, target)
        table |= searched
    met = {name: row for name, row in table.items() if row.times[0] >= target}
    if not met:
        fastest = sorted(table, key=lambda name: -table[name].times[0])[:3]
        had = "; ".join(f"{name}, {table[name].describe()}" for name in fastest)
        raise ValueError(
            f"{target:g} times as fast is not to be had ({measured.about}); the fastest are "
            f"{had}; ask for less, or begin with a smaller model"
        )
    return judge(request, measured, table, met, found, study)


def _plain_ways(measured: Measurements, target: float) -> Table:
    """The table of plain ways, with inputs cut at the length that meets the target."""
    full, read = measured.full, measured.full.shape.read
    rule = Way(mask=Full(), read=read) if read else Way()
    ways = {"rows sorted by length": Way(by_length=True)}
    if full.precision == "bfloat16":
        ways["float32"] = Way(dtype=torch.float32)
    elif computes_in_bfloat16(full.torch_device):
        ways["bfloat16"] = Way(dtype=torch.bfloat16)
    if read:
        ways["drop_tokens alone"] = rule
    for fewer in range(1, min(3, len(layers_of(measured.head)))):
        sets = [replace(rule, layers=each) for each in layer_sets(full.shape.layers, fewer)]
        ways[f"{fewer} layer{'s' * (fewer > 1)} fewer"] = max(sets, key=measured.score)
    most = fit_cut(measured, rule, target)
    ways[f"inputs cut at {most} tokens"] = replace(rule, cut=most)
    ways[f"head and tail, {most} tokens"] = replace(rule, cut=most, ends=True)
    table = measured.table(ways, "plain ways")
    one = table.get("1 layer fewer")
    if one is not None and one.times[0] < target:
        most = fit_cut(measured, one.way, target)
        both = {f"1 layer fewer, inputs cut at {most} tokens": replace(one.way, cut=most)}
        table |= measured.table(both, "a layer fewer and inputs cut")
    return table


def _is_met_free(table: Table, dense: float, target: float) -> bool:
    """Whether a plain way meets the target and, on the rows that choose, loses nothing."""
    plain = (row for row in table.values() if row.way.plain)
    return any(row.times[0] >= target and row.score >= dense for row in plain)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has units of bfloat16."""
    cpu: Any = torch.cpu
    if device.type == "cpu":
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return find_precision(None, device.type) == "bfloat16"


def fit_cut(measured: Measurements, rule: Way, target: float) -> int:
    """The most tokens of a row at which the model meets the target, between timings of some."""
    longest = max(measured.rows.lengths)
    whole = measured.times({"whole inputs": rule}, "cut inputs")
    points, most = {longest: 1 / whole["whole inputs"][0]}, longest
    sizes = {max(SHORTEST, round(longest * share)) for share in CUTS}
    for _ in range(2 + LOWER):
        cut = {f"cut at {size}": replace(rule, cut=size) for size in sorted(sizes - {*points})}
        for name, (low, *_) in measured.times(cut, "cut inputs").items():
            points[cut[name].cut or 0] = 1 / low
        if most < longest and points[most] <= 1 / target:
            break
        times, lengths = zip(*sorted((time, size) for size, time in points.items()), strict=True)
        fit = np.interp(1 / target, times, lengths) if times[0] <= 1 / target else lengths[0] / 2
        most = max(SHORTEST, min(int(fit), most - 1))
        sizes = {most}
    return most


def _search_within(
    request: SparsifyRequest, measured: Measurements, target: float
) -> tuple[SparsifyRequest, Shortlist, Study | None, Table]:
    """The best masks of a work at which the target is met, by a line of time over work through
    hand-designed schedules; where the best one misses it the limit is lowered."""
    full, shape, read = measured.full, measured.full.shape, measured.full.shape.read
    probed = {"[CLS] alone": Way(mask=Columns(1), read=read)}
    for share in WORKS:
        drawn = token_schedules(share, shape)
        probed |= {f"{n}, {share}": Way(mask=drawn[n], read=read) for n in PROBED if n in drawn}
    times = measured.times(probed, "hand-designed schedules")
    works = [work(way.mask or Full(), shape) for way in probed.values()]
    slope, begin = np.polyfit(works, [1 / low for low, *_ in times.values()], 1)
    limit, ahead = work(Full(), shape), max(0.0, 1 / target - float(begin))
    fits = max(times["[CLS] alone"]) >= target
    if slope > 0:
        limit = min(limit, ahead / float(slope))
    kept, study, table = Shortlist({}, [], {}), None, Table()
    for _ in range(1 + LOWER):
        if not fits or limit <= works[0]:
            request.say(f"no mask meets {target:g} times, not even [CLS] as the only key")
            break
        request = replace(request, work=limit)
        studies = search_masks(request, full)
        study = next(iter(studies.values()))
        try:
            found, hand = choose_candidates(studies, limit)
        except SearchError as error:
            request.say(str(error))
            break
        records = found | {each.name: each for each in hand[:1]}
        found_ways = {
            name: Way(mask=masks.cropped(each.mask, full.length), read=read)
            for name, each in records.items()
            if each.mask is not None
        }
        kept = Shortlist(found, hand[:1], {})
        table = measured.table(found_ways, f"masks of {limit:.1%} of the work")
        for name, row in table.items():
            request.say(f"  {name}: {row.describe()}, at most {limit:.1%} of the work")
        low = table[_best(table)].times[0]
        if low >= target:
            break
        limit *= min(0.95, max(0.5, ahead / max(1 / low - float(begin), 1e-9)))
    return request, kept, study, table


def _best(table: Table) -> str:
    """The way that the rows that choose prefer; of equal ones the faster."""
    return max(table, key=lambda name: (table[name].score, table[name].times[1]))


def judge(
    request: SparsifyRequest,
    measured: Measurements,
    table: Table,
    met: Table,
    found: Shortlist,
    study: Study | None,
) -> Sparsified:
    """The best plain way and the best mask on rows that no choice has read; saves the better."""
    full, target = measured.full, request.times_as_fast
    sides = [{n: r for n, r in met.items() if r.way.plain is plain} for plain in (True, False)]
    arms = {name: table[name].way for name in map(_best, filter(None, sides))}
    holdout = full.on("holdout")
    scored = {n: measured.scores(way, holdout) for n, way in {"dense": Way(), **arms}.items()}

    def minus(name: str, other: str) -> PairedDifference:
        (mine, one), (theirs, two) = scored[name], scored[other]
        rows = {0: one.rows}, {0: two.rows}
        return paired_difference(
            {0: mine}, {0: theirs}, rows_a=rows[0], rows_b=rows[1], seedless=True
        )

    first, *masked = arms
    gap = minus(masked[0], first) if masked else None
    taken = masked[0] if gap is not None and gap.value > 0 else first
    way, loss, last = arms[taken], minus(taken, "dense"), measured.times(arms, "last timing")
    low, middle, high = last[taken]
    answer = (
        f"{taken} is taken{', and no mask' * way.plain}: minus dense {loss.text(signed=True)}, "
        f"{middle:.2f} times as fast{f', misses {target:g}' * (low < target)} (quartiles "
        f"{low:.2f} to {high:.2f}; {measured.about}). "
    )
    if loss.value < -LARGE_LOSS:
        answer = f"The dense model is recommended: over {LARGE_LOSS:g} is lost. {answer}"
    if gap is not None:
        outcome = "better" if gap.low > 0 else "worse" if gap.high < 0 else ""
        answer += (
            f"The best mask, {masked[0]}, minus the best plain way, {first} "
            f"({last[first][1]:.2f} times): {gap.text(signed=True)}, {gap.n_rows:,} rows; "
            f"{f'the mask is shown to be {outcome}' if outcome else 'the two are not told apart'}."
        )
    else:
        missing = f"No {'mask' if way.plain else 'plain way'} meets {target:g} times."
        if full.shape.read is None:
            missing = "The head reads all tokens: none dies under a mask."
        elif _is_met_free(table, measured.score(Way()), target):
            missing = "On rows that choose a plain way loses nothing: no mask was searched."
        answer += missing
    saved: dict[str, Any] = {"mask": "dense", "way": taken} if way.plain else {"mask": taken}
    answer += f" In Python: {way.line}" * way.plain
    comparison, _ = judge_masks(request, full, found)
    times = {name: row.times for name, row in table.items() if not row.way.plain}
    comparison = with_times(comparison, times)
    result = {
        "saved": saved | {"score": scored[taken][0], "line": way.line},
        "speed": {"asked": target, "rows": measured.about, "last timing": last},
        "ways": [
            {"way": name, "line": row.way.line, TIMES: row.times, "rows that choose": row.score}
            | ({"rows that judge": scored[name][0]} if name in scored else {})
            for name, row in table.items()
        ],
        TIMES: times,
        "difference": difference_as_json(gap),
        "minus dense": difference_as_json(loss),
        "masks": rows_as_json(comparison),
        "answer": answer,
    }
    mask = {each.name: each.mask for each in comparison.records}[saved["mask"]] or Full()
    return write_folder(
        *(request, full, result, mask, measured.model(way), comparison, study),
        length=full.length if way.cut is None or way.ends else way.cut,
        section=_draw_ways(table, measured.score(Way()), target),
    )


def _draw_ways(table: Table, dense: float, target: float) -> str:
    """The part of the page: score over time, all ways as points, and their table."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes, drawn = figure.add_subplot(), io.StringIO()
    axes.plot(1, dense, "k*", label="dense")
    cells = ""
    for name, row in table.items():
        axes.plot(row.times[1], row.score, "o" if row.way.plain else "s", label=name)
        line = html.escape(row.way.line)
        cells += f"<tr><td>{html.escape(name)}<td>{row.describe()}<td><code>{line}</code></tr>"
    axes.axvline(target, color="grey", linewidth=0.8)
    axes.set(xlabel="times as fast as dense", ylabel="score on rows that choose")
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    return (
        f"<section><h2>Score over time</h2>{svg[svg.index('<svg') :]}<table><tr><th>way<th>times "
        f"as fast (quartiles), score<th>in Python</tr>{cells}</table></section>"
    )
