"""Engines: how each reads the windows that a configuration names, and what it reserves.

Each engine has a file in engines/, read in the source of one release, in the files that
its rows name; a new release is a changed row. `to_native(target=)` refuses what a row does not
serve, and a test holds every exported configuration against the table. `kv_bytes(cache_layout=)`
multiplies the room by bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from masksearch.errors import check_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GGUF = "model.gguf"  # the file of an engine that opens one
SLIDING, FULL = "sliding_attention", "full_attention"  # the names in `layer_types`

Does = Literal["reads", "reads if all slide", "ignores", "keeps one key more", "drops keys"]


@dataclass(frozen=True)
class Reading:
    """One engine's reading of `layer_types` and the window of one family.

    Args:
        does: `"reads"`: as transformers. `"reads if all slide"`: else it stops with an error.
            `"ignores"`: every layer is full. `"drops keys"`: masks are full, caches slide.
        source: The file of the release.
        instead: What works; empty = the families that the engine reads.
        layers: The only number of layers for which it does that, and ignores all others.
        since: The oldest build that does; older ones slide other layers without a word. Empty =
            older ones refuse the file, or there is none.
    """

    does: Does
    source: str
    instead: str = ""
    layers: int | None = None
    since: str = ""


def rows(since: str = "", **sources: str) -> dict[str, Reading]:
    """Families that are read since that build, by the file that reads them."""
    return {family: Reading("reads", file, since=since) for family, file in sources.items()}


CACHE_TYPES = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}  # bytes of so many numbers


@dataclass(frozen=True)
class Serving:
    """How an engine is run, as far as the size of its cache depends on it.

    Args:
        in_flight: vLLM: tokens that are scheduled and not yet settled, `max_num_batched_tokens` x
            concurrent batches (>= 1). Its server's default is 2,048 x 2, on GPUs such as the H100
            8,192 x 2, from 160 GiB on 16,384 x 2.
        block: vLLM, TensorRT-LLM: positions of a block (>= 1).
        ubatch: llama.cpp: `n_ubatch`, tokens that are computed at once (>= 1).
        sequences: llama.cpp: `n_seq_max`, which share the positions (>= 1).
        unified: llama.cpp: `kv_unified`, whether they share one buffer.
        cache_type: llama.cpp: of keys and values: `"f16"`, `"q8_0"` or `"q4_0"`.
        length: Positions that are counted (>= 1); None = as many as a mask is judged on.

    Raises:
        ValueError: If a number is below 1.
        UnknownNameError: If there is no such type.
    """

    in_flight: int = 4096
    block: int = 16
    ubatch: int = 512
    sequences: int = 1
    unified: bool = False
    cache_type: str = "f16"
    length: int | None = None

    def __post_init__(self) -> None:
        check_name("cache_type", self.cache_type, CACHE_TYPES)
        for name in ("in_flight", "block", "ubatch", "sequences", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `kv_bytes`."""
        return {name: value for name, value in asdict(self).items() if name != "length"}


Windows = Sequence[int | None]  # of each layer, in keys with the query's own; None = everything


def key_bytes(width: int, item: int, _: Serving) -> int:
    """Bytes of a key and its value in one KV head.

    Args:
        width: Numbers of a key.
        item: Bytes of a number.
    """
    return 2 * width * item


def _no_entries(_: PreTrainedConfig) -> dict[str, Any]:
    """The entries that an engine reads and transformers does not: none."""
    return {}


@dataclass(frozen=True)
class Engine:
    """One engine that serves decoders, as read in one release of it.

    Args:
        name: As `target=`, `cache_layout=` and `--serve` spell it.
        title: As its makers do.
        version: The release.
        readings: `model_type` -> what it makes of the windows of that family.
        keys: Keys that it holds, or reserves room for, after so many positions, over the layers;
            None = that is not known, and budgets count what the mask needs.
        key_bytes: Bytes of a key and its value in one KV head.
        floor: The setting of `Serving` that lowers what it holds of the narrowest window.
        one_window: Whether it has one window for all layers.
        biases: Whether its GraniteSWA has biases.
        entries: What it reads in a configuration that transformers does not: names and values,
            None where the entry must not be there.
        gguf: Whether it opens a GGUF file, not a folder of transformers.
        command: What starts it, of the folder and the settings; None = transformers in Python.
        read_log: Of its log and serving.json the exit code of `check_serving.py`, and what was
            found. Its text is copied into that script, where `re` and `judge_bytes` are known;
            None = there is no such script.
        check: What SERVING.md says of the bytes.
        before: And before the losses.
        after: And at its end.
        extras: Extra of this package -> its module, and what needs it.
    """

    name: str
    title: str
    version: str
    readings: Mapping[str, Reading]
    keys: Callable[[Windows, int, Serving], int] | None = None
    key_bytes: Callable[[int, int, Serving], int] = key_bytes
    floor: str = ""
    one_window: bool = False
    biases: bool = True
    entries: Callable[[PreTrainedConfig], dict[str, Any]] = _no_entries
    gguf: bool = False
    command: Callable[[str, Mapping[str, Any]], str] | None = None
    read_log: Callable[[str, Mapping[str, Any]], tuple[int, list[str]]] | None = None
    check: str = (
        "`python check_serving.py server.log` reads the engine's log and says whether it serves "
        "this (exit code 0), something else (1), or does not say (2)."
    )
    before: str = ""
    after: str = ""
    extras: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """Title and version."""
        return f"{self.title} {self.version}"

    @property
    def cache_layout(self) -> str:
        """Whose bytes a budget counts."""
        return "mask" if self.keys is None else self.name

    @property
    def measure(self) -> str:
        """The share of its dense cache, in records."""
        return f"kv_bytes_{self.name}".replace(".", "_").replace("-", "_")

    @property
    def families(self) -> tuple[str, ...]:
        """Families whose windows it reads."""
        return tuple(family for family, row in self.readings.items() if row.does == "reads")

    def unserved(self, config: PreTrainedConfig) -> str:
        """Why it does not serve the windows of a configuration, and what works instead.

        Returns:
            A sentence; empty if it serves them, or there are none.
        """
        types: Sequence[str] = getattr(config, "layer_types", None) or ()
        if SLIDING not in types:
            return ""
        family = config.model_type
        row = self.readings.get(family, Reading("ignores", "no class of it reads them"))
        does = row.does if row.layers in (None, len(types)) else "ignores"
        if does == "reads" or (does == "reads if all slide" and FULL not in types):
            return ""
        where = f" with {len(types)} layers" if row.layers else ""
        others = ", ".join(sorted(self.families))
        return (
            f"of the windows of {family}{where} {self.release} {does} ({row.source}); "
            f"{row.instead or f'windows of these families are served: {others}'}; sinks= makes a "
            "Llama a GraniteSWA"
        )
