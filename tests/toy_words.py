"""Words of toy texts, and the tokens of a lower-case vocabulary that fits them."""

WORDS = [first + vowel + last for first in "bdgk" for vowel in "aeiou" for last in "nrst"]
MARKERS = ["zo", "zu", "ze"]
EXTRA = [*"what comes after then ? , . un ##do ##ing cafe 18 95".split()]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *EXTRA, *MARKERS, *WORDS]
