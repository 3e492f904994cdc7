"""Goals, tables and plot of `attention.py`, from its JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, Any]
BEGIN = "<!-- written by python benchmarks/attention.py --table -->"
END = "<!-- end of what attention.py wrote -->"
IDEAL = 1.5  # a kernel's time over that of its kept blocks at dense SDPA's rate, at most
NEAR = 1.1  # auto's time over that of the fastest exact backend, at most
SHORT = 128
DIRECTIONS = {False: "forward", True: "forward + backward"}


@dataclass(frozen=True)
class Goal:
    """One figure with what it should be.

    Args:
        what: In words.
        bound: The goal, as a number.
        least: Whether the figure should be at least the bound (else at most).
        figure: Of the JSON: median, low, high; None where it was not measured.
    """

    what: str
    bound: float
    least: bool
    figure: dict[str, float] | None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None where it was not measured."""
        if self.figure is None:
            return None
        median = self.figure["median"]
        return median >= self.bound if self.least else median <= self.bound

    def row(self) -> str:
        """A row of the table of goals."""
        sign = ">=" if self.least else "<="
        verdict = {True: "met", False: "**missed**", None: "not measured"}[self.met]
        measured = "" if self.figure is None else shown(self.figure, spread=True)
        return f"| {self.what} | {sign} {self.bound:g} x | {measured} | {verdict} |"


def shown(figure: dict[str, float], spread: bool = False) -> str:
    """A ratio, with its 10 and 90 % points."""
    digits = 1 if figure["median"] >= 10 else 2
    text = f"{figure['median']:.{digits}f}"
    return text + (f" ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})" * spread)


def key(part: str, device: str) -> str:
    """Name of a part in the JSON."""
    return part if device == "cpu" else f"{part}, {device}"


def cells(found: Found, device: str) -> list[Found]:
    """The kernels' cells."""
    rows: list[Found] = found.get(key("kernels", device), {}).get("rows", [])
    return rows


def steps(found: Found, device: str) -> list[Found]:
    """The models' rows."""
    rows: list[Found] = found.get(key("models", device), {}).get("rows", [])
    return rows


def by_auto(cell: Found) -> dict[str, float] | None:
    """The speed-up of what auto takes; None where that is dense SDPA."""
    row = cell["backends"].get(cell["auto"]["backend"])
    figure: dict[str, float] | None = None if row is None else row["speedup"]
    return figure


def goals(found: Found, device: str = "cpu") -> list[Goal]:
    """Every goal, beside what was measured."""
    result = []
    for trains, direction in DIRECTIONS.items():
        for mask, bound in (("random blocks, 90 %", 5.0), ("window 64", 10.0)):
            at = [
                cell
                for cell in cells(found, device)
                if (cell["mask"], cell["length"], cell["trains"]) == (mask, 4096, trains)
            ]
            figure = by_auto(at[0]) if at else None
            what = f"{direction}, n = 4096, {mask}"
            what += f" (auto: {at[0]['auto']['backend']})" if at else ""
            result.append(Goal(what, bound, True, figure))
    for length, bound in ((1024, 1.3), (2048, 1.8), (4096, 3.0)):
        step = side(found, device, length, "random blocks, 95 %")
        what = f"whole train step, n = {length}, random blocks, 95 %"
        result.append(Goal(what, bound, True, step and step["speedup"]))
    for name in fixed_masks(found, device):
        step = side(found, device, SHORT, name)
        figure = None
        if step is not None:
            given = step["speedup"]
            figure = {"median": 1 / given["median"]}
            figure |= {"low": 1 / given["high"], "high": 1 / given["low"]}
        what = f"train step with a fixed mask over without, n = {SHORT}, {name}"
        result.append(Goal(what, 1.05, False, figure))
    return result


def side(found: Found, device: str, length: int, name: str) -> Found | None:
    """One side of the train steps at a length."""
    for row in steps(found, device):
        if (row["length"], row["kind"]) == (length, "train step"):
            entry: Found | None = row["sides"].get(name)
            return entry
    return None


def fixed_masks(found: Found, device: str) -> list[str]:
    """The masks that were measured at `SHORT` positions."""
    names = [
        name
        for row in steps(found, device)
        if row["length"] == SHORT
        for name in row["sides"]
        if name != "dense"
    ]
    return names or ["longformer 32, 1"]


def counted(
    found: Found, device: str, what: str, holds: Callable[[Found], float | None], bound: float
) -> list[str]:
    """A goal of every cell: how many meet it at each length, and those that do not by name."""
    judged: dict[int, list[tuple[float, Found]]] = {}
    for cell in cells(found, device):
        if (value := holds(cell)) is not None:
            judged.setdefault(cell["length"], []).append((value, cell))
    if not judged:
        return []
    lines = [f"- {what}, goal <= {bound:g} x in every cell:"]
    for length, pairs in judged.items():
        missed = sorted((pair for pair in pairs if pair[0] > bound), key=lambda pair: -pair[0])
        text = f"    - n = {length}: {len(pairs) - len(missed)} of {len(pairs)}"
        names = ", ".join(
            f"{value:.2f} {cell['mask']} {'f+b' if cell['trains'] else 'f'}"
            for value, cell in missed
        )
        lines.append(text + (f"; **missed** by {names}" if missed else ": met"))
    return lines


def over(name: str) -> Callable[[Found], float | None]:
    """How far what auto takes is from the fastest backend of a cell."""

    def distance(cell: Found) -> float | None:
        value: float | None = cell.get("auto", {}).get(name)
        return value

    return distance


def over_ideal(cell: Found) -> float | None:
    """Time of gather over that of its kept blocks at dense SDPA's rate."""
    gather = cell["backends"].get("gather")
    return None if gather is None else 1 / gather["share_of_ideal"]


def kernel_table(found: Found, device: str) -> list[str]:
    """Every backend at every length, one row a mask and direction."""
    rows = cells(found, device)
    lengths = sorted({cell["length"] for cell in rows})
    lines = []
    for trains, direction in DIRECTIONS.items():
        some = [cell for cell in rows if cell["trains"] == trains]
        if not some:
            continue
        names = list(dict.fromkeys(name for cell in some for name in cell["backends"]))
        lines += ["", f"Speed-up over dense SDPA without a mask, {direction}. In each cell:"]
        lines += [f"{', '.join(names)}; what auto takes is in bold; - = not computed.", ""]
        lines.append("| mask | " + " | ".join(f"n = {length}" for length in lengths) + " |")
        lines.append("|---" * (len(lengths) + 1) + "|")
        for mask in dict.fromkeys(cell["mask"] for cell in some):
            at = {cell["length"]: cell for cell in some if cell["mask"] == mask}
            texts = [in_cell(at[length], names) if length in at else "" for length in lengths]
            lines.append(f"| {mask} | " + " | ".join(texts) + " |")
    return lines


def in_cell(cell: Found, names: list[str]) -> str:
    """The speed-ups of one cell."""
    texts = []
    for name in names:
        row = cell["backends"].get(name)
        text = "-" if row is None else shown(row["speedup"])
        texts.append(f"**{text}**" if cell["auto"]["backend"] == name else text)
    return ", ".join(texts)


def detail_table(found: Found, device: str) -> list[str]:
    """Densities, spread, error and preparation at the largest length, for gather and flex."""
    rows = cells(found, device)
    if not rows:
        return []
    length = max(cell["length"] for cell in rows)
    lines = ["", f"At n = {length} in full:", ""]
    lines.append(
        "| mask | kept cells | kept blocks | | backend | speed-up (10 to 90 %) | share of ideal "
        "| error | plan | first call |"
    )
    lines.append("|---" * 10 + "|")
    for cell in rows:
        if cell["length"] != length:
            continue
        for name, row in cell["backends"].items():
            if name == "sdpa":  # what the errors are over
                continue
            lines.append(
                f"| {cell['mask']} | {cell['density']:.1%} | {cell['block_density']:.1%} "
                f"| {DIRECTIONS[cell['trains']]} | {name} | {shown(row['speedup'], True)} "
                f"| {row['share_of_ideal']:.2f} | {row['error']:.0e} "
                f"| {row['prepare_seconds']:.2f} s | {row['first_call_seconds']:.2f} s |"
            )
    return lines


def model_table(found: Found, device: str) -> list[str]:
    """Whole models: speed-ups and memory."""
    rows = steps(found, device)
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        at = {row["length"]: row["sides"] for row in rows if row["kind"] == kind}
        lines += ["", f"Whole model, {kind}: speed-up over dense SDPA (10 to 90 %),"]
        lines += ["what auto takes in its layers, peak memory beyond the model at rest:"]
        lines += ["", "| model | " + " | ".join(f"n = {length}" for length in at) + " |"]
        lines.append("|---" * (len(at) + 1) + "|")
        for name in dict.fromkeys(name for sides in at.values() for name in sides):
            texts = []
            for sides in at.values():
                entry = sides.get(name)
                text = "" if entry is None else shown(entry["speedup"], spread=True)
                if entry is not None and "backends" in entry:
                    text += f", {' and '.join(entry['backends'])}"
                if entry is not None and "peak_bytes" in entry:
                    text += f", {entry['peak_bytes'] / 2**20:,.0f} MiB"
                texts.append(text)
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return lines


def table(found: Found) -> str:
    """What README.md holds between the two marks."""
    lines: list[str] = []
    for device in ("cpu", "cuda"):
        parts = [found[name] for part in PARTS if (name := key(part, device)) in found]
        if not parts:
            continue
        about = parts[0]
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        loads = " and ".join(f"{part['load']:.1f}" for part in parts)
        lines += ["", f"### {about['machine']}", "", f"{versions}; load at the end {loads}."]
        lines += ["", "| what | goal | measured (10 to 90 %) | |", "|---|---|---|---|"]
        lines += [goal.row() for goal in goals(found, device)]
        lines += ["", *counted(found, device, AUTO, over("over_fastest"), NEAR)]
        lines += counted(found, device, UNCOMPILED, over("over_fastest_uncompiled"), NEAR)
        lines += counted(found, device, KEPT, over_ideal, IDEAL)
        lines += kernel_table(found, device) + detail_table(found, device)
        lines += model_table(found, device)
    return "\n".join(lines).strip() + "\n"


PARTS = ("kernels", "models")
AUTO = "what auto takes, over the fastest exact backend"
UNCOMPILED = "the same, FlexAttention left aside (its first call compiles for seconds)"
KEPT = "gather, over the time of its kept blocks at dense SDPA's rate"


def in_readme(text: str) -> str:
    """What stands between the two marks of README.md."""
    return text.split(BEGIN, 1)[1].split(END, 1)[0].strip() + "\n"


def rewritten(text: str, found: Found) -> str:
    """README.md with the tables of the JSON between its two marks."""
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{table(found)}\n{END}{rest.split(END, 1)[1]}"


def draw(found: Found, path: Path, device: str = "cpu") -> None:
    """Speed-up of the kernels over block density, and of the train steps over the length."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    rows = cells(found, device)
    length = max((cell["length"] for cell in rows), default=0)
    marks = {"sdpa": "s", "gather": "o", "flex": "^"}
    for trains, direction in DIRECTIONS.items():
        some = [cell for cell in rows if (cell["length"], cell["trains"]) == (length, trains)]
        for name, mark in marks.items():
            points = sorted(
                (cell["block_density"], cell["backends"][name]["speedup"]["median"])
                for cell in some
                if name in cell["backends"]
            )
            if points:
                style = {"fillstyle": "none" if trains else "full", "linestyle": ""}
                left.plot(*zip(*points, strict=True), mark, label=f"{name}, {direction}", **style)
    densities = sorted({cell["block_density"] for cell in rows if cell["length"] == length})
    if densities:
        left.plot(densities, [1 / d for d in densities], "k--", label="ideal")
    left.axhline(1, color="grey", linewidth=0.8)
    left.set(xlabel="kept blocks", ylabel="speed-up over dense SDPA", title=f"n = {length}")
    left.set(xscale="log", yscale="log")
    shares = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    left.set_xticks(shares, [f"{share:.0%}" for share in shares])
    left.set_xlim(min([0.012, *densities]) * 0.8, 1)
    kinds = [row for row in steps(found, device) if row["kind"] == "train step"]
    for name in dict.fromkeys(name for row in kinds for name in row["sides"] if name != "dense"):
        points = [
            (row["length"], row["sides"][name]["speedup"]) for row in kinds if name in row["sides"]
        ]
        middle = [speed["median"] for _, speed in points]
        ends = [
            [speed["median"] - speed["low"] for _, speed in points],
            [speed["high"] - speed["median"] for _, speed in points],
        ]
        places = [place for place, _ in points]
        right.errorbar(places, middle, yerr=ends, marker="o", markersize=4, label=name)
    right.axhline(1, color="grey", linewidth=0.8)
    right.set(xlabel="positions", title="whole train step", xscale="log", yscale="log")
    lengths = sorted({row["length"] for row in kinds})
    right.set_xticks(lengths, [str(length) for length in lengths])
    right.set_ylabel("speed-up over dense SDPA")
    for axes in (left, right):
        axes.xaxis.set_minor_formatter(NullFormatter())
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
