"""What masks of positions and content masks have in common: a frozen tree with an identity."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, ClassVar

from masksearch.errors import HeadCountError, LayerCountError, MaskFormatError


class MaskTree:
    """Base of `Mask` and `ContentMask`: parts, counts, equality, JSON."""

    kind: ClassVar[str]

    @property
    def parts(self) -> tuple[MaskTree, ...]:
        """Direct children (empty for a leaf)."""
        return ()

    @property
    def heads(self) -> int | None:
        """Number of heads that the mask tells apart; None = the same for any number."""
        return agreed([part.heads for part in self.parts], HeadCountError, "heads")

    @property
    def layers(self) -> int | None:
        """Number of layers that the mask tells apart; None = the same for any number."""
        return agreed([part.layers for part in self.parts], LayerCountError, "layers")

    @property
    def length(self) -> int | None:
        """The only length that the mask has, in positions; None = any."""
        found = sorted({part.length for part in self.parts if part.length is not None})
        if len(found) > 1:
            sizes = " and ".join(map(str, found))
            raise MaskFormatError(f"tables of {sizes} positions cannot be in one mask")
        return found[0] if found else None

    def counts(self, layers: int, heads: int) -> None:
        """Checks that the mask fits that many layers and heads.

        Raises:
            LayerCountError, HeadCountError: If it was built for other counts.
            ValueError: If one of them is below 1.
        """
        if layers < 1 or heads < 1:
            raise ValueError(f"layers and heads are at least 1, got {layers} and {heads}")
        if self.layers not in (None, layers):
            raise LayerCountError(
                f"the mask has {self.layers} layers, asked for {layers}; "
                "per_layer needs one mask for each layer"
            )
        if self.heads not in (None, heads):
            raise HeadCountError(
                f"the mask has {self.heads} heads, asked for {heads}; "
                "per_head needs one mask for each head"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskTree) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the expression (its JSON form), in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"kind": ..., **fields}`."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Canonical JSON of the expression; `from_json` of its class reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def agreed(
    counts: list[int | None], error: type[HeadCountError] | type[LayerCountError], what: str
) -> int | None:
    """The one count that all parts agree on; None where no part cares."""
    found = sorted({count for count in counts if count is not None})
    if len(found) > 1:
        raise error(f"parts of one mask have {' and '.join(map(str, found))} {what}")
    return found[0] if found else None


def parsed(text: str) -> Any:
    """The data of a mask's JSON form.

    Raises:
        MaskFormatError: If the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskFormatError(f"not JSON that can be read: {error}") from error


def kind_of(data: Any) -> str:
    """The kind that the plain form of a mask names.

    Raises:
        MaskFormatError: If it names none.
    """
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise MaskFormatError(f"a mask is an object with a 'kind', got {str(data)[:80]}")
    return str(data["kind"])
