"""From command-line words to the evaluator that they name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from masksearch.contracts import Evaluator
from masksearch.errors import MaskSearchError, unknown_name
from masksearch.user_code import load_function

SPELLED: dict[Any, str] = {  # what `--set` takes, in words
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list such as ["a", "b"]',
    NoneType: "null",
}


class ChoiceError(MaskSearchError, ValueError):
    """Options that do not go together."""


@dataclass(frozen=True)
class Judging:
    """Options that say how a mask is judged; None = the evaluator's own default."""

    evaluator: str | None = None  # file.py:name
    corpus: str | None = None
    tokenizer: str | None = None
    weights: str | None = None
    glue: str | None = None
    squad: str | None = None
    swag: str | None = None
    tasks: str | None = None  # comma-separated
    rows: int | None = None
    size: str | None = None
    length: int | None = None
    vocabulary: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    preset: str | None = None
    set: Sequence[str] | None = None  # name=value
    latency: bool = False  # an objective more
    memory: bool = False  # an objective more
    cost_length: int | None = None  # positions at which both are taken
    reuse: Path | None = None  # folder of results that are never run again

    def build(self) -> Evaluator:
        """The evaluator: the user's own, a downstream task, masked LM on a corpus, or the planted
        corpus; with the costs that were asked for.

        Raises:
            ChoiceError: If options do not go together; says which.
        """
        judged = self.judging()
        if self.reuse is not None:
            from masksearch.evaluators.cached import Cached

            judged = Cached(judged, self.reuse)
        if self.latency or self.memory:
            from masksearch.evaluators.with_cost import WithCost

            return WithCost(
                judged, latency=self.latency, memory=self.memory, length=self.cost_length
            )
        if self.cost_length is not None:
            raise ChoiceError("--cost-length needs --latency or --memory")
        return judged

    def judging(self) -> Evaluator:
        """The evaluator without costs."""
        around = ("latency", "memory", "cost_length", "reuse")
        given = {
            name: value
            for name, value in vars(self).items()
            if value not in (None, []) and name not in around
        }
        if self.evaluator is not None:
            others = sorted(set(given) - {"evaluator"})
            if others:
                flags = ", ".join(f"--{name}" for name in others)
                raise ChoiceError(f"--evaluator brings its own settings; drop {flags}")
            built: Evaluator = load_function(self.evaluator)()
            return built
        tasks = [name for name in ("glue", "squad", "swag") if name in given]
        if len(tasks) > 1:
            raise ChoiceError(f"--{tasks[0]} and --{tasks[1]} are two evaluators; give one")
        if self.corpus is None and not (self.weights and tasks):
            return self.planted(given)
        if self.tasks is not None and self.glue is None:
            raise ChoiceError("--tasks needs --glue FOLDER")
        if self.rows is not None and not tasks:
            raise ChoiceError("--rows needs --glue, --squad or --swag")
        kind = evaluator_kind(tasks[0] if tasks else "mlm")
        settings = {name: given[name] for name in given if name not in ("corpus", "set", "preset")}
        if self.tasks is not None:
            names = [name.strip() for name in self.tasks.split(",") if name.strip()]
            settings["tasks"] = tuple(names)
        settings |= set_options(kind, self.set or ())
        if self.preset is not None:
            return kind.preset(self.preset, self.corpus, **settings)  # type: ignore[no-any-return]
        return kind(self.corpus, **settings)  # type: ignore[no-any-return]

    def planted(self, given: dict[str, Any]) -> Evaluator:
        """The embedded corpus, which needs no file."""
        from masksearch.evaluators.planted import PlantedEvaluator

        known = ("steps", "size", "batch", "lr", "set")
        stray = sorted(set(given) - set(known))
        if stray:
            raise ChoiceError(
                f"--{stray[0]} needs --corpus FILE_OR_FOLDER (or --weights with --glue, --squad "
                "or --swag); without a corpus the planted one is used, which takes "
                f"{', '.join('--' + name for name in sorted(known))}"
            )
        settings = {name: value for name, value in given.items() if name != "set"}
        return PlantedEvaluator(**settings, **set_options(PlantedEvaluator, self.set or ()))


def evaluator_kind(task: str) -> Any:
    """The evaluator's class for a downstream task, or for the pre-training alone ("mlm")."""
    match task:
        case "glue":
            from masksearch.evaluators.glue import GlueEvaluator

            return GlueEvaluator
        case "squad":
            from masksearch.evaluators.squad import SquadEvaluator

            return SquadEvaluator
        case "swag":
            from masksearch.evaluators.swag import SwagEvaluator

            return SwagEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator

    return MlmEvaluator


def set_options(kind: Any, settings: Sequence[str]) -> dict[str, Any]:
    """What `--set name=value` gives an evaluator beside the options that have names of their own.

    Raises:
        ChoiceError: If there is no "=", or the value is not of the setting's type.
        UnknownNameError: If the evaluator has no such setting.
    """
    kinds = get_type_hints(kind)
    own = {option.name for option in fields(Judging)}
    known = [f.name for f in fields(kind) if f.init and f.name not in own | {"process"}]
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ChoiceError(f"--set takes name=value, got {setting!r}")
        if name in own:
            raise ChoiceError(f"{name} has an option of its own: --{name}")
        if name not in known:
            raise unknown_name(f"setting of {kind.__name__}", name, known)
        found[name] = read_setting(name, text, kinds[name])
    return found


def read_setting(name: str, text: str, hint: Any) -> Any:
    """The value of `--set name=text`, of the type that the annotation asks for.

    >>> read_setting("lr", ".1", float), read_setting("held_out", "7", str | None)
    (0.1, '7')
    """
    kinds = {get_origin(one) or one for one in (get_args(hint) or [hint])}
    kinds = {Literal} if get_origin(hint) is Literal else kinds
    value = read_value(text)
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = value if int in kinds and isinstance(value, int) else float(value)
    if type(value) in kinds:
        return value
    if kinds & {str, Path, Literal}:
        return text
    wanted = " or ".join(spelled for one, spelled in SPELLED.items() if one in kinds)
    raise ChoiceError(f"--set {name} takes {wanted}, got {text!r}")


def read_value(text: str) -> Any:
    """The JSON value that a text is, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
