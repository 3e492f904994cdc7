"""Figures that the scripts of these pages print, in results/: see experiments/verify.py."""

import inspect
import re
from pathlib import Path

import numpy as np
from transformers import LlamaConfig

import masksearch as ms
from experiments.verify import NUMBER, Claim, rows, sentences
from masksearch.contracts import POINT
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.gates.gates import Gates
from masksearch.sparsifier import request, stages
from masksearch.tasks.planted.graded import GradedProcess
from masksearch_decoders import kv_bytes
from masksearch_decoders.engines import ENGINES as READ

RESULTS = Path(__file__).parent / "results"
BENCH = Path(__file__).parents[1] / "masksearch-bench" / "masksearch_bench"
FRONT, IMPORTANCE = "README.md", "docs/importance.md"


def printed(name: str) -> dict[str, list[float]]:
    """The rows of a table that a script has printed: first cell -> numbers of the others."""
    found = {}
    for line in (RESULTS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first, *cells = line.strip("| ").split(" | ")
            found[first] = [float(number) for cell in cells for number in re.findall(NUMBER, cell)]
    return found


DAM, HEALTH = "docs/dam.md", "docs/dam_health.md"
said = (RESULTS / "dam.txt").read_text(encoding="utf-8")


def dam(pattern: str) -> list[float]:
    """Numbers that `draw_dam.py` has printed."""
    return [float(number) for number in re.search(pattern, said).groups()]


def run(name: str, seed: int = 0) -> list[float]:
    """AUROC, precision, density, held-out loss and undecided share of a run."""
    found = re.search(rf"^\| {re.escape(name)} \| {seed} \| (.*) \|", said, re.M)[1]
    return [float(number) for number in re.findall(NUMBER, found)]


losses = dict(re.findall(r"'(\w+)': ([\d.]+)", said))
layers = [run("warm-up 0.5, two layers", seed)[1] for seed in range(3)]
overlap, overlap_in_two = (
    dam(rf"^{name}: .* matched (\S+) ".replace("^", "(?m:^)"))[0]
    for name in ("warm-up 0.5", "warm-up 0.5, two layers")
)
merged = dam(r"cut at .08: iou (\S+)")[0]
measured = printed("importance")
first, second = (measured[f"drop, offset number {rank}"] for rank in (1, 2))
third = measured["drop, offset number 3"]
partner = [
    effect
    for ranks in (first, second)
    for offset, effect in zip(ranks[::2], ranks[1::2], strict=True)
    if offset == -11
]
keys = [measured[f"drop, key number {rank}"] for rank in (1, 2)]


def side_by_side(*ranks: list[float]) -> list[float]:
    """Place and effect of each rank, seed after seed."""
    return [ranks[rank][at + i] for at in (0, 2, 4) for rank in range(len(ranks)) for i in (0, 1)]


searches = (RESULTS / "first_search.txt").read_text(encoding="utf-8").splitlines()
close = [line for line in searches if "loses at most 0.01 to planted" in line]

SMOLLM2 = LlamaConfig(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    dtype="float16",
)
ENGINES, DECODER, COMPARE = "docs/engines.md", "docs/decoder.md", "docs/comparing.md"
COLUMNS = {"mask": {}, "transformers": {}, "vllm": {}, "vllm, 1,024": {"in_flight": 1024}}
COLUMNS["llama.cpp"] = {}


def held(length: int, full: int, window: int, **how: object) -> tuple[float, float]:
    """MiB of SmolLM2's cache, and percent of dense, by a cache layout: some layers full, sinks
    beside a window in the others."""
    local = ms.masks.columns(4) | ms.masks.window(window - 1)
    mask = ms.masks.per_layer([ms.masks.full()] * full + [local] * (30 - full))
    counted = kv_bytes(mask, SMOLLM2, length, **how)
    return counted.bytes / 2**20, 100 * counted.share


def row(length: int, full: int) -> list[float]:
    """A row of the table of engines."""
    each = [
        held(length, full, 32, cache_layout=name.partition(",")[0], **how)
        for name, how in COLUMNS.items()
    ]
    return [number for pair in each for number in pair]


plan = [
    held(8192, 6, 128, cache_layout=cache_layout, **how)[1] / 100
    for cache_layout, how in {
        "mask": {},
        "transformers": {},
        "vllm": {},
        "llama.cpp": {"ubatch": 64},
    }.items()
]

VERDICT = (
    "{} than bigbird {}, undecided (margin {}) against dense {} "
    "({}% sparse, parts {} [{}, {}], {} seeds)"
)


def verdict(name: str) -> list[float]:
    """How much a mask is above bigbird, and the numbers of the verdict that was printed."""
    text = (RESULTS / f"{name}.txt").read_text(encoding="utf-8")
    (above,) = re.findall(r"^  bigbird .*: (\S+) \[", text, re.M)
    (said,) = re.findall(r"better than (.*seeds)\)\.$", text, re.M)
    return [float(above), *(float(number) for number in re.findall(NUMBER, said))]


def jobs(line: str) -> list[float]:
    """The numbers of a line that README's jobs have printed."""
    text = (RESULTS / "readme_jobs.txt").read_text(encoding="utf-8")
    (found,) = re.findall(line, text, re.M)
    return [float(number) for number in re.findall(NUMBER, found)]


story = [(2, 5), (1, 5), (2, 10), (1, 8), (1, 9), (0, 10)]  # reach, period
sparsities = {
    text: [100 * ms.masks.parse(text).sparsity(GradedProcess().length)]
    for text in (f"window({reach}) | stride({period})" for reach, period in story)
}
opened = inspect.signature(Gates).parameters["initial"].default

CLAIMS = [
    *rows(
        ENGINES,
        {
            f"{length:,} | {full} of 30": row(length, full)
            for length in (4096, 32768)
            for full in (6, 7)
        },
    ),
    *sentences("docs/search.md", {f"{{}}% 0 {text}": x for text, x in sparsities.items()}),
    Claim(
        DECODER,
        'dam >= {}: {} than log_sparse {}, strided {} and "scrambled dam >= {} + first key" {}, '
        "loses at most {} to dense {} ({}% sparse, {}% of the table, nll {} [{}, {}], {} seed, ",
        [0.8, -max(jobs("^  log_sparse .*: (.*?) \\[")), *jobs("better than (log_.*) seed")],
    ),
    Claim(
        COMPARE,
        "tpe >= {}: "
        + VERDICT.replace("bigbird {},", 'star {}, bigbird {} and "scrambled tpe >= {}" {},'),
        [0.7, *verdict("guide_compare")],
    ),
    Claim(DECODER, "kv_bytes {} of the dense cache at 8,192 tokens", plan[-1:]),
    Claim(DECODER, "each engine holds: transformers {}, vllm {}, llama_cpp {}", plan[1:]),
    *(
        Claim(
            page, "{} tables in which every choice was judged", [len([*BENCH.glob("*.parquet")])]
        )
        for page in ("docs/README.md", "docs/maskbench.md")
    ),
    Claim(DAM, "(open with probability sigmoid(alpha) = {})", [1 / (1 + np.exp(-opened))]),
    Claim(
        "docs/search.md",
        "{} search seeds gave [these masks](results/first_search.txt), {} times losing at most "
        "{} to the planted one",
        [len(searches), len(close), 0.01],
    ),
    *rows(
        HEALTH,
        {
            "healthy |": run("healthy"),
            "no warm-up | `dense_warmup=0`": run("no warm-up"),
            "all pruned | a penalty of 1000 x density": run("all pruned"),
            "not pruned | `gate_lr=5e-4`": run("not pruned"),
            "undecided | `density=0.4`": run("undecided"),
        },
    ),
    *rows(
        DAM,
        {
            "relaxed | at their probability": [float(losses["relaxed"])],
            "sampled | drawn": [float(losses["sampled"])],
            "rounded | at 1/2": [float(losses["rounded"])],
            "discretised | cut at the target": [float(losses["discretised"])],
            "retrained | fresh weights under that mask": [float(losses["retrained"])],
        },
    ),
    Claim(
        HEALTH,
        "of {} edges of the healthy run {} are planted ({} different)",
        dam(r"edges (\d+), planted (\d+), different (\d+)"),
    ),
    Claim(HEALTH, "all three seeds (IoU {}; {} at .1 by heads)", [merged, overlap]),
    Claim(
        HEALTH,
        "precision {} to {} (heads and layers pooled), but seeds overlap {} ({} against {})",
        [min(layers), max(layers), overlap_in_two - overlap, overlap_in_two, overlap],
    ),
    Claim(IMPORTANCE, "| held-out accuracy (ceiling 0.87) | {} | {} | {} |", measured["accuracy"]),
    *rows(
        IMPORTANCE,
        {
            "attention map": measured["attention map"],
            "gradient": measured["gradient, signed"],
            "gradient, `signed=False`": measured["gradient, signed=False"],
            "flip": measured["flip, signed"],
            "flip, `signed=False`": measured["flip, signed=False"],
            "fisher": measured["fisher"],
            "learned, 400 steps from the start": measured["learned, 400 steps"],
            "learned, 1,000 steps": measured["learned, 1000 steps"],
            "drop: the three largest offsets (nats)": side_by_side(first, second, third),
            "drop: the two largest key positions": side_by_side(*keys),
            "drop: the diagonal, 95% interval": measured["drop, diagonal"],
        },
        "## On a process",
    ),
    Claim(IMPORTANCE, "dropping offset -11 costs {} to {} nats", [min(partner), max(partner)]),
]
SCORES = ("11 0.853", "4 0.819", "19 0.656", "0 0.586", "16 0.586", "7 0.504")
RELEASES = " | ".join(f"{each.title} {each.version}" for each in READ.values())
MODELS = (Path(__file__).parent / "supported_models.md").read_text(encoding="utf-8")
PLACED = [  # of each kind of model: attached exactly, refused, not run
    [int(count) for count in row]
    for row in re.findall(r"^\| [a-z-]+ \| (\d+) \| (\d+) \| (\d+) \|$", MODELS, re.M)[:4]
]
ATTACHED = sum(attached for attached, *_ in PLACED)
SIX = ms.Shape(64, 6, 12, read=1, hidden_size=384, intermediate_size=1536)
assert round(1 / (1 - ms.masks.work(ms.masks.full(), SIX))) == 7  # "a seventh"
CLAIMS += sentences(
    FRONT,
    {
        "[{} model classes](docs/supported_models.md) of transformers take a mask": [ATTACHED],
    },
)
CLAIMS += sentences(
    "docs/trained_encoders.md",
    {
        "On a GPU, or a CPU with bfloat16 instructions, add `--set precision=bfloat16`.": [],
    },
)
CLAIMS += sentences(
    "docs/does_search_pay.md",
    {
        "Give random search the same training tokens, judge hand-designed masks of the budget "
        "(`masksearch compare RUN --budget 0.3`), and repeat the search": [],
        "Of a decoder one window is the first choice.": [],
        "| a head that averages all tokens, an embedder, or a decoder of short texts | no mask: "
        "every token is computed all the same | by design | "
        "[why](attention.md#tokens-that-no-one-will-look-at-again) |": [],
    },
)
ADAPTING, PARTS = "docs/adapting.md", {2: "half", 4: "quarter"}
RATES = (RESULTS / "verdict_rates.txt").read_text(encoding="utf-8")
(looks,) = re.findall(r"^\| by \| (\S+) \| (\S+) \|$", RATES, re.M)
first_look, second_look = (100 * float(rate) for rate in looks)
recovered = inspect.signature(GlueEvaluator).parameters["recover_steps"].default
CLAIMS += sentences(
    ADAPTING,
    {
        "The hand-designed masks of that cost and the masks of a search (`--strategy dam`, or a "
        "sampler in [head_roles](../search_spaces/README.md)) recover for a "
        f"{PARTS[stages.SHORT]} of the steps, and rows of the search score them. The {{}} "
        f"{PARTS[stages.SHORT // 2]} of the hand-designed masks then recovers for "
        f"{PARTS[stages.SHORT // 2]} of the steps, and the {{}} {PARTS[stages.SHORT]} "
        "for all.": [1.0, 1.0],  # those that stay score higher: tests of the halving
        "then recovers in full with {} fresh seeds, beside dense attention": [request.SEEDS],
        "Where a mask is shown to lose at most {} as it is": [POINT],
        "calls equal masks {} in {} % of cases instead of {} %": [
            second_look,
            second_look,
            first_look,
        ],
        "after `recover_steps` ({}) steps under the mask": [recovered],
    },
)
NO_CLAIM = [
    (
        DECODER,
        "*Scrambled*: as many random keys; *of the table*: of all n x n cells; *loses at "
        "most*: tested against that margin.",
    ),
    *(
        (ADAPTING, words)
        for words in (  # what the program does and how data are written, which its tests compare
            "A dense model is fine-tuned in the class of",
            "The best of each kind is scored as it is,",
            "The better mean on rows that no search has read is saved. Whether it is shown to be "
            "better, and on how many seeds it is ahead,",
            "all masks are chosen, judged and saved as they are, with intervals over rows",
            "(MiniLM on STS-B: about an hour and a half on one CPU core)",  # seen; not kept
            "(about ten minutes beyond the dense model)",  # likewise
            "trains gates three times, and each mask is shown apart.",
            "asks for a whole model that is 1.5 times as fast as the dense one, here, on "
            "development rows as they come in batches of 8 (`--set time_batch=`), in the lower "
            "quartile of its timings.",
            "one and two layers fewer (the best of at most 24 sets, neighbours first), a layer "
            "fewer "
            "with inputs cut,",
            "Where one of these meets the target and, on the rows that choose, loses nothing, "
            "no mask "
            "is searched.",
            "the line of Python that does it: bfloat16 where the device has units for it,",
            "or a sampler in `token_schedules`, beside schedules by hand.",
            "On rows that no choice has read the best mask stands against the best plain way that "
            "meets the target, and the better mean is saved: where that is plain, the dense model "
            "with its length or its layers, under `masks.full()`. The answer begins with what is "
            "lost and the time, taken once more.",
            "Where over .05 is lost, the dense model is recommended. `--set precision=bfloat16` "
            "makes the dense model in bfloat16 the baseline.",
            "Masks of whole tiles, which pay from about 2,048 tokens on, are [made by hand](",
            "lowered at most twice where the best mask misses it.",
            "the answers of the dense model are written once into the run's cache and stand for "
            "labels, and gates and recovery learn from its logits.",
            "of how many rows the class is the dense model's, with an interval;",
            "as RFC 4180 has it; a TSV is split at tabs and line ends and knows no quotes). A row "
            "with more or fewer cells than the header is refused by its line.",
            "or `regression, 450 rows, scores 1.0 to 5.0`.",
            "the recovery is a mask, and a loss from the dense model:",
            '| `"none"` | a dense model of the task, with the mask put on |',
            "The dense model of a task and seed is fine-tuned once and kept in the folder",
            "is itself the dense model. Its classes are found by their names in `id2label`, those "
            "of the files or the Hub's (SST-2: negative, positive)",
            "DAM then trains gates alone, on the frozen dense models of all tasks in turn; with "
            '`"train"` weights and gates together.',
            '`learn_from="dense"` takes the dense model\'s logits in place of the labels, for the '
            "gates and for the steps of",
            "these steps learn from both in equal parts, and the gates from the labels.",
            "so two texts must be compared inside attention.",
            "another protocol, with dense models of its own",
            "Before a mask is judged, one line (exit code 2) refuses",
            "- a dense model that does not beat a constant answer: give more rows, epochs,",
        )
    ),
    *(
        (FRONT, words)
        for words in (  # what the program is, and advice
            "judge it beside hand-designed masks, and put it on your Hugging Face model.",
            "masksearch searches it as an architecture: by DAM, the differentiable attention "
            "mask of [SparseBERT](https://arxiv.org/abs/2102.12871), by "
            "[Optuna](https://optuna.org)'s samplers, or at random.",
            "Fewer *pairs* of query and key alone save hardly any time on short texts.",
            "Encoders are MiniLM, one small checkpoint,",
            "Times are of 32 texts at once, in any order, one CPU thread, float32.",
            "| one that must be faster | `sparsify --faster`: it times bfloat16, shorter inputs, "
            "fewer layers and [masks that skip words]"
            "(docs/masks.md#which-tokens-a-model-still-needs), and saves what loses least, a mask "
            "or not |",
            "| a head that averages all tokens | sparse masks, but no speed |",
            "[advice](docs/decoder.md): an 8-bit cache, one window, then `allocate` |",
            "times as fast as now, in batches of 8 (`--set time_batch=`), or an error |",
            "tokens of a text, at most (128); longer ones are cut |",
            "work 0.5: prune is taken, by the better mean. [..] Minus dense attention as it is: "
            "+0.000, the same on every row.",
            "transformers alone refuses the folder:",
            "*No training under the mask ([experiment 22]",
            "*Tokens skipped, layers fewer, inputs cut ([experiment 25]",
            "(https://arxiv.org/abs/2102.12871) for DAM.",
        )
    ),
    *(
        ("docs/does_search_pay.md", words)
        for words in (  # what its words mean
            "a row of an encoder means 12 % unless it says otherwise.",
            "*Hand-designed* masks are those that people write: windows, whole heads, patterns of "
            "papers. [DAM](dam.md) learns a mask by gradients, TPE and random search [try masks",
            "| you have | take | how sure | read more |",
            "Five searches a side allow a [test]",
            "int8 and sorting texts by length need no search.",
            "| one that must be faster | [`sparsify --faster`](adapting.md#one-command)",
        )
    ),
    (ENGINES, f"windows of | {RELEASES}"),  # releases, from the table of engines
    (ENGINES, "llama-cpp-python 0.3.36 has it"),
    (IMPORTANCE, "these measures show at most 0.016"),  # not kept
    (IMPORTANCE, "1 - P as at least 0.1,"),  # how "flip" is defined
    (IMPORTANCE, "On the trained models below,"),  # on the page
    # tests/test_docs_attention.py and tests/test_docs_code.py compare these outputs
    ("docs/attention.md", "self 0-5 window(16) 512 6.34% 34.4% gather"),
    ("docs/attention.md", "block gather pays from about 512 positions on"),
    ("docs/write_your_own.md", "neighbourhood(4, 1) | global_tokens(1) 0.516"),
    ("docs/running.md", "#2 window(4) | global_tokens(1) score ..."),  # an example of a line
    # a minute of a search by two processes, whose order is another each time
    *(("docs/search.md", f"tpe {trial_and_score}") for trial_and_score in SCORES),
    # half an hour of SmolLM2 on novels, not kept: the command's output, but for shares of caches
    (DECODER, "and it is within the budget 0.25: no mask can be shown"),
    (DECODER, "budget 0.25: 6 of 30 units full (l15,"),
    (DECODER, "nll 3.7801 on the text of the search"),
    (DECODER, "on unseen text: dense ..."),
    (DECODER, "on 12 pieces of 2 documents: -0.0356 ..."),
    (DECODER, "as llama.cpp serves it: 3.6610, ..."),
    # releases, and a rule of vLLM's source: its tests/test_kv_cache.py compares its planner's
    (ENGINES, "| family | transformers ..."),
    (ENGINES, "where that is below 1.5 x the smaller"),
    # its tests/test_sinks.py runs a smaller such comparison and tests its order; not kept
    *(
        (ENGINES, f"| {first} |...")
        for first in (
            "dense",
            "the mask with its sinks, attached",
            'windows only (`"none"`)',
            '`"calibrate"`; for SGLang, without biases',
            '`"tune"`, 20 steps',
        )
    ),
    # its tests/test_llama_cpp.py tests these bounds, and that both losses agree on a novel
    (ENGINES, "Measured with llama-cpp-python 0.3.36"),
    (ENGINES, "are within .001 of transformers'"),
    (ENGINES, "change them by .01 at least"),
    (ENGINES, "3.97151 nats in float32 by both, 3.97153 from a float16 file"),
]
