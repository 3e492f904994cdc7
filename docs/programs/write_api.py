"""Writes docs/api.md: every public name, its first sentence, and the file that has the rest.

    python docs/programs/write_api.py

Called by conf.py with a folder, it writes `reference.rst` there, from which the site's pages of
the names are made.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GROUPS: dict[str, tuple[str, str]] = {  # heading: module, and its names
    "Search, compare": (
        "masksearch",
        "compare Comparison Local open_study ParetoHalving "
        "progress RayTune resume search sparsify Study",
    ),
    "Decoders: judged, allotted, served": (
        "masksearch_decoders",
        "allocate CausalEvaluator EngineEvaluator from_native kv_bytes MaskedCache Plan Recall "
        "Serving to_gguf to_native",
    ),
    "Tables with a known optimum": (
        "masksearch_bench",
        "Cell Datasheet Judged ProxyCard Table TableEvaluator TableSpec build judge load names "
        "proxy_card strategy summary",
    ),
    "Figures of results": (
        "masksearch.plots",
        "plot_comparison plot_curves plot_dam plot_differences plot_front plot_masks",
    ),
    "Masks": ("masksearch", "load_mask Mask save_mask"),
    "A mask on a model": (
        "masksearch",
        "attach attached detach explain measure_speed",
    ),
    "Models and their masks in files": (
        "masksearch",
        "load_pretrained MaskCallback push_to_hub save_pretrained saved_masks",
    ),
    "Evaluators: what scores a mask": (
        "masksearch",
        "EmbeddingEvaluator GlueEvaluator MlmEvaluator PlantedEvaluator",
    ),
    "DAM, units, positions": ("masksearch", "dam DamConfig Gates importance Units"),
    "Files of your own": ("masksearch", "budget_of Evaluator Objective Report Shape trim"),
    "Parts of your own: types and protocols": (
        "masksearch.contracts",
        "Differentiable Evaluate Executor FollowsReports OneShot Proposal "
        "Prune Record Refused RemembersRecords Scheduler Strategy Task Trials",
    ),
    "Errors": (
        "masksearch.errors",
        "AttachError CandidateError DataError EmptyRowError EvaluatorError HeadCountError "
        "LayerCountError LengthError MaskFormatError MaskSearchError NativeError "
        "NonFiniteLossError ResumeError SearchError ServerUnreachableError SpaceError "
        "TokensNeededError UncountedHops UnknownNameError",
    ),
    "Leaves and families of masks": (
        "masksearch.masks",
        "FAMILIES a_shape axial bigbird block_columns block_layout blocks butterfly causal "
        "columns cropped dilated equal_cost_baselines family fixed from_block_layout "
        "from_mask_mod from_numpy full global_tokens layer_of live_tokens log_sparse "
        "longformer offsets parse per_head per_layer Points "
        "powers_of_two random_keys recipe same_token shifts special_tokens star stride strided "
        "sweep_families table to_4d to_block_layout to_numpy toeplitz token_columns "
        "vertical_slash window without_diagonal work",
    ),
    "In their rooms: models, data, results": (
        "",
        "attention.explain.Explanation "
        "evaluators.wrappers.Cached gates.result.DamResult "
        "masks.lower.flex_block_mask masks.lower.lower masks.measure.fingerprint "
        "models.checkpoints.verify "
        "models.pretrained.open_pretrained models.pretrained.Pretrained "
        "positions.analysis.diagonal_controls positions.attention_maps.attention_maps "
        "positions.attention_maps.AttentionMaps positions.result.Importance "
        "sparsifier.Sparsified "
        "study.records.Constraint tasks.glue.columns.Columns tasks.glue.tasks.glue_score "
        "tasks.planted.graded.GradedProcess tasks.planted.process.PlantedProcess "
        "user_code.load_function user_code.shape_of",
    ),
}
ABOUT = {  # a sentence below a heading
    "Decoders: judged, allotted, served": "`from masksearch_decoders import allocate` "
    "([decoder](decoder.md)).",
    "Tables with a known optimum": "`from masksearch_bench import load, judge, build` "
    "([maskbench](maskbench.md)); "
    "`proxy_card` judges short runs ([proxy](proxy.md#how-far-to-trust-a-proxy)).",
    "Parts of your own: types and protocols": "In `ms.contracts` "
    "([how to write one](write_your_own.md)).",
    "In their rooms: models, data, results": "Import them from their modules.",
}
HEAD = """# The public names

*Written by a program, docs/programs/write_api.py, from the docstrings of the names.*

`import masksearch as ms` gives these names; `ms.masks`, `ms.contracts`, `ms.errors` and `ms.plots`
are modules. `help(ms.search)` prints arguments, units and errors. A name leads to the file that
defines it. A name that is not listed here may change without notice.
"""


def listed() -> list[tuple[str, str, str]]:
    """(heading, module, name) of every public name."""
    rows = []
    for heading, (module, names) in GROUPS.items():
        for each in names.split():
            home, _, name = f"{module or 'masksearch'}.{each}".rpartition(".")
            rows.append((heading, home, name))
    return rows


def first_sentence(thing: Any) -> str:
    """What it is, as a cell of a table shows it."""
    if isinstance(thing, dict):  # the docstring is that of its type
        return f"A dictionary: {', '.join(map(str, thing))}."
    about = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=\.) ", about)[0].removesuffix(":").removesuffix(".")
    return re.sub(r"([|*<])", r"\\\1", sentence) + "."


def row(module: str, name: str) -> str:
    """A name's row."""
    thing = getattr(import_module(module), name)
    shown = (
        f"`{re.sub(r'^masksearch(?=$|.(masks|contracts|errors|plots)$)', 'ms', module)}.{name}`"
    )
    home = getattr(thing, "__module__", "")
    if home.startswith("masksearch"):
        path = Path(import_module(home).__file__ or "").relative_to(ROOT)
        shown = f"[{shown}](../{path})"
    return f"| {shown} | {first_sentence(thing)} |"


def main(docs: Path) -> None:
    """Writes `api.md` into that folder."""
    text = HEAD
    for heading in GROUPS:
        about = f"{ABOUT[heading]}\n\n" if heading in ABOUT else ""
        rows = "\n".join(row(module, name) for its, module, name in listed() if its == heading)
        text += f"\n## {heading}\n\n{about}| name | what it is |\n|---|---|\n{rows}\n"
    (docs / "api.md").write_text(text, encoding="utf-8")


def write_reference(folder: Path) -> None:
    """Writes `reference.rst` into that folder: a page of its own for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = "\n".join(f"   {module}.{name}" for _, module, name in listed())
    head = "Reference\n=========\n\n.. autosummary::\n   :toctree: .\n   :nosignatures:\n\n"
    (folder / "reference.rst").write_text(f"{head}{names}\n", encoding="utf-8")


if __name__ == "__main__":
    main(ROOT / "docs")
