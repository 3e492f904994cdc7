"""Remedies for words that people type by habit, as other programs of the field take them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

Answer = Callable[[Any, Sequence[str]], str]
COMMANDS = dict.fromkeys(("importances", "importance", "plot", "best"), "report RUN")
SETTINGS = {  # an option of others, without its dashes -> a setting of ours
    **dict.fromkeys(("lr", "learning_rate"), "finetune_lr"),
    **dict.fromkeys(("batch_size", "batch"), "finetune_batch"),
    **{name: name for name in ("epochs", "device", "dropout", "precision")},
}
PER_CENT, SHARE = r"(?:(-[^=\s]*)=)?(\d+(?:\.\d+)?)%", r"0?\.\d+|1\.0"


def answer(error: Any, words: Sequence[str]) -> str:
    """The remedy of words that typer refuses, where a habit is behind them; else ""."""
    return next(filter(None, (habit(error, words) for habit in HABITS)), "")


def _per_cent(error: Any, words: Sequence[str]) -> str:
    """`--budget 12%`."""
    found = next(filter(None, (re.fullmatch(PER_CENT, word) for word in words)), None)
    if found is None or "number" not in error.message:
        return ""
    return f"write {found[2]}% as {float(found[2]) / 100:g}"


def _several_seeds(error: Any, words: Sequence[str]) -> str:
    """`--seeds 1000,1001`."""
    param = getattr(error, "param", None)
    if getattr(param, "name", "") != "seeds" or "integer" not in error.message:
        return ""
    return "--seeds says how many, as --seeds 3"


def _before_command(error: Any, words: Sequence[str]) -> str:
    """`--out x sparsify ..`."""
    unknown, ctx = getattr(error, "option_name", ""), error.ctx
    if not unknown or ctx is None or ctx.parent is not None:
        return ""
    command = next((word for word in words if word in ctx.command.list_commands(ctx)), "")
    return f"{unknown} stands behind its command: {ctx.command_path} {command or 'COMMAND'} .."


def _setting(error: Any, words: Sequence[str]) -> str:
    """An option of others, of a command whose further settings are `--set`."""
    unknown = getattr(error, "option_name", "")
    known = () if error.ctx is None else error.ctx.command.params
    if not unknown or all("--set" not in each.opts for each in known):
        return ""
    at = next((n for n, word in enumerate(words) if word.partition("=")[0] == unknown), 0)
    _, _, value = words[at].partition("=")
    value = value or next(iter(words[at + 1 : at + 2]), "VALUE")
    name = setting_of(unknown)
    return f"if it is a setting: --set {SETTINGS.get(name, name)}={value}"


def setting_of(option: str) -> str:
    """A setting's name, of an option that is written as ours are."""
    return option.lstrip("-").replace("-", "_")


def _two_words(error: Any, words: Sequence[str]) -> str:
    """`--set finetune_lr 1e-3`."""
    for at, word in enumerate(words[:-2]):
        name, value = words[at + 1], words[at + 2]
        if word == "--set" and "=" not in name and f"({value})" in error.message:
            return f"write --set {name}={value}"
    return ""


def _share_of_a_run(error: Any, words: Sequence[str]) -> str:
    """`attach MODEL RUN 0.8`."""
    for run, word in pairwise(words):
        if re.fullmatch(SHARE, word) and f"({word})" in error.message:
            return f"the best mask that is at least so sparse is {run}@{word}"
    return ""


def _other_command(error: Any, words: Sequence[str]) -> str:
    """`importances RUN`."""
    found = re.search(r"No such command '([\w-]+)'", error.message)
    ours = COMMANDS.get(found[1]) if found else None
    return f"that is masksearch {ours}" if ours else ""


HABITS: tuple[Answer, ...] = (
    _per_cent,
    _several_seeds,
    _before_command,
    _two_words,
    _share_of_a_run,
    _setting,
    _other_command,
)
