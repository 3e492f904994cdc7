"""Claims of the pages are recomputed, and a changed digit does not pass: `make verify-results`."""

import re
from dataclasses import replace

import pytest

from experiments import verify

OPPOSITE = dict(zip(verify.HIGHER + verify.LOWER, verify.LOWER + verify.HIGHER, strict=True))


@pytest.fixture(scope="module")
def recomputed() -> tuple[list[verify.Claim], list[verify.Claim]]:
    """Every claim, and what needs none."""
    return verify.read()


@pytest.mark.nightly
def test_claims_are_right_none_is_missing_and_a_changed_digit_is_found(recomputed):
    claims, exempt = recomputed
    for page in verify.pages():
        text, mine = verify.text_of(page), [claim for claim in claims if claim.page == page]
        wrong = [problem for claim in mine for problem in verify.problems(claim, text)]
        wrong += verify.misplaced(page, text) + verify.unclaimed(page, text, mine, exempt)
        assert not wrong, page
        assert not [missed for claim in mine for missed in digits_that_may_change(claim, text)]
        if page.startswith(verify.FRONT):
            assert not [missed for claim in mine for missed in words_that_may_change(claim, text)]


def digits_that_may_change(claim: verify.Claim, text: str) -> list[str]:
    """Places of a claim's numbers where another digit would not be found, with their text."""
    found = verify.places(claim, text)[0]
    numbers = list(verify.numbers(found)) or [(found.start(), found[0])]
    missed = []
    for start, number in numbers:
        places = [start + i for i, sign in enumerate(number) if sign.isalnum()]
        for at in places if "{}" in claim.sentence or "..." in claim.sentence else places[-9:]:
            other = str((int(text[at]) + 5) % 10) if text[at].isdigit() else "q"
            if not verify.problems(claim, text[:at] + other + text[at + 1 :]):
                missed.append(f"{claim.page}: {text[at - 40 : at + 40]!r}")
    return missed


def words_that_may_change(claim: verify.Claim, text: str) -> list[str]:
    """Comparatives and names of arms in a claim that may be others, with their text."""
    (place,) = verify.places(claim, text)
    missed = []
    for word in re.compile(f"{verify.SIDES}|{verify.ARMS}").finditer(text, *place.span()):
        *denied, last = word[0].split()
        other = " ".join([*denied, OPPOSITE.get(last.lower(), "Random choice")])
        if not verify.problems(claim, text[: word.start()] + other + text[word.end() :]):
            missed.append(f"{claim.page}: {text[word.start() - 40 : word.end() + 40]!r}")
    return missed


def another(word: str) -> str:
    """The opposite of a comparative, or another arm."""
    *denied, last = word.split()
    other = OPPOSITE.get(last.lower(), "greedy")
    return " ".join([*denied, "DAM" if other == last.lower() else other])


@pytest.mark.nightly
@pytest.mark.parametrize("page", [each for each in verify.pages() if verify.guarded(each)])
def test_a_guarded_page_with_one_number_or_word_changed_fails(recomputed, page):
    """Wherever it is on the page: a setting, an arm, an engine, a conclusion."""
    claims, exempt = recomputed
    text, mine = verify.text_of(page), [claim for claim in claims if claim.page == page]
    missed, made = [], 0
    for word in verify.guarded_words(text):
        digits = word[0].replace(",", "").lstrip("+-")
        other = f"{word[0]}7" if digits.replace(".", "").isdigit() else another(word[0])
        mutant = text[: word.start()] + other + text[word.end() :]
        made += 1
        if not (
            any(verify.problems(claim, mutant) for claim in mine)
            or verify.unclaimed(page, mutant, mine, exempt)
        ):
            missed.append(text[max(0, word.start() - 40) : word.end() + 40])
    assert made > 20
    assert not missed


FOUND = """# Found

- Whole heads chosen by gates are behind in area by .062 [-.100, -.023] (experiments/15_referee),
  no better than star. First-order effects of edges come nearest.

```text
score 0.821 [0.797, 0.845]
```
"""
AREA, BEST = -0.0622, "First-order effects"
HEADS = "Whole heads chosen by gates are {} in area by {} [-.100, -.023]"
TOLD = [
    verify.Claim("docs/found.md", HEADS, [AREA, -AREA], source="15_referee"),
    verify.Claim("docs/found.md", "{} than star", [AREA], source="15_referee"),
    verify.Claim("docs/found.md", "{} of edges come nearest", [BEST], source="15_referee"),
    verify.Claim(
        "docs/found.md", "score {} [{}, {}]", [0.8211, 0.7969, 0.8449], source="15_referee"
    ),
]
INSIDE = FOUND.replace(".062 [-.100, -.023]", ".062 [-.100, .077]")


def wrong_on(text: str, claims: list[verify.Claim]) -> list[str]:
    """All that is wrong with a front page."""
    wrong = [problem for claim in claims for problem in verify.problems(claim, text)]
    return (
        wrong
        + verify.misplaced("docs/found.md", text)
        + verify.unclaimed("docs/found.md", text, claims, [])
    )


@pytest.mark.nightly
def test_a_finding_without_a_figure_does_not_pass_for_another(recomputed):
    for page, words, other in (
        ("README.md", "learn *sooner*", "learn *later*"),
        ("README.md", "is speed only where", "is speed also where"),
        (verify.ADVICE[1], "It depends on what can be trained", "It always pays"),
        (verify.ADVICE[1], "with as many tokens", "with a tenth of the tokens"),
        (verify.ADVICE[1], "one search says little", "one search says enough"),
        ("experiments/21_recovered/README.md", "committed before the", "committed after the"),
        ("experiments/22_as_it_is/README.md", "committed before the", "committed after the"),
        ("experiments/23_no_labels/README.md", "sentences yes, in", "sentences no, in"),
        ("experiments/24_time/README.md", "planned tests show none", "planned tests show one"),
    ):
        text, mine = verify.text_of(page), [each for each in recomputed[0] if each.page == page]
        assert text.count(words) == 1, words
        changed = text.replace(words, other)
        assert [problem for claim in mine for problem in verify.problems(claim, changed)], words


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("are behind in area", "are ahead in area"),
        ("First-order effects", "Random choice"),
        ("First-order effects", "Greedy rounds"),
        ("Whole heads", "Windows"),
        ("no better", "better"),
        ("no better", "no worse"),
        ("nearest", "last"),
        ("0.821", "0.822"),
        (".077]", ".061]"),
    ],
)
def test_another_word_name_or_output_is_found(word, other):
    claims = [replace(TOLD[0], sentence=HEADS.replace("-.023", "{}"), values=[AREA, -AREA, 0.077])]
    claims += TOLD[1:]
    assert word in INSIDE
    assert not wrong_on(INSIDE, claims)
    assert wrong_on(INSIDE.replace(word, other), claims)


def test_an_estimate_outside_its_interval_is_found():
    [found] = verify.misplaced("docs/found.md", FOUND)
    assert ".062 [-.100, -.023]" in found
    assert not verify.misplaced("docs/found.md", INSIDE)
    for row in ("| .5 [.6, .7] |", ".5 nats, 95 % interval [.6,\n.7]", "loses .5 less [.6, .7]"):
        assert verify.misplaced("docs/dam.md", row)
        assert not verify.misplaced("docs/dam.md", row.replace("[.6", "[-.6"))


@pytest.mark.parametrize(
    ("left", "word"), [(0, "behind"), (1, "no better"), (2, "nearest"), (3, "0.821")]
)
def test_words_and_output_that_no_claim_holds_are_listed(left, word):
    claims = [claim for at, claim in enumerate(TOLD) if at != left]
    there = [replace(claim, page="README.md") for claim in claims]
    listed = verify.unclaimed("README.md", INSIDE, there, [])
    assert any(f"'{word}'" in each for each in listed)


def test_words_are_listed_beside_a_claimed_number_alone_on_other_pages():
    page = "Windows lose .5 nats, less than star. Greedy rounds are best.\n"
    claim = verify.Claim("docs/dam.md", "Windows lose {} nats", [0.5], source="docs")
    listed = [each.split("'")[1] for each in verify.unclaimed("docs/dam.md", page, [claim], [])]
    assert listed == ["less", "star"]
    free = verify.Claim("docs/dam.md", "less than star", [])
    assert not verify.unclaimed("docs/dam.md", page, [claim], [free])


def test_a_comparative_has_no_place_in_a_template_of_a_front_page():
    page = "Windows lose .5 nats less than star.\n"
    claim = verify.Claim(
        "docs/dam.md", "Windows lose {} nats less than star", [0.5], source="docs"
    )
    [found] = verify.problems(claim, page)
    assert "write {} for 'less'" in found
    claim = replace(claim, sentence="Windows lose {} nats {} than star", values=[0.5, -0.5])
    assert not verify.problems(claim, page)
    assert verify.problems(replace(claim, values=[0.5, 0.5]), page)


def test_comparatives_are_compared_by_their_sign():
    assert verify.agrees("behind", -0.1)
    assert not verify.agrees("Behind", 0.1)
    assert verify.agrees("more", 0.1)
    assert not verify.agrees("more", 0.0)
    assert verify.agrees("no better", -0.1)
    assert verify.agrees("no better", 0.0)
    assert not verify.agrees("nothing better", 0.1)
    assert not verify.agrees("star", 1.0)
    assert verify.agrees("First-order\neffects", "first-order effects")
    assert not verify.agrees("gates", "star")


def test_an_interval_that_the_page_leaves_out_stands_in_its_claim():
    lead, luck, wrong = (0.05, 0.01, 0.09), (0.05, -0.01, 0.11), (0.05, 0.06, 0.09)
    for value, number, ahead, no_better in ((lead, True, True, False), (luck, True, False, True)):
        assert verify.agrees(".05", value) == number
        assert verify.agrees("ahead", value) == ahead
        assert verify.agrees("no better", value) == no_better
        assert not verify.agrees("behind", value)
    assert not verify.agrees(".05", wrong)
    assert not verify.agrees(".06", lead)
    page = "06_dam_text: DAM leads by .06 nats.\n"
    claim = verify.Claim("docs/dam.md", "leads by {} nats", [lead], source="06_dam_text")
    assert "computed (0.05, 0.01, 0.09)" in verify.problems(claim, page)[0]
    assert not verify.problems(claim, page.replace(".06", ".05"))


def test_the_notes_of_an_experiment_are_read_with_its_page():
    text = verify.text_of("experiments/11_glue_fronts/README.md")
    assert text.index("## What this does not show") < text.index("### Do maps predict it")


def test_code_is_not_read_and_output_is():
    page = "```python\nlr = 1.5\n```\n\n```text\nloss 2.5\n```\n\n```\nloss 3.5\n```\n"
    listed = [each.split("'")[1] for each in verify.unclaimed("docs/dam.md", page, [], [])]
    assert listed == ["2.5", "3.5"]


def test_numbers_are_compared_to_their_last_printed_digit():
    assert verify.agrees("-.380", -0.3798)
    assert not verify.agrees("-.379", -0.3798)
    assert not verify.agrees(".380", -0.3798)
    assert verify.agrees("3,200", 3200)
    assert verify.agrees("2e-3", 0.0021)
    assert verify.agrees("twelve", 12)
    assert not verify.agrees("twelve", 11)


def test_a_sentence_that_is_gone_doubled_or_without_its_experiment_is_found():
    page = "# A\n\nexperiments/06_dam_text: the gap is .38 nats.\n\n# B\n\nThe rest is .5 nats.\n"
    gap = verify.Claim("docs/dam.md", "the gap is {} nats", [0.381], source="06_dam_text")
    rest = verify.Claim("docs/dam.md", "The rest is {} nats", [0.5], source="06_dam_text")
    assert not verify.problems(gap, page)
    assert "stands 0 times" in verify.problems(gap, page.replace("the gap", "a gap"))[0]
    assert "stands 2 times" in verify.problems(gap, page * 2)[0]
    assert "does not name 06_dam_text" in verify.problems(rest, page)[0]
    assert len(verify.unclaimed("docs/dam.md", page, [], [])) == 1  # B names no experiment
    assert not verify.unclaimed("docs/dam.md", page, [gap], [])


def test_a_row_of_advice_links_the_experiment_of_its_claims():
    row = "| it keeps | .5 | [06](experiments/06_dam_text/README.md) |"
    page = f"06_dam_text is named here.\n\n{row}\n"
    keeps = verify.Claim("README.md", "it keeps | {} |", [0.5], source="06_dam_text")
    assert not verify.problems(keeps, page)
    other = page.replace("experiments/06_dam_text", "experiments/07_proxy")
    [found] = verify.problems(keeps, other)
    assert "its row does not link 06_dam_text" in found
    assert not verify.problems(replace(keeps, page="docs/dam.md"), other)  # named in its section


def test_every_word_of_a_row_of_advice_stands_in_a_claim():
    page = (
        "| you | take |\n|---|---|\n| all | five of 9 ([06](../experiments/06_dam_text/x.md)) |\n"
    )
    pays, source = verify.ADVICE[1], "06_dam_text"
    whole = page.splitlines()[-1]
    assert not verify.unclaimed(pays, page, [verify.Claim(pays, whole, [], source=source)], [])
    part = verify.Claim(pays, whole.removeprefix("| all "), [], source=source)
    listed = [each.split("'")[1] for each in verify.unclaimed(pays, page, [part], [])]
    assert listed == ["all"]
