"""What pages say about these benchmarks, recomputed from results/: see experiments/verify.py."""

import json
import runpy
import sys
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import pandas as pd

from experiments.verify import Claim, interval, rows, sentences

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # scripts import one another by their names
HERE = "benchmarks/README.md"
DAM, ATTENTION, CLUSTER = "docs/dam.md", "docs/attention.md", "docs/cluster.md"

proxy, search, dam, scaling, large, first_cpu, second_cpu = (
    json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("proxy", "search", "dam", "scaling", "large", "attention", "attention_amd_epyc")
)

# The search and its driver
tpe = dict(scaling["ask"]["tpe"])
draws = [1000 * tpe[trials] for trials in (100, 500, 1000, 2000)]
storage = {
    name: sum(found[part] for part in ("begin", "finish"))
    for name, found in scaling["storage"].items()
}
served = {
    name: 1
    / (
        tpe[1000]
        + scaling["lower"]
        + storage[name]
        + scaling["ray"]["dispatch"]
        + 10 * scaling["ray"]["report"]
    )
    for name in storage
}
simulation = runpy.run_path(str(FOLDER / "scaling.py"))
rates_of = {
    (name, trials): 1
    / sum(simulation["costs_of"](scaling, name, "journal").of_trial(trials, 10).values())
    for name in scaling["ask"]
    for trials in (500, 1000, 2000)
}
lost = [
    100 * (1 - simulation["simulate"](durations, slots, costs).efficiency)
    for slots, seconds in ((64, 10.0), (64, 5.0), (256, 10.0))
    for durations in [simulation["drawn"](seconds, simulation["TRIALS"])]
    for name in ("random", "evolution", "tpe")
    for costs in [simulation["costs_of"](scaling, name, "journal")]
]
half_a_minute = simulation["drawn"](30.0, simulation["TRIALS"])
efficiency = [
    simulation["simulate"](half_a_minute, slots, costs).efficiency
    for slots in (64, 256, 1000)
    for name in ("journal", "sqlite", "postgresql")
    for costs in [simulation["costs_of"](scaling, "tpe", name)]
]
study = search["study"]
ray, pool = search["orchestration"]["ray"], search["orchestration"]["pool"]


def both(name: str) -> list[float]:
    """Seconds of the large study, and of the small one."""
    return [large[size][name] for size in ("5000", "100")]


# A card
card, on_card = (
    json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("card", "proxy")
)
kernel_rows = card["kernels"]["rows"]
flex_rows = [row for row in kernel_rows if row["backend"] == "flex"]
fast = [row["first_call_seconds"] for row in flex_rows if not row["new_graphs"]]
first_calls = sorted(row["first_call_seconds"] for row in flex_rows if row["new_graphs"])
worst = {
    kind: max(
        error
        for row in kernel_rows
        if row["dtype"] == kind
        for error in row.get("errors", {}).values()
    )
    for kind in ("bfloat16", "float32")
}


def on_the_card(mask: str, length: int = 4096) -> list[float]:
    """Shares of blocks kept whole and in part, and milliseconds in both types: SDPA's,
    FlexAttention's."""
    cells = [row for row in kernel_rows if row["mask"] == mask and row["length"] == length]
    whole, kept = (cells[1].get(name, 0.0) for name in ("kept_whole", "kept_blocks"))
    shares = [] if mask == "no mask" else [whole, kept - whole]
    return shares + [row["forward_backward"]["ms"] for row in cells]


def in_encoders(mask: str) -> list[float]:
    """Milliseconds of a forward pass and, where it was run, of a training step."""
    kinds = [kind for kind in ("forward", "train step") if (kind, mask) in encoders]
    return [encoders[kind, mask] for kind in kinds]


def launched(backend: str) -> float:
    """Median milliseconds of a call as the host sees it, at 1,024 positions in 16 bits."""
    return median(
        row["forward_backward"]["wall_ms"]
        for row in kernel_rows
        if row["backend"] == backend and row["mask"] != "no mask"
        if (row["dtype"], row["length"]) == ("bfloat16", 1024)
    )


by_length = card["latency"]["lengths"].values()
hour = {(row["slots"], row["mps"]): row["trials_an_hour"] for row in card["shares"]["rows"]}
steps_of = {
    part: {row["run"]: row for row in card[part]["rows"]}
    for part in ("dam", "dam, hinge that waits")
}
by_executor = {row["ray"]: row["trials_an_hour"] for row in card["ray"]["rows"]}
encoders = {(row["kind"], row["mask"]): row["ms"] for row in card["models"]["rows"]}
sharing = [hour[4, False] / hour[1, False], hour[4, True] / hour[4, False]]

# DAM on planted processes
runs = pd.read_csv(FOLDER / "results" / "dam_runs.csv").sort_values("seed")
cells = {key: found for key, found in runs.groupby(["part", "cell"])}


def found(part: str, cell: str) -> list[float]:
    """AUROC, precision and seconds: a mean, with its interval where the seeds differ."""
    values: list[float] = []
    for column in ("auroc", "precision", "cpu_seconds"):
        of_seeds = cells[part, cell][column]
        values += interval(of_seeds) if of_seeds.nunique() > 1 else of_seeds[:1].tolist()
    return values


def each(part: str, cell: str) -> list[float]:
    """AUROC, precision, density and loss of every seed, and mean seconds."""
    columns = ("auroc", "precision", "density", "held_out")
    seconds = cells[part, cell].cpu_seconds.mean()
    return [*(value for column in columns for value in cells[part, cell][column]), seconds]


FORMS = {  # in the README -> in dam_runs.csv
    "flip, hard: the default form (A), seeds 0 to 4": ("A", "n = 32, 1,500 steps, 600 of warm-up"),
    "log, soft": ("H", "log, soft"),
    "log, hard-concrete": ("H", "log, hard-concrete"),
    "product, hard": ("H", "product, hard"),
    "additive, hard": ("H", "additive, hard"),
    "flip, two levels": ("H", "flip, two levels"),
    "flip, no warm-up, seeds 0 to 4": ("H", "flip, no warm-up"),
    "flip, growing from .03": ("H", "flip, growing from .03"),
    "published algorithm, lambda 5e-5": ("H", "published"),
}
step = {form: dam["I"]["cells"][form] for form in ("log", "flip")}
short = cells["A", "n = 32, 1,500 steps, 600 of warm-up"]
scaled = pd.concat(cells["G", f"loss x {factor}"] for factor in ("1000", "0.001"))
offsets = runs[runs.part == "C"]


def tile_row(length: int) -> list[float]:
    """Memory and time under gates of tiles over those of dense training."""
    each = (dam["J"]["cells"][f"{length} tokens, {what}"] for what in ("memory", "time"))
    return [at[name] for at in each for name in ("ratio", "least", "most", "dense")]


def step_row(form: str) -> list[float]:
    at = step[form]
    return [at["ratio"], *at["quartiles"], at["seconds"], at["dense seconds"]]


# Attention
tables = runpy.run_path(str(FOLDER / "attention_tables.py"))


def kernel(of_cpu: dict, mask: str, trains: bool) -> float:
    """Speed-up of what auto takes at 4,096 positions."""
    at = [
        cell
        for cell in tables["cells"](of_cpu, "cpu")
        if (cell["mask"], cell["length"], cell["trains"]) == (mask, 4096, trains)
    ]
    return tables["by_auto"](at[0])["median"]


def train_step(of_cpu: dict, name: str, length: int = 4096) -> float:
    return tables["side"](of_cpu, "cpu", length, name)["speedup"]["median"]


def ideal(of_cpu: dict) -> list[float]:
    """Cells in which gather is within 1.5 of its kept blocks' ideal, and the largest ratio."""
    ratios = [tables["over_ideal"](cell) for cell in tables["cells"](of_cpu, "cpu")]
    ratios = [ratio for ratio in ratios if ratio is not None]
    return [sum(ratio <= 1.5 for ratio in ratios), max(ratios)]


def near(of_cpu: dict, name: str) -> list[float]:
    """Cells in which auto is within 1.1 of the fastest, and the largest ratio."""
    ratios = [cell["auto"][name] for cell in tables["cells"](of_cpu, "cpu")]
    return [sum(ratio <= 1.1 for ratio in ratios), max(ratios)]


def table_of(name: str) -> str:
    """The table that a benchmark prints of its results."""
    stored = (FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8")
    printed: str = runpy.run_path(str(FOLDER / f"{name}.py"))["table"](json.loads(stored))
    return printed


def encoders_in_tiles() -> dict[str, list[float]]:
    """The first two cells of an encoder's row -> how many times as fast."""
    found: dict[str, list[float]] = {}
    for row in json.loads((FOLDER / "results" / "tiles.json").read_text("utf-8"))["rows"]:
        name = f"{row['layers']} layers of {row['width']}, {row['heads']} heads"
        found.setdefault(f"{name} | {row['length']:,}", []).append(row["faster"]["median"])
    return found


of_words = json.loads((FOLDER / "results" / "words.json").read_text(encoding="utf-8"))["rows"]
decode = json.loads((FOLDER / "results" / "decode.json").read_text(encoding="utf-8"))
slower = max(
    row["sides"]["native"]["faster"]["median"] / row["sides"]["sinks"]["faster"]["median"]
    for row in decode["rows"]
)
within = "`MaskedCache` is within {} % of transformers' own sliding layers"
BOTH = (first_cpu, second_cpu)
LONGFORMER = ("Hugging Face Longformer, window 64", "longformer 32, 1")
masks = ("window 64", "random blocks, 90 %")
written = tables["table"](first_cpu).replace("**", "")
accuracy = proxy["scores, real text"]["accuracy"]
rates = proxy["finetune"]["examples_per_second"]
pretrain = proxy["pretrain"]

CLAIMS = [
    *(Claim(HERE, table_of(name), []) for name in ("decode", "judging", "dead_tokens")),
    Claim(HERE, "at most {} for one mask, {} for a mask of all that leave", [1.1, 0.7]),
    Claim(HERE, within, [100 * (slower - 1)]),
    Claim(
        "docs/masks.md",
        "A forward pass takes {} times as long as under a table at {} tokens and {} times at {} (",
        [each for row in of_words for each in (row["words over table"]["median"], row["length"])],
    ),
    *(
        Claim(HERE, f"| {name} |" + " {} ({}) |" * 4, figures)
        for name, figures in encoders_in_tiles().items()
    ),
    Claim(HERE, written, []),
    *rows(
        HERE,
        {
            "forward, n = 4096: window 64; random blocks, 90 %": [
                10,
                5,
                *(kernel(cpu, mask, False) for cpu in BOTH for mask in masks),
            ],
            "forward + backward: the same": [
                10,
                5,
                *(kernel(cpu, mask, True) for cpu in BOTH for mask in masks),
            ],
            "whole train step, random blocks, 95 %, n = 1024, 2048, 4096": [
                1.3,
                1.8,
                3,
                *(
                    train_step(cpu, "random blocks, 95 %", length)
                    for cpu in BOTH
                    for length in (1024, 2048, 4096)
                ),
            ],
            "Hugging Face Longformer beside our Longformer(32, 1), train step at 4096": [
                train_step(cpu, name) for cpu in BOTH for name in LONGFORMER
            ],
            "gather within 1.5 of its kept blocks' ideal": [
                80,
                *ideal(first_cpu),
                *ideal(second_cpu),
            ],
            "auto within 1.1 of the fastest, among SDPA and gather": [
                80,
                *(near(cpu, "over_fastest_uncompiled")[0] for cpu in BOTH),
            ],
            "the same, FlexAttention included": [
                80,
                near(first_cpu, "over_fastest")[0],
                *near(second_cpu, "over_fastest"),
            ],
        },
    ),
    *sentences(
        HERE,
        {
            "over the ideal 40 s | {} (and {} s to start, {} s to end) | <= 1.10 |": [
                ray["ratio"],
                ray["start_up"],
                ray["shut_down"],
            ],
            "| the same, `Local(slots=2)` | {} ({} s to start) |": [
                pool["ratio"],
                pool["start_up"],
            ],
            "(CPU, loaded machine) | {}, {}, {}, {} ms |": draws,
            "listed at 10,000 | {} ms, {} ms, {} ms |": [
                dict(search["sampler"]["evolution"])[2000],
                dict(search["sampler"]["random"])[10000],
                dict(search["sampler"]["listed"])[10000],
            ],
            "driver's time a trial | {} ms for the first 250, {} ms for the last |": [
                study["ms_per_trial"][0][1],
                study["ms_per_trial"][-1][1],
            ],
            "| its report (page and figures, imports included) | {} s |": [
                study["report_seconds"]
            ],
            "| its status | {} s |": [study["status_seconds"]],
            "imports included) | {} / {} = {} |": [*both("report"), large["report"]],
            "the last 50 of 100 | {} / {} ms = {} |": [
                *(1000 * seconds for seconds in both("trial")),
                large["trial"],
            ],
        },
    ),
    *(
        Claim(
            page,
            "that is {} with a journal, {} with SQLite and {} with PostgreSQL",
            [served[name] for name in ("journal", "sqlite", "postgresql")],
        )
        for page in (HERE, CLUSTER)
    ),
    *sentences(
        HERE,
        {
            "| trials of 30 s |...": efficiency,
            "| draw a mask: random | {} |": [1000 * dict(scaling["ask"]["random"])[0]],
            "evolution, after 1,000 / 2,000 trials | {} / {} |": [
                1000 * dict(scaling["ask"]["evolution"])[trials] for trials in (1000, 2000)
            ],
            "(14 parameters) | {} / {} / {} / {} |": draws,
            "no time, on one slot, random: journal / SQLite / PostgreSQL | {} / {} / {} |": [
                1000 * scaling["trial"][name]["usual"]
                for name in ("journal", "sqlite", "postgresql")
            ],
            "serves {} trials per second with random, {} with evolution, and with tpe {}\n"
            "after 500 trials, {} after 1,000 and {} after 2,000": [
                rates_of["random", 1000],
                rates_of["evolution", 1000],
                *(rates_of["tpe", trials] for trials in (500, 1000, 2000)),
            ],
            **{
                f"| {search} | {{}} % | {{}} % | {{}} % |": lost[3 * row : 3 * row + 3]
                for row, search in enumerate(
                    ("64, of 10 s | 6", "64, of 5 s | 13", "256, of 10 s | 26")
                )
            },
            "(length 128, 4 layers, 4 heads) | {} |": [1000 * scaling["lower"]],
            "| write proposal and result: journal / SQLite / PostgreSQL | {} / {} / {} |": [
                1000 * storage[name] for name in ("journal", "sqlite", "postgresql")
            ],
            "| Ray Tune: start a trial and collect its result (busy driver) | {} |": [
                1000 * scaling["ray"]["dispatch"]
            ],
            "| Ray Tune: one report | {} |": [1000 * scaling["ray"]["report"]],
            "one report written: journal / SQLite / PostgreSQL | {} / {} / {} |": [
                1000 * scaling["storage"][name]["observe"]
                for name in ("journal", "sqlite", "postgresql")
            ],
            "Ray Tune): {} s per trial, simulated {} s, ideal {} s": [
                scaling["check"][name] for name in ("run", "simulated", "ideal")
            ],
        },
    ),
    *sentences(
        HERE,
        {
            "dense mask (`BertForMaskedLM`) | {} tokens/s | {} | {} | >= 1.3: met |": [
                *(
                    np.round(pretrain["dense"]["tokens_per_second"][side], -2)
                    for side in ("own", "trainer")
                ),
                pretrain["dense"]["ratio"],
            ],
            "| the same, star on both sides | {} tokens/s | {} | {} | >= 1.3: met |": [
                *(
                    np.round(pretrain["star"]["tokens_per_second"][side], -2)
                    for side in ("own", "trainer")
                ),
                pretrain["star"]["ratio"],
            ],
            "Trainer padded to 128 | {} examples/s | {} | {} |": [
                rates["own"],
                rates["padded"],
                proxy["finetune"]["ratio_to_padded"],
            ],
            "Trainer padded by batch | {} examples/s | {} | {} |": [
                rates["own"],
                rates["dynamic"],
                proxy["finetune"]["ratio_to_dynamic"],
            ],
            "from scratch, 3 seeds | {}, sd {} | {}, sd {} (both paddings)": [
                mean(accuracy["own"]),
                stdev(accuracy["own"]),
                mean(accuracy["padded"]),
                stdev(accuracy["padded"]),
            ],
        },
    ),
    *(
        Claim(HERE, f"{row} | 5 | {{}} | {{}} | {{}} [{{}}, {{}}] |", found(*cell))
        for row, cell in (
            ("| A | n = 32, offset 11 and a global token", ("A", "n = 32")),
            (
                "| A | the same, 2,500 steps, 1,000 of warm-up",
                ("A", "n = 32, 2,500 steps, 1,000 of warm-up"),
            ),
            ("| B | n = 64, offsets 11 and 23 and a global token", ("B", "n = 64")),
            (
                "| B | the same, 1,500 steps, 600 of warm-up",
                ("B", "n = 64, 1,500 steps, 600 of warm-up"),
            ),
        )
    ),
    *sentences(
        HERE,
        {
            "| A | the same, 1,500 steps, 600 of warm-up | 5 | {} [{}, {}] | {} [{}, {}] | "
            "{} [{}, {}] |": found(*FORMS["flip, hard: the default form (A), seeds 0 to 4"]),
            "exactly the top ones in {} of {} runs": [(offsets.margin > 0).sum(), len(offsets)],
            "the likeliest other one by at least {} of probability": [offsets.margin.min()],
            "AUROC and precision {} in all four runs, density {} to {} where .05": [
                min(scaled.auroc.min(), scaled.precision.min()),
                scaled.density.min(),
                scaled.density.max(),
            ],
            "| log, soft | {} ({} to {}); {} s against {} s | <= 1.15: met |": step_row("log"),
            "| flip | {} ({} to {}); {} s against {} s | <= 1.5: met |": step_row("flip"),
            **{
                f"| {length:,} | {{}} ({{}} to {{}}) of {{}} MiB | "
                "{} ({} to {}) of {} s | <= 1.5, <= 2.0: met |": tile_row(length)
                for length in (512, 1024)
            },
        },
    ),
    *(
        Claim(HERE, f"| {name} |...", each(*cell), "| gates | AUROC")
        for name, cell in FORMS.items()
    ),
    Claim(
        DAM,
        "dense SDPA: {} in the flip form, {} in the log form",
        [step["flip"]["ratio"], step["log"]["ratio"]],
    ),
    *sentences(
        HERE,
        {
            "at its own lambda it ends at a density of {}": [
                cells["H", "published"].density.mean()
            ],
            "needs, so their precision is {}": [cells["H", "log, soft"].precision.mean()],
            "Two levels (gates on batches of their own) are as good, at {} times the time": [
                cells["H", "flip, two levels"].cpu_seconds.mean() / short.cpu_seconds.mean()
            ],
            "(AUROC {}, precision {}; seeds 0": [short.auroc.min(), short.precision.min()],
        },
    ),
    *rows(
        HERE,
        {
            name: on_the_card(mask)
            for name, mask in {
                "no mask": "no mask",
                "window 64": "window",
                "longformer 64, 2": "longformer",
                "a twentieth of the blocks": "block layout, .05",
                "half of the blocks": "block layout, .5",
                "another in each head": "another in each head",
                "random bits, 5 %": "table, random bits",
            }.items()
        },
        after="## On a GPU",
    ),
    *rows(
        HERE,
        {
            name: in_encoders(mask)
            for name, mask in {
                "no mask, dense SDPA": "dense",
                "a twentieth of the blocks, FlexAttention": "random blocks, 95 %",
                "BigBird in whole blocks, FlexAttention": "bigbird, 3 random blocks",
                "longformer, SDPA with a table": "longformer 64, 1",
                "another in each layer and head, FlexAttention": "another in each layer and head",
                "searched by DAM, FlexAttention": "searched by DAM",
            }.items()
        },
        after="Whole encoders",
    ),
    *sentences(
        HERE,
        {
            "dense attention without a mask: {} times and {} times in training": [
                dense / fast
                for dense, fast in zip(
                    in_encoders("dense"), in_encoders("random blocks, 95 %"), strict=True
                )
            ],
            "slower than dense attention, by {} times": [
                in_encoders("another in each layer and head")[0] / in_encoders("dense")[0]
            ],
            "{} trials an hour by `ms.Local`, {} by Ray Tune": [
                by_executor[False],
                by_executor[True],
            ],
            "relative error of an output or gradient is {} in bfloat16 and {} in float32": [
                worst["bfloat16"],
                worst["float32"],
            ],
            "The first call of a shape takes {} to {} s, those of the next eleven masks {} to {} "
            "s;": [first_calls[2], first_calls[-1], min(fast), max(fast)],
            "distinct tiles compiles once more, for {} and {} s": first_calls[:2],
            "longformer keeps {} of the blocks and takes {} ms": [
                on_the_card("longformer")[1],
                on_the_card("longformer")[3],
            ],
            "block density and milliseconds {}, {}, {} and {} at 512, 1,024, 2,048 and 4,096 "
            "positions; at a density of 1 FlexAttention takes {}, {}, {} and {} of": [
                *(found["by_ms"]["spearman"] for found in by_length),
                *(found["by_ms"]["over_sdpa_at_1"] for found in by_length),
            ],
            "The host takes {} ms to launch such a call forward and backward by FlexAttention, {} "
            "ms by SDPA": [launched("flex"), launched("sdpa")],
            "float32: {} ms a step, dense training {} ms, {} times as long": [
                *(steps_of["dam"][run]["ms_a_step"] for run in ("dam", "dense")),
                card["dam"]["ratio"],
            ],
            "DAM waits for the card {} times a step, dense training {} times": [
                steps_of["dam"][run]["waits_a_step"] for run in ("dam", "dense")
            ],
            "While its hinge waited too, {} times a step, a step took {} ms": [
                steps_of["dam, hinge that waits"]["dam"][what]
                for what in ("waits_a_step", "ms_a_step")
            ],
            "(a trial alone takes {} s)": [mean(card["shares"]["rows"][0]["trial_seconds"])],
            "reaches {} tokens/s, transformers' Trainer {}: {} times; under star {} times": [
                *on_card["pretrain, cuda"]["dense"]["tokens_per_second"].values(),
                on_card["pretrain, cuda"]["dense"]["ratio"],
                on_card["pretrain, cuda"]["star"]["ratio"],
            ],
        },
    ),
    *rows(
        HERE,
        {
            "1, 1": [hour[1, False]],
            "2, 0.5": [hour[2, False], hour[2, True]],
            "4, 0.25": [hour[4, False], hour[4, True]],
        },
        after="trials at a time",
    ),
]

NO_CLAIM = [
    ("docs/gpu.md", "(torch 2.11, Python 3.12)"),
    ("docs/gpu.md", "passed with torch 2.15"),
    ("docs/gpu.md", "276 tests"),
    ("docs/gpu.md", "7.2e9 random parameters"),  # a script that is not kept
    ("docs/gpu.md", "0.27 s a row"),  # the same
    ("docs/gpu.md", "15.6 GB at its peak"),  # the same
    ("docs/cluster.md", "at `--gpus` 1, 0.5 and 0.25: a small proxy"),
    ("docs/cluster.md", "at 0.25 as alone"),
    ("docs/cluster.md", "(0.63 GB for each process)"),
    (HERE, "16 CPU cores, torch 2.11"),
    (HERE, "The goal of 1.3 is"),
    (HERE, "of lognormal length (spread 0.3)"),
    (HERE, "trials of 5 min | 1.00 / 1.00 / 1.00 | .999 / .998 / .998 | .98 / .97 / .97 |"),
    (HERE, "trials of 1 h | 1.00 / 1.00 / 1.00 | 1.00 / 1.00 / 1.00 | .999 / .999 / .998 |"),
    (HERE, "Python 3.11"),
    (HERE, "torch 2.13, transformers 5.23"),
    (HERE, "making a batch takes 0.4 ms of 180"),  # a profile, not kept
    (HERE, "(target density .05)"),
    (HERE, "load 4 to 6), torch 2.13"),
    (HERE, ">= .995, >= .97, <= 60"),
    (HERE, ">= .98, >= .95, <= 240"),
    (HERE, "pairs of runs 1.10, 1.11 and .97 times"),  # not kept
    (HERE, "(loss 2.12 at 750, 1.49 at 825, 1.38 at 900)"),  # dense trainings, not kept
    (HERE, "with 1.62 and 1.89)"),
    (HERE, "multiplied by 1,000 and by 0.001"),
    (
        HERE,
        "about 1.37 is the best possible, 2.2 that of a model which knows the partners and not "
        "the key, 3.47 that of one",
    ),
    (HERE, "density (.05 asked for)"),
    (HERE, "start at a density of .03"),
    (HERE, "where less than .6 of the tiles"),
    (HERE, "| encoder | tokens | 50 % of the tiles | 25 % | 12.5 % |"),
    (HERE, "keep the diagonal, 12.5 %"),
    (HERE, "takes 1.3 to 2 times as long on the Xeon. Dense SDPA takes .7 of"),
    (
        HERE,
        "takes 1.6 times as long for each block pair as in dense attention, from six "
        "blocks on 1.15",
    ),
    (
        ATTENTION,
        "has a cosine of .67 with that of dense attention. With `| masks.global_tokens(1)`, "
        "which keeps `[CLS]` as a hub, the cosine is .86",
    ),  # tests/test_docs_attention.py
]
