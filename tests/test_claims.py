"""Claims of the pages are recomputed, and a changed digit does not pass: `make verify-results`."""

from __future__ import annotations

import pytest

from experiments import verify


@pytest.mark.slow
def test_claims_are_right_none_is_missing_and_a_changed_digit_is_found():
    claims, exempt = verify.read()
    for page in verify.pages():
        text, mine = verify.text_of(page), [claim for claim in claims if claim.page == page]
        wrong = [problem for claim in mine for problem in verify.problems(claim, text)]
        assert not wrong + verify.unclaimed(page, text, mine, exempt), page
        assert not [missed for claim in mine for missed in digits_that_may_change(claim, text)]


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
