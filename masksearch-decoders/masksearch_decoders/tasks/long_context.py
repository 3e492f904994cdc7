"""Tasks of long context, made from a text without a download: RULER's thirteen and the pass key.

text = NextTokenText.load("books", tokenizer="models/smollm2", length=4096)
rows = task_rows(text, "validation", "niah_multikey_1", 16)     # tokens; which of them are answers

A row is a prompt and its answer. What it asks for lies somewhere in it, the rest is the text's
own, repeated sentences, or further sentences that look like what is asked for. The kinds and
their sizes are RULER's (Hsieh et al., arXiv 2404.06654, Section 3 and Appendix B; its
scripts/synthetic.yaml). What differs: sentences and words are this project's (keys and variables
are invented words, values of `vt` have seven digits and not five), `vt` and `cwe` begin with no
solved example, lists of words have no numbers, and `qa_1`, `qa_2` ask for planted facts in the
place of SQuAD's and HotpotQA's documents: scores are not comparable with RULER's. A mask is
judged by the answer's tokens with the right ones before them: their loss, and whether every one
is the likeliest, which is what greedy generation would have to repeat; so several answers have an
order, where RULER takes any.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import torch

from masksearch.contracts import Split, mixed_seed
from masksearch.errors import DataError
from masksearch.tasks.text.tokenizer import encode
from masksearch_decoders.tasks.next_token import NextTokenRows, NextTokenText

DRAW = 67  # stream of random numbers
SPLITS = {"validation": 0, "holdout": 1, "test": 2, "all": 3}
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
NOISE = (
    " The road is long.",
    " The river is wide.",
    " The night is quiet.",
    " They walk on.",
    " Nobody turns.",
)
HOPS, COMMON = 4, 10  # of `vt`; words of `cwe` that are asked for
OFTEN, SELDOM = (30, 3), (6, 1)  # how often these and others stand in `cwe`; in fewer tokens than
LONG = 4096
ZIPF, WORDS = 2.0, "\nWords:"  # exponent of `fwe`; what stands before words that are counted


class Draw:
    """The random draws of a row; no word or number is drawn twice."""

    def __init__(self, seed: int, encode: Callable[[str], list[int]]) -> None:
        self.random = np.random.default_rng(seed)
        self.encode = encode
        self.drawn: dict[tuple[int, ...], str] = {}
        self.nats: dict[str, float] = {}  # of a guess among all that could be drawn

    def fresh(self, make: Callable[[], str], choices: int) -> str:
        """Text that this row has not had, one of so many; DataError where a tokenizer does not
        tell them apart."""
        for _ in range(50):
            text, other = make(), make()
            tokens = tuple(self.encode(text))
            if text != other and tokens == tuple(self.encode(other)):
                break
            if self.drawn.setdefault(tokens, text) is text:
                self.nats[text] = math.log(choices)
                return text
        raise DataError(
            f"the tokenizer gives {text!r} and {other!r} the same ids, so that no answer can be "
            "told apart; use one that spells letters and digits, or leave tasks out"
        )

    def word(self) -> str:
        """An invented word, with the space in front of it."""

        def make() -> str:
            return " " + "".join(
                self.random.choice([*letters])
                for _ in range(3)
                for letters in (CONSONANTS, VOWELS)
            )

        return self.fresh(make, (len(CONSONANTS) * len(VOWELS)) ** 3)

    def number(self) -> str:
        """Seven digits, with the space in front of them."""
        return self.fresh(lambda: f" {self.random.integers(10**6, 10**7)}", 9 * 10**6)

    def uuid(self) -> str:
        """A UUID of version 4, with the space in front of it."""
        return self.fresh(lambda: f" {UUID(bytes=self.random.bytes(16), version=4)}", 2**122)


@dataclass(frozen=True)
class Prompt:
    """The parts of a row. A bar (|) in a text splits it for the tokenizer, so that an answer has
    the same tokens as in the sentence that states it.

    Args:
        planted: Sentences that are asked for, with their depth in [0, 1], and others beside them.
        question: What stands at the end.
        answers: What follows it, with commas between.
        filler: Sentences that the rest is made of, again and again; empty = the text's own.
    """

    planted: list[tuple[float, str]]
    question: str
    answers: list[str]
    filler: list[str]


Task = Callable[[Draw, float, int], Prompt]
"""A prompt from a draw, the depth of what is asked for, and the tokens that there are."""


def needle(key: str, value: str) -> str:
    """The sentence that holds a value."""
    return f"\nThe secret of|{key}| is|{value}|.\n"


def _find_needles(
    *,
    kinds: str = "word number",
    keys: int = 1,
    values: int = 1,
    asked: int = 1,
    filler: str = "text",
) -> Task:
    """A task of needles: values by their keys.

    Args:
        kinds: Of keys and of values: methods of `Draw`.
        keys: Keys in the row, of which `asked` are asked for.
        values: Values of the key that is asked for.
        asked: Keys that are asked for.
        filler: `"text"`, `"noise"` or `"needles"`.
    """
    key_kind, value_kind = kinds.split()

    def make(draw: Draw, depth: float, room: int) -> Prompt:
        def pairs(count: int) -> Iterator[tuple[str, str]]:
            for _ in range(count):
                yield getattr(draw, key_kind)(), getattr(draw, value_kind)()

        first, *others = pairs(keys)
        wanted = [first, *others[: asked - 1]]
        wanted += [(first[0], getattr(draw, value_kind)()) for _ in range(values - 1)]
        depths = [depth, *draw.random.random(keys + values - 2)]
        sentences = [needle(*pair) for pair in [*wanted, *others[asked - 1 :]]]
        rest = list(NOISE) if filler == "noise" else []
        if filler == "needles":
            size = len(draw.encode(sentences[0]))
            rest = [needle(*pair) for pair in pairs(room // size + 1)]
        names = ",".join(dict.fromkeys(key for key, _ in wanted))
        question = f"\nWhat is the secret of{names}? The secret of{names} is"
        order = depths if values > 1 else range(len(wanted))  # of one key as they stand
        answers = [value for _, (_, value) in sorted(zip(order, wanted, strict=False))]
        return Prompt(list(zip(depths, sentences, strict=True)), question, answers, rest)

    return make


def _trace_variables(draw: Draw, depth: float, room: int) -> Prompt:
    """`vt`: a value is passed on from variable to variable, in sentences far from each other."""
    value, names = draw.number(), [draw.word() for _ in range(HOPS + 1)]
    sources = [value, *names]
    sentences = [f"\nLet|{name}| be|{sources[hop]}|.\n" for hop, name in enumerate(names)]
    depths = sorted([depth, *draw.random.random(HOPS)])
    question = f"\nWhich words are{value}? The words that are{value}:"
    return Prompt(list(zip(depths, sentences, strict=True)), question, names, list(NOISE))


def _common_words(draw: Draw, depth: float, room: int) -> Prompt:
    """`cwe`: ten words stand often, the others seldom; they are asked for in the order in which
    they first stand."""
    question = "\nWhich ten words stand there most often? Most often:"
    common = [draw.word() for _ in range(COMMON)]
    size = max(len(draw.encode(word)) for word in common)
    most, rare = OFTEN if room > LONG - COMMON else SELDOM
    room -= len(draw.encode(f"{WORDS}|{question}")) + COMMON * (size + 1)
    times = min(most, max(2, room // size // (2 * COMMON)))
    words = common * times
    room -= times * sum(len(draw.encode(word)) for word in common)
    while (room := room - rare * len(draw.encode(word := draw.word()))) >= 0:
        words += [word] * rare
    order = [str(word) for word in draw.random.permutation(words)]
    asked = [word for word in dict.fromkeys(order) if word in common]
    return Prompt([(depth, "|".join([WORDS, *order]))], question, asked, [])


def _frequent_words(draw: Draw, depth: float, room: int) -> Prompt:
    """`fwe`: words by Zipf's law. The most frequent one is dots; the next three are asked for, in
    that order."""
    question = "\nWhich three words stand there most often, dots apart? Most often:"
    words = [" ...", *(draw.word() for _ in range(max(4, room // 50)))]
    size = max(len(draw.encode(word)) for word in words)
    room -= len(draw.encode(f"{WORDS}|{question}")) + 3 * (size + 1)
    shares = np.arange(1, len(words) + 1) ** -ZIPF
    counts = (max(0, room) // size * shares / shares.sum()).astype(int)
    counts[:4] = np.maximum(counts[:4], [4, 3, 2, 1])
    counts[4:] = np.minimum(counts[4:], counts[3] - 1)  # no word is as frequent as one asked for
    listed = np.repeat(words, counts)
    order = [str(word) for word in draw.random.permutation(listed)]
    return Prompt([(depth, "|".join([WORDS, *order]))], question, words[1:4], [])


def _planted_facts(*, hops: int) -> Task:
    """Questions over facts in the text; with two hops the answer's sentence has to be found by
    what another one says. Three facts of the same kind stand beside each."""

    def make(draw: Draw, depth: float, room: int) -> Prompt:
        people, towns, names = ([draw.word() for _ in range(4)] for _ in range(3))
        lives = [f"\n{p.strip()} lives in|{t}|.\n" for p, t in zip(people, towns, strict=True)]
        heads = [f"\nThe head of|{t}| is|{n}|.\n" for t, n in zip(towns, names, strict=True)]
        if hops == 1:
            question = f"\nWhere does{people[0]} live?{people[0]} lives in"
            sentences, answer = lives, towns[0]
        else:
            where = f"the place where{people[0]} lives"
            question = f"\nWho is the head of {where}? The head of {where} is"
            sentences, answer = [*heads, *lives], names[0]
        depths = [depth, *draw.random.random(len(sentences) - 1)]
        return Prompt(list(zip(depths, sentences, strict=True)), question, [answer], [])

    return make


def _pass_key(draw: Draw, depth: float, room: int) -> Prompt:
    """`passkey`: one number; reference: Mohtashami and Jaggi, arXiv 2305.16300, Section 4.2."""
    number = draw.number()
    question = "\nWhat is the pass key? The pass key is"
    sentence = f"\nThe pass key is|{number}|. Remember it.\n"
    return Prompt([(depth, sentence)], question, [number], [])


RETRIEVAL: dict[str, Task] = {
    "passkey": _pass_key,
    "niah_single_1": _find_needles(filler="noise"),
    "niah_single_2": _find_needles(),
    "niah_single_3": _find_needles(kinds="word uuid"),
    "niah_multikey_1": _find_needles(keys=4),
    "niah_multikey_2": _find_needles(filler="needles"),
    "niah_multikey_3": _find_needles(kinds="uuid uuid", filler="needles"),
    "niah_multivalue": _find_needles(values=4),
    "niah_multiquery": _find_needles(keys=4, asked=4),
}
GROUPS: dict[str, dict[str, Task]] = {
    "retrieval": RETRIEVAL,
    "tracing": {"vt": _trace_variables},
    "aggregation": {"cwe": _common_words, "fwe": _frequent_words},
    "answering": {"qa_1": _planted_facts(hops=1), "qa_2": _planted_facts(hops=2)},
}
TASKS = {name: task for group in GROUPS.values() for name, task in group.items()}


def task_rows(text: NextTokenText, split: Split, name: str, count: int) -> NextTokenRows:
    """Rows of a task: prompts and answers of the text's length.

    What is asked for lies at depths spread evenly from the first row to the last. Held-out text
    around it is cut, so that every row keeps its length.

    Args:
        text: The running text.
        split: Which of its held-out sequences, and which draw of words and numbers.
        name: One of `TASKS`.
        count: Rows; the text's sequences repeat where it has fewer.

    Returns:
        Labels, `answers` and `guess` are of the answers' tokens alone; `needs` says how far back
        each answer last stood.

    Raises:
        DataError: If the tokenizer tells keys or values not apart, or a row is too short.
    """
    base, front, guess = text.held_out(split, count), list(text.train.before), 0.0
    numbered = list(TASKS).index(name)
    tokens = np.empty((count, text.length), np.int64)
    needs = torch.zeros(count, text.length, dtype=torch.int64)
    kept = {"": list[int]()}

    def ids(sentence: str) -> list[int]:
        pieces = sentence.split("|")
        missing = [piece for piece in dict.fromkeys(pieces) if piece not in kept]
        kept.update(zip(missing, encode(text.tokenizer, missing), strict=True))
        return [token for piece in pieces for token in kept[piece]]

    for row in range(count):
        draw = Draw(mixed_seed(DRAW, SPLITS[split], numbered, row), ids)
        prompt = TASKS[name](draw, (row + 0.5) / count, text.length - len(front))
        body = base.tokens[row % len(base.tokens), len(front) :].tolist()
        answers = list(itertools.chain(*([",", a] for a in prompt.answers)))[1:]
        guess += sum(draw.nats.get(answer, math.inf) for answer in prompt.answers)
        end = [*ids(prompt.question), *itertools.chain(*map(ids, answers))]
        planted = [(at, ids(sentence)) for at, sentence in sorted(prompt.planted)]
        start = [*front]
        left = text.length - len(start) - len(end) - sum(len(each) for _, each in planted)
        if left < 0:
            raise DataError(
                f"a row of {name} takes {text.length - left} tokens at least, and a sequence has "
                f"{text.length}; give a larger length, or leave {name} out of tasks"
            )
        cuts: Sequence[int] = range(left + 1)
        if prompt.filler:  # what is planted stands between its sentences
            rest = [ids(sentence) for sentence in prompt.filler]
            rest *= left // sum(map(len, rest)) + 1
            body = list(itertools.chain.from_iterable(rest))
            cuts = list(itertools.accumulate(map(len, rest), initial=0))
        done = 0
        for at, sentence in planted:
            cut = cuts[bisect_right(cuts, round(at * left)) - 1]
            start += [*body[done:cut], *sentence]
            done = cut
        context = [*start, *body[done:left]]
        tokens[row] = [*context, *end]
        at = len(context) + len(ids(prompt.question))
        for piece in answers:
            answer = ids(piece)
            if piece != ",":
                needs[row, at : at + len(answer)] = at - _last_place(answer, context)
            at += len(answer)
    made, answered = torch.from_numpy(tokens), needs > 0
    documents = base.documents[np.arange(count) % len(base.tokens)]
    labels, guess = torch.where(answered, made, -100), guess / int(answered.sum())
    return NextTokenRows(made, labels, documents, needs, answered, guess)


def _last_place(tokens: list[int], context: list[int]) -> int:
    """Where these tokens last begin in a context."""
    size = len(tokens)
    return next(
        at for at in range(len(context) - size, -1, -1) if context[at : at + size] == tokens
    )
