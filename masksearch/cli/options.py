"""Options of commands: those that Python has too are read from the docstrings of what they call.

`takes(..)` makes a command of a function of a dataclass, whose fields are the options. A field
`described(GROUP)` is an argument of what the command calls: its default and help are read from
the source there, so that `--help` loads nothing heavy and says what the docstring says. Other
fields are an `option(..)` or `argument(..)`, or have an annotation by `declare`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, wraps
from importlib import util
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from masksearch.errors import HIDDEN, MaskSearchError, check_name

Options = TypeVar("Options")

# Groups of options in `--help`.
SEARCHED = "What to search"
COMPARED = "Which masks"
RUN = "Which run"
EVALUATOR = "What evaluates a mask"
MODEL = "The model that is trained, and how"
ALLOCATION = "Layers or heads that have full attention or a local mask"
PLACE = "Where it runs"
OUTPUT = "Output"

REQUIRED = MISSING  # default of an option that has to be given
VALUES = {bool: None, int: "N", float: "NUMBER"}  # what stands for a value


class OptionsError(MaskSearchError, ValueError):
    """Options that do not go together, or cannot be read."""


def declare(
    help: str, group: str, shown: str = "", value: str | None = None, *, name: str = ""
) -> Any:
    """A typer option.

    Args:
        help: Sentences that someone understands who sees the option for the first time.
        group: Heading that it stands under.
        shown: The default in words, where the declared one is None; "" = typer shows it.
        value: What stands for the value, such as FOLDER; None = its type.
        name: Its name, where that is not the parameter's; given to a flag, it has no `--no-` form.
    """
    help = f"{help}  [default: {shown}]" if shown else help
    names = [name] if name else []
    return typer.Option(*names, help=help, rich_help_panel=group, metavar=value)


def option(
    help: str,
    group: str,
    shown: str = "",
    value: str | None = None,
    *,
    default: object = None,
    name: str = "",
) -> Any:
    """A field that is an option with that default; see `declare`."""
    metadata = {"option": declare(help, group, shown, value, name=name)}
    return field(default=default, metadata=metadata)


def argument(help: str, group: str, value: str, *, default: object = REQUIRED) -> Any:
    """A field that is given by its place, not by its name."""
    shown = typer.Argument(help=help, rich_help_panel=group, metavar=value, show_default=False)
    return field(default=default, metadata={"option": shown})


def described_values(options: Any) -> dict[str, Any]:
    """The `described` options that were given, by name."""
    names = [each.name for each in fields(options) if "group" in each.metadata]
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def flag(name: str, help: str, group: str) -> Any:
    """A field that is a flag, off where it is not given; see `declare`."""
    return option(help, group, default=False, name=f"--{name}")


def described(group: str) -> Any:
    """A field that is an option, which docstrings describe; None where it is not given."""
    return field(default=None, metadata={"group": group})


MASK_TEXT = (
    "An expression such as 'bigbird(2,1,2) | window(3)', the name of a family, a file, or a run: "
    "RUN is the best mask of a search, RUN@0.9 the best that is at least 90 % sparse, RUN#7 that "
    "of trial 7."
)

MaskArgument = Annotated[
    str, typer.Argument(help=MASK_TEXT, rich_help_panel=COMPARED, metavar="MASK")
]
RunArgument = Annotated[
    Path,
    typer.Argument(help="Folder of a search or a comparison.", rich_help_panel=RUN, metavar="RUN"),
]
Run = Annotated[
    Path, declare("Folder of the run; one that was stopped there goes on.", OUTPUT, "", "FOLDER")
]
Json = Annotated[bool, declare("Print JSON, not tables, for programs.", OUTPUT, name="--json")]
Slots = Annotated[int, declare("Trials at a time.", PLACE, "", "N")]
Storage = Annotated[
    str | None,
    declare(
        "Where trials are stored: journal:PATH (for shared file systems) or postgresql://...; one "
        "outside of a run folder is named again to read that run.",
        OUTPUT,
        "study.db, an SQLite file in the run folder",
        "PLACE",
    ),
]
Settings = Annotated[
    list[str] | None,
    declare(
        "Any other setting, by its name in Python; repeatable. Alone it is the evaluator's "
        "(rows=800, epochs=3, batch=16, lr=1e-3, vocabulary=4096, precision=bfloat16); of search, "
        "behind a prefix, that of a strategy (dam.density=0.04, "
        "dam.structure=toeplitz, allocate.tries=8) or of --halving (halving.factor=3).",
        MODEL,
        "",
        "NAME=VALUE",
        name="--set",
    ),
]
Preset = Annotated[
    str | None,
    declare(
        "Start from published settings in place of these defaults: sparsebert.",
        MODEL,
        "none",
        "NAME",
    ),
]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The task that models are fine-tuned on: options of all that judge an encoder."""

    glue: str | None = option(
        "Fine-tune on GLUE, and judge by its score: a folder with GLUE's TSV files, or "
        "hf:nyu-mll/glue.",
        *(EVALUATOR, "not fine-tuned", "FOLDER"),
    )
    tasks: str | None = option(
        "With --glue: GLUE's tasks by name, separated by commas; of sparsify one.",
        *(EVALUATOR, "SST-2, QQP, MNLI", "NAMES"),
    )
    data: Path | None = option(
        "In place of --glue: a folder of your own with train.tsv and dev.tsv (or .csv); of an "
        "embedding model a file, too: a text a line, or with --text a .csv, .tsv or .jsonl.",
        *(EVALUATOR, "none", "FOLDER"),
    )
    text: list[str] | None = option(
        "With --data: a column of texts; a second one for pairs.", *(EVALUATOR, "none", "COLUMN")
    )
    label: str | None = option(
        "With --data: the column of labels, classes or scores; without one a fine-tuned model "
        "keeps its own answers, and an embedding model its own ranking of the texts.",
        *(EVALUATOR, "none", "COLUMN"),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluatorOptions(TaskOptions):
    """The evaluator of masks: options of search, compare and check."""

    corpus: str | None = option(
        "Plain text for pre-training: a file, a folder of .txt files, or hf:OWNER/NAME.",
        *(EVALUATOR, "the planted corpus, which needs no file", "TEXT"),
    )
    decoder: str | None = option(
        "Judge on a decoder, by the next tokens of this text: a file, a folder of .txt files, "
        "hf:OWNER/NAME, or recall, a planted task.",
        *(EVALUATOR, "no decoder", "TEXT"),
    )
    evaluator: str | None = option(
        "Your own evaluator instead: a class in a file, or a function that returns one; --set "
        "gives it arguments.",
        *(EVALUATOR, "none", "FILE.py:NAME"),
    )
    reuse: Path | None = option(
        "A folder of results that several runs share: a mask that it knows under this protocol "
        "and seed is not trained again.",
        *(EVALUATOR, "none", "FOLDER"),
    )
    preset: Preset = None
    set: Settings = None
    size: str | None = described(MODEL)
    weights: str | None = described(MODEL)
    adapt: str | None = described(MODEL)
    length: int | None = described(MODEL)
    steps: int | None = described(MODEL)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(EvaluatorOptions):
    """The evaluator of masks, and its machine: options of search and compare."""

    executor: str | None = option(
        "local (this machine), ray (this machine or a cluster), or your own: FILE.py:NAME.",
        *(PLACE, "local", "NAME"),
    )
    slots: Slots = 1
    cpus: float | None = option("ray: CPU cores of a trial.", PLACE, "1", "N")
    gpus: float | None = option(
        "GPUs of a trial; 0.25 = four share one, 0 = it sees none.",
        *(PLACE, "ray: 0; local: all slots take the first", "N"),
    )
    address: str | None = described(PLACE)
    limit_seconds: float | None = described(PLACE)
    storage_path: str | None = described(PLACE)


@dataclass(frozen=True)
class Argument:
    """An argument of a function, or a field of a dataclass, as its source has it.

    Args:
        default: As written; "" = there is none, or the docstring does not say what None means.
        help: The first sentence of its docstring, without marks of code.
    """

    default: str
    help: str


def read_arguments(path: str) -> dict[str, Argument]:
    """The documented arguments of `package.module:Name`, a function or a class, those of its
    bases included; the module is not imported.

    >>> read_arguments("masksearch.executors.local:Local")["slots"].default
    '1'
    """
    helps, declared = _read_source(path)
    return {n: _read_argument(helps[n], each) for n, each in declared.items() if n in helps}


def _read_argument(described: str, default: str) -> Argument:
    """An argument, of its docstring and its default as text ("" = none)."""
    text = " ".join(re.sub(r'`+"?([^`"]*)"?`+', r"\1", described).split())
    meaning = re.search(r"(?:None = |[Dd]efault: )(.+?)(?=[.;](?: |$)|$)", text)
    if default in ("None", ""):
        default = meaning[1] if meaning else ""
    else:
        default = re.sub("Default|['\"()]", "", default)
    return Argument(default, re.split(r"\. |[.,;]? (?=None = |default: |see )|\.$", text)[0])


def _read_helps(docstring: str) -> dict[str, str]:
    """Name -> text of what a docstring describes under "Args"."""
    section = docstring.partition("Args:\n")[2]
    section = re.split(r"^\S", section, maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^    (\w+): (.+?)(?=^    \w+: |\Z)", section, re.S | re.M))


@cache
def _read_source(path: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The arguments of a function or class, and of its bases in the package, by their names: their
    docstrings, and their defaults as written."""
    module, _, name = path.partition(":")
    spec: Any = util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, NAMED) and n.name == name)
    helps: dict[str, str] = {}
    declared: dict[str, str] = {}
    if isinstance(node, ast.ClassDef):
        modules = {
            alias.asname or alias.name: str(line.module)
            for line in tree.body
            if isinstance(line, ast.ImportFrom)
            for alias in line.names
        } | {n.name: module for n in tree.body if isinstance(n, ast.ClassDef)}
        for base in reversed(node.bases):
            if isinstance(base, ast.Name) and modules.get(base.id, "").startswith("masksearch."):
                inherited = _read_source(f"{modules[base.id]}:{base.id}")
                helps |= inherited[0]
                declared |= inherited[1]
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                value = item.value
                if isinstance(value, ast.Call) and value.args:  # as at_least(0, 800)
                    value = value.args[:2][-1]
                declared[item.target.id] = ast.unparse(value) if value else ""
    else:
        args = [*node.args.args, *node.args.kwonlyargs]
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        padded = [None] * (len(args) - len(defaults)) + defaults
        for argument, value in zip(args, padded, strict=True):
            declared[argument.arg] = ast.unparse(value) if value else ""
    helps |= _read_helps(ast.get_docstring(node) or "")
    return helps, declared


NAMED = (ast.ClassDef, ast.FunctionDef)


def takes(
    paths: Mapping[str, str] = {}, *, config: bool = False, first: Sequence[str] = ()
) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Makes a command of a function of options, which are a dataclass: its fields, those of the
    class itself first.

    Args:
        paths: When it is used, in words ("" = always) -> `"package.module:Name"` of what has the
            arguments that are `described`. The first that documents one says what it is; others
            add their default where it differs.
        config: Whether a file may give options, `--config`.
        first: Names of those that `--help` shows, `--help-all` then shows all; () = there is
            `--help` alone.
    """
    uses = {when: read_arguments(path) for when, path in paths.items()}

    def declare_described(name: str, group: str, kind: type) -> Any:
        having = {when: arguments[name] for when, arguments in uses.items() if name in arguments}
        first, *_ = having.values()
        defaults = [first.default] if first.default else []
        defaults += [
            f"{when}: {each.default}"
            for when, each in having.items()
            if each.default not in ("", first.default)
        ]
        flag = f"--{name.replace('_', '-')}" if kind is bool else ""
        help = f"{first.help[0].upper()}{first.help[1:]}."
        return declare(help, group, "; ".join(defaults), VALUES.get(kind, "TEXT"), name=flag)

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        kind: Any = next(iter(get_type_hints(command).values()))
        hints = get_type_hints(kind, include_extras=True)
        inner = kind.__annotations__  # of the class itself
        parameters = [CONFIG] if config else []
        for each in sorted(fields(kind), key=lambda each: each.name not in inner):
            hint, shown = hints[each.name], each.metadata.get("option")
            if (group := each.metadata.get("group")) is not None:
                shown = declare_described(each.name, group, get_args(hint)[0])
            parameters.append(
                inspect.Parameter(
                    each.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if each.default is MISSING else each.default,
                    annotation=hint if shown is None else Annotated[hint, shown],
                )
            )
        parameters += [HELP_ALL] if first else []

        @wraps(command)
        def run(**values: Any) -> None:
            for each in (CONFIG, HELP_ALL):
                values.pop(each.name, None)
            paths = {n: v.expanduser() for n, v in values.items() if isinstance(v, Path)}
            command(kind(**values | paths))

        run.first = first  # type: ignore[attr-defined]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _read_config(ctx: typer.Context, path: Path | None) -> None:
    """Takes options that the command line leaves out from a file: as `NAME: value`, or what a run
    has stored, but for the run's own folder.

    Raises:
        OptionsError: If the file cannot be read, is of another command, or has other names.
    """
    if path is None:
        return
    import yaml

    try:
        stored = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionsError(f"--config {path} cannot be read: {error}") from error
    if isinstance(stored, dict) and stored.keys() == {"command", "options"}:
        if stored["command"] != ctx.info_name:
            raise OptionsError(f"--config {path} is of masksearch {stored['command']}")
        stored = {n: v for n, v in stored["options"].items() if n not in ("run", "out")}
    if not isinstance(stored, dict):
        raise OptionsError(f"--config {path} holds no options; write NAME: value, one a line")
    known = {each.name for each in ctx.command.params} - {CONFIG.name}
    given = {str(name).replace("-", "_"): value for name, value in stored.items()}
    for name in given:
        check_name(f"option in {path}", name, known)
    if HIDDEN in str(given):
        raise OptionsError(f"{path} keeps no secrets; write them where {HIDDEN} stands")
    ctx.default_map = {name: value for name, value in given.items() if value is not None}


def _print_all(ctx: typer.Context, asked: bool) -> None:
    """Prints the help of every option."""
    if asked and not ctx.resilient_parsing:
        ctx.meta[WHOLE] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def _read_first(name: str, kind: Any, default: object, does: Any, shown: Any) -> inspect.Parameter:
    """An option that does something before others are read."""
    shown.callback, shown.is_eager = does, True
    hint = Annotated[kind, shown]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
    )


FROM_FILE = "Options from a file, YAML or the command.json of a run; those given here win."
CONFIG = _read_first(
    *("config", Path | None, None, _read_config), declare(FROM_FILE, OUTPUT, "none", "FILE")
)
EVERY = declare("Show every option and exit.", OUTPUT, name="--help-all")
HELP_ALL = _read_first("help_all", bool, False, _print_all, EVERY)
WHOLE = "masksearch help_all"  # in a context: its help has every option
EXAMPLES = "Examples:\n"
LAST = "Output"  # the group that stands last, with --help
WIDEST = {"max_content_width": 120}  # characters, on a terminal that has as many


class CommandWithExamples(TyperCommand):
    """A command whose options stand in groups, with examples below them."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The description of the command, without its examples."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or "").partition(EXAMPLES)[0].strip())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by group, in the order in which they are declared; where the command has a
        short help, those of it unless all are asked for."""
        first = () if WHOLE in ctx.meta else getattr(self.callback, "first", ())
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if first and parameter.name not in (*first, HELP_ALL.name, "help"):
                continue
            record = parameter.get_help_record(ctx)
            if record is None:  # a hidden option
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                name = parameter.metavar or name
            group = getattr(parameter, "rich_help_panel", None) or LAST
            groups.setdefault(group, []).append((name, text))
        groups[LAST] = groups.pop(LAST)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows, col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, as they stand."""
        examples = inspect.cleandoc(self.help or "").partition(EXAMPLES)[2]
        if examples:
            with formatter.section(EXAMPLES.rstrip(":\n")):
                for line in inspect.cleandoc(examples).splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class CommandsInGroups(TyperGroup):
    """The program, whose help lists its commands by job, in the order of use."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The first sentence of each command, by job, with an example of the first of them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        examples: dict[str, str] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            sentence = " ".join((command.help or "").split()).partition(". ")[0].rstrip(".")
            group = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(group, []).append((name, sentence))
            shown = (command.help or "").partition(EXAMPLES)[2].strip()
            examples.setdefault(group, shown.partition("\n")[0])
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl([(f"{name:<10}", text) for name, text in rows])
                formatter.write(f"{'':{formatter.current_indent}}$ {examples[group]}\n")


def new_program(name: str, kind: type[CommandsInGroups] = CommandsInGroups) -> typer.Typer:
    """A program without commands yet, whose help will list them in groups."""
    return typer.Typer(
        name=name,
        cls=kind,
        context_settings=WIDEST,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
