"""The five special tokens of a tokenizer, by role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from masksearch.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = {  # role -> spellings, the first one is used by trained vocabularies
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


class TokenSource(Protocol):
    """A corpus, or a vocabulary: a tokenizer that knows its special tokens."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""

    @property
    def special(self) -> dict[str, int]:
        """Its special tokens: role -> id."""


def read_special_ids(tokenizer: Tokenizer, settings: Any = None) -> dict[str, int]:
    """Ids of the five special tokens by role.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        settings: The tokenizer of transformers that names them; None = by their usual spellings.

    Raises:
        DataError: If the tokenizer lacks one; names the spellings that were tried.
    """
    by_role = {}
    for role, spellings in SPECIALS.items():
        name = getattr(settings, f"{'unk' if role == 'unknown' else role}_token", None)
        names = (name,) if name else spellings
        numbers = [number for each in names if (number := tokenizer.token_to_id(each)) is not None]
        if not numbers:
            raise DataError(
                f"the tokenizer has no {role} token ({' or '.join(names)}); "
                "masked-language-model training needs one: use a BERT-like tokenizer"
            )
        by_role[role] = int(numbers[0])
    return by_role
