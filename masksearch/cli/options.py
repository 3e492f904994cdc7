"""Options of commands: those that Python has too are read from the docstrings of what they call.

`takes({GROUP: "names"}, "module:Name", ..)` gives a command the arguments of a function or of a
dataclass as options: name, type, default and help are read from its source, so that `--help`
loads nothing heavy and says what the docstring says. Other options are declared by `declare`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from masksearch.errors import MaskSearchError
from masksearch.training.parts import FLAT, PARTS

Command = TypeVar("Command", bound=Callable[..., None])

# Groups of options in `--help`.
SEARCHED = "What to search"
COMPARED = "Which masks"
RUN = "Which run"
JUDGE = "What judges a mask"
MODEL = "The model that is trained, and how"
ALLOCATION = "Layers or heads that have full attention or a local mask"
PLACE = "Where it runs"
OUTPUT = "Output"

PACKAGE = Path(__file__).parents[1]
KINDS = {"bool": bool, "int": int, "float": float}  # types of options; any other is text
VALUES = {bool: None, int: "N", float: "NUMBER", str: "TEXT"}  # what stands for a value


DOWNSTREAM = {  # option -> its evaluator, what it does, and what it takes
    "glue": (
        "masksearch.evaluators.glue:GlueEvaluator",
        "Fine-tune on GLUE, and judge by its score: a folder with GLUE's TSV files, or "
        "hf:nyu-mll/glue.",
        "FOLDER",
    ),
    "squad": (
        "masksearch.evaluators.squad:SquadEvaluator",
        "Fine-tune on SQuAD: a JSON file, or a folder with train and dev.",
        "PATH",
    ),
    "swag": (
        "masksearch.evaluators.swag:SwagEvaluator",
        "Fine-tune on SWAG: a file (JSONL, CSV, Parquet), or a folder.",
        "PATH",
    ),
}


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


def optional(help: str, group: str, shown: str, value: str, kind: Any = str) -> tuple[Any, object]:
    """Annotation and default of an option that is None where it is not given; see `declare`."""
    return Annotated[kind | None, declare(help, group, shown, value)], None


def valued(default: Any, help: str, group: str, value: str | None = None) -> tuple[Any, object]:
    """Annotation and default of an option that has one; see `declare`."""
    return Annotated[type(default), declare(help, group, "", value)], default


def flag(name: str, help: str, group: str) -> tuple[Any, object]:
    """Annotation and default of a flag that is off where it is not given."""
    return Annotated[bool, declare(help, group, name=f"--{name}")], False


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
        "(epochs=3, precision=bfloat16); behind a prefix that of a strategy (dam.density=0.04, "
        "dam.structure=toeplitz, allocate.tries=8, evolution.population=20) "
        "or of --halving (halving.factor=3).",
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


@dataclass(frozen=True)
class Argument:
    """An argument of a function, or a field of a dataclass, as its source has it.

    Args:
        kind: Type of one value: bool, int, float, or str for anything else.
        default: As written; "" = there is none, or the docstring does not say what None means.
        help: The first sentence of its docstring, without marks of code.
    """

    kind: type
    default: str
    help: str


def read_arguments(path: str) -> dict[str, Argument]:
    """The documented arguments of `package.module:Name`, a function or a class, those of its
    bases included, and in place of parts of an evaluator their fields that it reads, by flat
    names; the module is not imported.

    >>> read_arguments("masksearch.executors.local:Local")["limit_seconds"].kind
    <class 'float'>
    """
    source = read_source(path)
    helps, declared = dict(source.helps), dict(source.declared)
    if PARTS.keys() <= declared.keys():
        texts = {name: read_helps(inspect.getdoc(part) or "") for name, part in PARTS.items()}
        for name, place in FLAT.items():
            if not source.unread & {name, place.part}:
                helps[name] = texts[place.part][place.field.name]
                default = source.defaults.get(name, place.usual)
                declared[name] = str(place.field.type), str(default)
        declared = {name: each for name, each in declared.items() if name not in PARTS}
    return {n: read_argument(helps[n], *each) for n, each in declared.items() if n in helps}


def read_argument(described: str, annotation: str, default: str) -> Argument:
    """An argument, of its docstring, annotation and default as text ("" = none)."""
    words = re.findall(r"\w+", annotation)
    kind = next((KINDS[word] for word in words if word in KINDS), str)
    text = " ".join(re.sub(r'`+"?([^`"]*)"?`+', r"\1", described).split())
    meaning = re.search(r"(?:None = |[Dd]efault: )(.+?)(?=[.;](?: |$)|$)", text)
    if default in ("None", ""):
        default = meaning[1] if meaning else ""
    else:
        default = re.sub("['\"()]", "", default)
    help = re.split(r"\. |[.,;]? (?=None = |default: |see )|\.$", text)[0]
    return Argument(kind, default, help)


def read_helps(docstring: str) -> dict[str, str]:
    """Name -> text of what a docstring describes under "Args"."""
    section = docstring.partition("Args:\n")[2]
    section = re.split(r"^\S", section, maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^    (\w+): (.+?)(?=^    \w+: |\Z)", section, re.S | re.M))


@dataclass(frozen=True)
class Source:
    """What the source of a function or class says of its arguments, by their names.

    Args:
        helps: Their docstrings.
        declared: Annotation and default, as written.
        unread: Of an evaluator: what it does not read of its parts.
        defaults: Of an evaluator: its defaults in place of those of parts.
    """

    helps: Mapping[str, str]
    declared: Mapping[str, tuple[str, str]]
    unread: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@cache
def read_source(path: str) -> Source:
    """What the source of a function or class says, and of its bases in the package."""
    module, _, name = path.partition(":")
    file = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, NAMED) and n.name == name)
    helps: dict[str, str] = {}
    declared: dict[str, tuple[str, str]] = {}
    of_parts: dict[str, Any] = {}
    if isinstance(node, ast.ClassDef):
        modules = {
            alias.asname or alias.name: str(line.module)
            for line in tree.body
            if isinstance(line, ast.ImportFrom)
            for alias in line.names
        } | {n.name: module for n in tree.body if isinstance(n, ast.ClassDef)}
        for base in reversed(node.bases):
            if isinstance(base, ast.Name) and modules.get(base.id, "").startswith("masksearch."):
                inherited = read_source(f"{modules[base.id]}:{base.id}")
                helps |= inherited.helps
                declared |= inherited.declared
                of_parts |= {"unread": " ".join(inherited.unread), "defaults": inherited.defaults}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                default = ast.unparse(item.value) if item.value else ""
                declared[item.target.id] = ast.unparse(item.annotation), default
                if item.target.id in ("unread", "defaults") and item.value:
                    of_parts[item.target.id] = ast.literal_eval(item.value)
    else:
        args = [*node.args.args, *node.args.kwonlyargs]
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        padded = [None] * (len(args) - len(defaults)) + defaults
        for argument, value in zip(args, padded, strict=True):
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            declared[argument.arg] = annotation, ast.unparse(value) if value else ""
    helps |= read_helps(ast.get_docstring(node) or "")
    unread = frozenset(of_parts.get("unread", "").split())
    return Source(helps, declared, unread, of_parts.get("defaults", {}))


NAMED = (ast.ClassDef, ast.FunctionDef)


def takes(
    groups: Mapping[str, str],
    paths: Mapping[str, str],
    declared: Mapping[str, tuple[Any, object]] = {},
    *,
    calls: Callable[[dict[str, Any]], None],
) -> Callable[[Command], Command]:
    """Gives a command options that functions or classes take too, beside its own parameters.

    Args:
        groups: Heading in `--help` -> names of options, divided by blanks.
        paths: When it is used, in words ("" = always) -> `"package.module:Name"` of what has such
            arguments. The first that documents one says what it is; others add their default
            where it differs. An option that is not given is None.
        declared: Further options: name -> annotation and default (`optional`, `flag`).
        calls: Gets everything that was given, by name: the command's own function only declares
            its options and says what they are for.
    """
    known = {when: read_arguments(path) for when, path in paths.items()}

    def option_of(name: str, group: str) -> Any:
        having = {when: arguments[name] for when, arguments in known.items() if name in arguments}
        first, *_ = having.values()
        defaults = [first.default] if first.default else []
        defaults += [
            f"{when}: {each.default}"
            for when, each in having.items()
            if each.default not in ("", first.default)
        ]
        flag = f"--{name.replace('_', '-')}" if first.kind is bool else ""
        help = f"{first.help[0].upper()}{first.help[1:]}."
        shown = declare(help, group, "; ".join(defaults), VALUES[first.kind], name=flag)
        return Annotated[first.kind | None, shown]

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        everything = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        read = {
            name: (option_of(name, group), None)
            for group, names in groups.items()
            for name in names.split()
        }
        everything += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, (annotation, default) in {**declared, **read}.items()
        ]

        @wraps(command)
        def run(**given: Any) -> None:
            calls(given)

        run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in everything}
        return cast(Command, run)

    return decorate


EXAMPLES = "Examples:\n"
LAST = "Output"  # the group that stands last, with --help
WIDEST = {"max_content_width": 120}  # characters, on a terminal that has as many


class CommandWithExamples(TyperCommand):
    """A command whose options stand in groups, with examples below them."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the command does, without its examples."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or "").partition(EXAMPLES)[0].strip())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by group, in the order in which they are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
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
        for name, command in self.commands.items():
            sentence = " ".join((command.help or "").split()).partition(". ")[0].rstrip(".")
            group = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(group, []).append((name, sentence))
            shown = (command.help or "").partition(EXAMPLES)[2].strip()
            examples.setdefault(group, shown.partition("\n")[0])
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl([(f"{name:<10}", text) for name, text in rows])
                formatter.write(f"{'':{formatter.current_indent}}$ {examples[group]}\n")
