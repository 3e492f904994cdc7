"""The commands of a stored model: attach (put a mask on), export (to a file), sparsify."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from masksearch.cli.options import (
    COMPARED,
    MASK_TEXT,
    MODEL,
    OUTPUT,
    PLACE,
    REQUIRED,
    SEARCHED,
    Json,
    JudgeOptions,
    MaskArgument,
    OptionsError,
    Slots,
    TaskOptions,
    argument,
    described,
    described_values,
    flag,
    option,
    takes,
)
from masksearch.files import object_in
from masksearch.neighbours import load_part

if TYPE_CHECKING:
    from masksearch.masks import Mask
    from masksearch.models.card import Account

FIRST = ("model", "data", "text", "label", "budget", "recover_steps", "length", "out")
ATTACHED = "Which mask, on which model"
PLAN = "masksearch-plan"  # kind of a file
LONGEST = 4096  # positions that are explained where nothing is said
PAYS = 512  # tokens of the shortest inputs on which whole models gained: benchmarks/README.md


@dataclass(frozen=True, kw_only=True)
class AttachOptions:
    """Options of attach."""

    model: str = argument(
        "A Hugging Face model: a folder, a name on the Hub, or a decoder's GGUF file.",
        *(ATTACHED, "MODEL"),
    )
    mask: str = argument(
        f"{MASK_TEXT} special_tokens(..) and same_token() are taken too. Or a plan of masksearch "
        "allocate, for the model that it was found for.",
        *(ATTACHED, "MASK"),
    )
    budget: float | None = option(
        "With the run of a comparison as MASK: the mask that it recommends within this share of "
        "dense attention's cost.",
        *(ATTACHED, "none", "SHARE"),
    )
    out: Path | None = option(
        "Write model and mask to this folder, which ms.load_pretrained opens.",
        *(OUTPUT, "not written", "FOLDER"),
    )
    backend: str = option(
        "What computes attention: auto (the fastest), sdpa, gather or flex.",
        *(ATTACHED, "", "NAME"),
        default="auto",
    )
    length: list[int] | None = option(
        "Length of the sequences that are explained, or timed, the model's positions at most; "
        "repeatable.",
        *(OUTPUT, "that of the mask, else the model's longest, up to 4096", "POSITIONS"),
    )
    time: bool = flag("time", "Time the whole model under the mask and dense, in turns.", OUTPUT)
    as_json: Json = False


@takes()
def attach(options: AttachOptions) -> None:
    """Put a mask on a model, say what computes each layer and why, and save both together.

    Examples:
        masksearch attach my-llama/ runs/allocate/plan.json --out runs/masked
        masksearch attach my-bert/ runs/compared --budget 0.3 --time --length 128 --length 512
    """
    from masksearch.attention.attach import attach as attach_to
    from masksearch.attention.explain import explain
    from masksearch.masks.text import holds_saved_mask, names_run
    from masksearch.models.checkpoints import CONFIG, check_positions
    from masksearch.models.pretrained import count_positions
    from masksearch.models.saving import copy_tokenizer, limit_length, open_model, save_pretrained
    from masksearch.models.speed import measure_speed

    model, mask, lengths = options.model, options.mask, options.length or []
    say = partial(typer.echo, err=options.as_json)
    swapped = (Path(mask) / CONFIG).is_file() and not holds_saved_mask(mask)
    if swapped or ("(" in model and not Path(model).exists()):
        raise OptionsError(f"MODEL comes first, then MASK: masksearch attach {mask} {model!r}")
    folder = find_folder(model)
    if options.budget is not None:
        from masksearch.driver import Comparison

        advice = Comparison.open(mask).recommend(options.budget)
        say(str(advice))
        masked, plan = advice.mask, None
    else:
        masked, plan = _read_mask_or_plan(mask, folder, model)
    whole = open_model(folder)
    longest, _ = count_positions(whole)
    check_positions(model, longest, max(lengths, default=1))
    attach_to(whole, masked, backend=options.backend)
    lengths = lengths or [min(longest, LONGEST, masked.longest or LONGEST)]
    explained = [explain(whole, each) for each in lengths]
    say("\n".join(map(str, explained)))
    speeds = [speed for each in lengths * options.time for speed in measure_speed(whole, each)]
    say("\n".join(map(str, speeds)), nl=options.time)
    if options.as_json:
        typer.echo(json.dumps({"kernels": explained, "speeds": speeds}, default=asdict))
    if options.out is not None:
        written = save_pretrained(whole, options.out, found=plan)
        copy_tokenizer(folder, written)
        limit_length(written, whole)
        use = _how_to_use(written, min(longest, masked.longest or PAYS))
        say(f"model and mask: {written}\n{use}")
        if names_run(mask) and options.budget is None:
            from masksearch.study.references import rival_note

            say(rival_note(mask))
        if names_run(mask):
            say(
                f"weights: of {model}, as they are there; those that a search fine-tunes before "
                "it judges masks are in its cache: evaluator.adapted(mask, seed=0) "
                "(docs/adapting.md)"
            )


def _how_to_use(folder: Path, longest: int, *, skips: bool = False) -> str:
    """The last words of a command that has written a model with its mask.

    Args:
        folder: Of the model.
        longest: Positions that model and mask have.
        skips: Whether its time is that of tokens that it skips, not of pairs.
    """
    opened, length = f"ms.load_pretrained({str(folder)!r})", min(PAYS, longest)
    clause = "" if skips else f"; pairs become seconds from about {PAYS} tokens on"
    return (
        f"  open it: {opened}; transformers alone refuses it\n"
        f"  time it here: print(*ms.measure_speed({opened}, length={length})){clause}\n"
        "  serve it: docs/inference.md (a pipeline, ONNX, a smaller cache)"
    )


def find_folder(model: str) -> Path:
    """The folder of a model: as it is named, downloaded, or converted from GGUF."""
    from masksearch.models.checkpoints import find_folder as find_checkpoint

    if Path(model).suffix.lower() == ".gguf":
        converted: Path = load_part("parts", "gguf", "file of kind")(Path(model))
        return converted
    return find_checkpoint(model)[1]


def _read_mask_or_plan(text: str, folder: Path, model: str) -> tuple[Mask, Account | None]:
    """A mask, or that of a plan for this model, and the plan.

    Raises:
        DataError: If the plan is for another model.
    """
    from masksearch.masks.text import parse
    from masksearch.models.checkpoints import hash_files

    path = Path(text)
    if path.suffix != ".json" or not path.is_file() or object_in(path).get("kind") != PLAN:
        return parse(text), None
    plan = load_part("parts", PLAN, "file of kind").load(path)
    plan.check_model(hash_files(folder), model)
    return plan.mask, plan


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of export."""

    mask: MaskArgument
    out: Path = option(
        "The file: NAME.json (any mask), NAME.safetensors (tables as tensors) or NAME.npy (a "
        "block layout of 0 and 1, for block-sparse kernels).",
        *(OUTPUT, "", "FILE"),
        default=REQUIRED,
    )
    block: int | None = option("NAME.npy: side of a block, in positions.", COMPARED, "none", "N")
    length: int | None = option(
        "NAME.npy: positions that the layout covers.", COMPARED, "none", "N"
    )


@takes()
def export(options: ExportOptions) -> None:
    """Write a mask to a file: the mask of a trial, the best of a run, or any other.

    Examples:
        masksearch export "runs/search#7" --out mask.json
        masksearch export "longformer(16, 2)" --out layout.npy --block 16 --length 128
    """
    from masksearch.masks import parse
    from masksearch.masks.text import save_mask, short_text

    out, block, length = options.out, options.block, options.length
    chosen = parse(options.mask)
    if out.suffix == ".npy":
        if block is None or length is None:
            raise OptionsError("a block layout needs --block and --length, such as 64 and 512")
        note = _save_layout(chosen, out, block, length)
        use = f"masks.from_block_layout(numpy.load({str(out)!r}), {block})"
    else:
        if block is not None or length is not None:
            raise OptionsError(
                f"--block and --length belong to a block layout, --out NAME.npy; got {out.name!r}"
            )
        save_mask(chosen, out)
        note = short_text(chosen)
        use = f"ms.load_mask({str(out)!r}), or masksearch report {out}"
    typer.echo(f"{out}: {note}; use it: {use}")


def _save_layout(mask: Mask, out: Path, block: int, length: int) -> str:
    """Writes which blocks of a mask hold a kept cell.

    Returns:
        What the file holds, in words.

    Raises:
        OptionsError: If the mask tells layers apart.
    """
    import numpy as np

    from masksearch.masks import to_block_layout

    if (mask.layers or 1) > 1:
        raise OptionsError(
            f"a block layout has no layers, this mask has {mask.layers}; in Python, "
            "masks.layer_of(mask, 0) is its first layer"
        )
    mask.refuse_tokens()
    layout = to_block_layout(mask, length, block)
    whole = float(layout.double().mean())
    kept = mask.density(length)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.save(file, layout.numpy().astype(np.uint8), allow_pickle=False)
    size = "x".join(map(str, layout.shape))
    return f"{size} blocks of {block} positions, {whole:.1%} of them kept (the mask: {kept:.1%})"


@dataclass(frozen=True, kw_only=True)
class SparsifyOptions(TaskOptions):
    """Options of sparsify."""

    model: str = argument(
        "A trained encoder: a folder, or a name on the Hugging Face Hub; fine-tuned or not, or a "
        "folder of sentence-transformers.",
        *(MODEL, "MODEL"),
    )
    budget: list[float] | None = option(
        "Largest share of the non-padding query-key pairs that is kept; repeatable, a folder "
        "each.",
        *(SEARCHED, "0.12, or what --faster or --work leaves", "SHARE"),
    )
    faster: float | None = option(
        "In place of a budget: how many times as fast as the dense model it is to be, on "
        "development rows as they come in batches of 8 (--set time_batch=N); plain ways are "
        "judged beside masks, and nothing is trained under them.",
        *(SEARCHED, "no target of time", "TIMES"),
    )
    work: list[float] | None = option(
        "In place of a budget: largest share of the multiplications that is left once tokens that "
        "nobody needs are left out, as the saved model does; repeatable.",
        *(SEARCHED, "no limit", "SHARE"),
    )
    out: Path = option(
        "A new folder: the model with its mask, result.json, report.html.",
        *(OUTPUT, "", "FOLDER"),
        default=REQUIRED,
    )
    strategy: str | None = described(SEARCHED)
    trials: int | None = described(SEARCHED)
    seed: int | None = described(SEARCHED)
    seeds: int | None = described(COMPARED)
    recover_steps: int | None = described(MODEL)
    length: int | None = option("Tokens of a row, at most.", *(MODEL, "128", "N"))
    executor: str | None = option(
        "local (this machine), or ray (this machine or a cluster).", *(PLACE, "local", "NAME")
    )
    slots: Slots = 1
    set: list[str] | None = option(
        "A setting of the evaluator (epochs=3, finetune_lr=2e-5, device=cpu), or of the strategy "
        "behind its name (dam.steps=300, prune.rounds=5); repeatable.",
        *(PLACE, "none", "NAME=VALUE"),
        name="--set",
    )
    as_json: Json = False


@takes({"": "masksearch.sparsifier:sparsify"}, config=True, first=FIRST)
def sparsify(options: SparsifyOptions) -> None:
    """Fine-tune an encoder, search a sparse mask for it by its task, recover it, and save both.

    The better mean of searched and hand-designed is saved, on rows that no search has read;
    whether it is shown to be better is said apart. With --recover-steps 0 masks are chosen and
    saved as they are, in minutes. Repeating the command goes on.

    Examples:
        masksearch sparsify bert-base-uncased --glue glue/ --tasks STS-B --budget 0.12 --out sparse
        masksearch sparsify my-bert --data reviews/ --text review --label stars --budget .2 --out x
        masksearch sparsify my-embedder --data sentences.txt --budget .2 --out sparse-embedder
    """
    from masksearch.cli.build import (
        build_executor,
        further_settings,
        read_setting,
        read_task,
        split_settings,
        strategy_options,
    )
    from masksearch.cli.output import print_comparison
    from masksearch.evaluators.embedding import EmbeddingEvaluator, embeds_texts
    from masksearch.evaluators.glue import GlueEvaluator
    from masksearch.models.checkpoints import CONFIG, saved_masks
    from masksearch.sparsifier import sparsify as sparsify_model
    from masksearch.sparsifier.request import BUDGET, DAM, RESULT
    from masksearch.strategies.build import GATES, owners
    from masksearch.strategies.prune import NAME
    from masksearch.study.records import read_budgets

    if Path(options.data or "", CONFIG).is_file():
        raise OptionsError(f"MODEL comes first, then --data FOLDER; {options.data} is a model")
    judged = read_task(options, options.model)
    if len(judged.get("tasks", ())) != 1:
        raise OptionsError("give --glue FOLDER --tasks NAME, or --data FOLDER --text A --label Y")
    embeds = embeds_texts(options.model, task := judged["tasks"][0])
    kind = EmbeddingEvaluator if embeds else GlueEvaluator
    by_prefix = split_settings(options.set or (), owners())
    strategy = options.strategy or (NAME if options.work or options.faster else GATES)
    own = by_prefix.pop("", {})
    timed = {n: read_setting(n, own.pop(n), int) for n in ["time_batch"] if n in own}
    settings = timed | further_settings(kind, own)
    of_strategy = strategy_options(strategy, by_prefix)
    if strategy == GATES:  # over the settings that sparsify begins with
        of_strategy |= {name: {**DAM[name], **of_strategy[name]} for name in DAM}
    settings |= {} if options.length is None else {"length": options.length}
    executor = build_executor(JudgeOptions(executor=options.executor, slots=options.slots))
    folder = options.out.expanduser()
    asked = options.budget, options.faster, options.work
    if sum(map(bool, asked)) > 1:
        raise OptionsError(f"give one of --budget, --faster and --work, got {asked}")
    budgets: list[float | None] = [None]
    if options.faster is None:
        budgets = [*read_budgets(options.budget or options.work or BUDGET)]
    if len(budgets) > 1 and not embeds:
        settings = {"cache": folder / "cache"} | settings  # one dense model for all
    for limit in budgets:
        try:
            found = sparsify_model(
                options.model,
                judged["glue"],
                None if options.work else limit,
                faster=options.faster,
                work=limit if options.work else None,
                task=task,
                out=folder / f"{limit:g}" if len(budgets) > 1 else folder,
                settings=settings,
                strategy_options=of_strategy if by_prefix else None,
                executor=executor,
                **described_values(options),
            )
        except KeyboardInterrupt:
            typer.echo("stopped; what was finished is kept. The same command goes on", err=True)
            raise
        if options.as_json:
            typer.echo((found.folder / RESULT).read_text("utf-8").strip())
        else:
            print_comparison(found.comparison, as_json=False)
            what = "work" if options.work else "budget"
            typer.echo((f"{what} {limit:g}: " if limit else "") + found.answer)
            typer.echo(f"  model and mask: {found.folder}   page: {found.folder / 'report.html'}")
            longest = saved_masks(found.folder)["self"].longest or options.length or kind.length
            typer.echo(
                _how_to_use(found.folder, longest, skips=bool(options.faster or options.work))
            )
