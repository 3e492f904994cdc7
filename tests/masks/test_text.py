"""Masks as text and as pictures: what is printed can be read back, and nothing else is read."""

import base64
import io
import re
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_trees import any_mask, combined, sized_trees

from masksearch import masks
from masksearch.errors import MaskFormatError, MaskSearchError, SearchError, UnknownNameError
from masksearch.masks.core import Mask
from masksearch.masks.text import folded, short_text


@dataclass(frozen=True, eq=False, repr=False)
class Noted(Mask, stored=False):
    """A kind of one's own, whose text holds what a reader may stumble over."""

    kind = "x"
    note: str

    def allows(self, at):
        return at.offset == 0


@pytest.fixture(scope="module")
def noted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Mask.kinds, "x", Noted)
        yield


NOTES = st.sampled_from(["3 x full()", "per_head([star(), star()])", "it's [", '"', ", | ("])
CELLS = [
    masks.full(),
    masks.star(),
    masks.window(1),
    masks.shifts([-1, 2]),
    masks.toeplitz([1, 0]),
]
PLAIN = combined(st.sampled_from(CELLS) | st.builds(Noted, NOTES), 3)


@st.composite
def nested(draw):
    """Masks of layers and heads, among which equal ones stand side by side."""

    def several(parts):
        runs = draw(st.lists(st.tuples(st.integers(1, 12), parts), min_size=1, max_size=3))
        return [mask for count, mask in runs for _ in range(count)]

    headed = combined(PLAIN | st.just(masks.per_head(several(PLAIN))), 2)
    layered = st.just(masks.per_layer(several(headed)))
    return draw(combined(layered | headed, 2))


@pytest.mark.slow
@given(any_mask(tables=False) | nested())
@pytest.mark.usefixtures("noted")
def test_parse_reads_what_is_printed(mask):
    assert masks.parse(str(mask)) == mask
    assert repr(mask) == str(mask)
    assert masks.parse(folded(str(mask))) == mask


@pytest.mark.slow
@given(nested(), st.integers(16, 200))
@pytest.mark.usefixtures("noted")
def test_a_short_text_is_the_mask_or_refused_as_cut(mask, width):
    shown = short_text(mask, width)
    if shown.endswith(f" [{mask.digest[:8]}]"):
        with pytest.raises(MaskFormatError, match="some of it is left out at"):
            masks.parse(shown)
    else:
        assert masks.parse(shown) == mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("window(3)", masks.window(3)),
        ("  window( reach = 3 ) ", masks.window(3)),
        ("bigbird", masks.bigbird()),
        ("bigbird(2,1,2) | window(3)", masks.bigbird() | masks.window(3)),
        ("bigbird(seed=9)", masks.bigbird(seed=9)),
        ("window(3) & causal - window(0)", masks.window(3) & (masks.causal() - masks.window(0))),
        ("window(3) | ~stride(2)", masks.window(3) | ~masks.stride(2)),
        ("~(window(1) | full())", ~(masks.window(1) | masks.full())),
        ("without_diagonal(star)", masks.without_diagonal(masks.star())),
        ("shifts([-1, 2])", masks.shifts([-1, 2])),
        ("offsets((1, 2))", masks.offsets([1, 2])),
        ("global_tokens(positions=[3])", masks.global_tokens(positions=[3])),
        ("per_head([full, causal()])", masks.per_head([masks.full(), masks.causal()])),
        ("toeplitz(bits=[1, 0])", masks.toeplitz(torch.tensor([True, False]))),
        ("cropped(fixed(), at=128)", masks.cropped(masks.fixed(), 128)),
        ("per_head([2 x full(), star])", masks.per_head([*[masks.full()] * 2, masks.star()])),
        ("per_head([full()] * 2 + [star])", masks.per_head([*[masks.full()] * 2, masks.star()])),
        ("per_layer([2\nx (star | full())])", masks.per_layer([masks.star() | masks.full()] * 2)),
        (
            "per_layer([2 x per_head([3 x ~star])])",
            masks.per_layer([masks.per_head([~masks.star()] * 3)] * 2),
        ),
    ],
)
def test_parse_reads(text, mask):
    assert masks.parse(text) == mask


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (masks.window(3) | masks.global_tokens(1), "window(3) | global_tokens(1)"),
        (masks.strided(), "strided()"),
        (masks.strided(5), "window(4) | stride(5)"),
        (masks.without_diagonal(masks.star()), "star() - offsets([0])"),
        (~(masks.window(1) | masks.full()), "~(window(1) | full())"),
        (masks.cropped(masks.fixed(), 128), "cropped(fixed(), 128)"),
        (masks.toeplitz(torch.tensor([True, False])), "toeplitz([1,0])"),
        (masks.block_layout(torch.eye(2) > 0, 8), "block_layout([[1,0],[0,1]], 8)"),
        (masks.a_shape(4, 8), "columns(4) | window(8)"),
        (masks.vertical_slash([3], [0]), "columns(positions=[3]) | offsets([0])"),
    ],
)
def test_str_is_short(mask, text):
    assert str(mask) == text


def test_str_of_tables_shows_shape_and_digest():
    table = masks.table(torch.ones(3, 7, 7, dtype=torch.bool))
    assert str(table) == f"table(3x7x7, {table.digest[:8]})"
    long = masks.toeplitz(torch.ones(2, 255, dtype=torch.bool), signed=True)
    assert str(long) == f"toeplitz(2x255, signed=True, {long.digest[:8]})"
    with pytest.raises(MaskFormatError):
        masks.parse(str(table))


def test_every_kind_and_recipe_can_be_written_and_is_a_name_of_masks():
    some = {"window", "per_head", "special_tokens", "same_token", "bigbird", "a_shape"}
    assert some <= set(masks.functions())
    for name in masks.functions():
        assert callable(getattr(masks, name))


# -- what is refused ---------------------------------------------------------------------------
SAID = {  # what is refused -> what is said of it
    "windo(3)": "unknown mask '.*'; did you mean .*'window'",
    "bigbrid": "unknown mask '.*'; did you mean .*'bigbird'",
    "Star()": "unknown mask '.*'; did you mean .*'star'",
    "stridde(4)": "unknown mask '.*'; did you mean .*'strided'",
    "window(1).x": r"'window\(1\).x' cannot stand in a mask; masks are calls such as",
    "window(9**9)": r"'9\*\*9' cannot stand in a mask",
    "full() | 3": r"\| & - ~ combine masks, got 3",
    "3": "'3' is not a mask; write for example 'bigbird",
    "window(-1)": "reach must be a whole number >= 0, got -1",
    "window(": "cannot read the mask 'window\\(': .* never closed",
    "window(reach=1, reach=2)": "window is given reach twice",
    "window(**x)": "cannot stand in a mask; write name=value",
    "toeplitz([2])": r"toeplitz takes lists of 0 and 1, got \[2\]",
    "per_head([0 x full()])": "per_head combines one or more masks",
    "per_head([9999999 x full()])": "has at most 196608 parts",
    "per_layer([30000 x per_head([30000 x full()])])": "has at most 196608 parts",
    "toeplitz([[[1] * 9999] * 9999] * 9999)": "has at most 196608 parts",
    "window(2 x 3)": "must be a whole number",
    "per_head([[full()] * 3, star()])": "combines one or more masks",
    "2 x full()": "cannot read the mask '2 x full",
    "token_columns(20000 ids, 0123abcd)": r"some of it is left out at '\(20000 ids'; name its",
    "table(3x7x7, 0123abcd)": r"some of it is left out at '\(3x7'; name its file, or its run as",
    "3 of 18 heads full [20833d50]": r"left out at ' \[20833d50\]'",
    "~" * 50_000 + "full()": "nested too deeply|recursion|too complex",
    " " * 100_001: "at most 100000 characters, got 100001",
}


@pytest.mark.parametrize(
    "text",
    [
        *SAID,
        "__import__('os').system('touch parsed')",
        "window(1).__class__",
        "masks.window(3)",
        "window(__import__('os'))",
        "eval('full()')",
        "(x := full())",
        "[full() for _ in range(3)]",
        "window(9**9**9)",
        "window(1 << 1000)",
        "full() if True else causal()",
        "full() + causal()",
        "(full() | star()) + (full() | star())",
        "[full()] * full()",
        "full()()",
        "window(*[1])",
        "window(**{'reach': 1})",
        "window('1')",
        "window(1.0)",
        "window(None)",
        "~3",
        "toeplitz(window(1))",
        "toeplitz([[1], [1, 0]])",
        "toeplitz([1], signed=2)",
        "",
        "full(); causal()",
        "full() causal()",
        "window(width=1)",
        "per_head(full())",
        "\0",
        "window(" + "9" * 5000 + ")",
        "window(" + "9" * 30 + ")",
        "(" * 5000,
        "|".join(["full()"] * 10_000),
        "full()" + " " * 100_000,
    ],
    ids=lambda text: text[:40].encode("unicode_escape").decode() or "empty",
)
def test_parse_refuses_and_evaluates_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = SAID.get(text)
    known = UnknownNameError if said and "did you mean" in said else MaskFormatError
    with pytest.raises(known if said else MaskSearchError, match=said) as caught:
        masks.parse(text)
    assert not list(tmp_path.iterdir())
    assert 10 < len(str(caught.value)) < 700


@given(st.text(alphabet="windofulcasr()[]|&-~,=0123 .*:'", max_size=30) | st.text())
def test_any_text_is_a_mask_or_refused(text):
    try:
        assert isinstance(masks.parse(text), masks.Mask)
    except (MaskFormatError, UnknownNameError, SearchError, FileNotFoundError):
        pass  # the last two: of a text like a path


@pytest.mark.slow
@given(sized_trees(), st.integers(16, 90))
def test_short_text_fits_and_cuts_between_operands(sized, width):
    _, mask = sized
    text, shown = str(mask), short_text(mask, width)
    if len(text) <= width:
        assert shown == text
        return
    assert len(shown) <= width
    head, _, digest = shown.rpartition(" ")
    assert digest == f"[{mask.digest[:8]}]"
    if re.fullmatch(r"\d+ of \d+ heads full|\d+ masks in \d+ heads", head):
        return
    assert head.count("...") >= 1
    assert head.count("(") == head.count(")")
    assert head.count("[") == head.count("]")
    for piece in re.split(r"[|&]|, ", head):  # what is shown whole is the mask's
        assert "..." in piece or piece.strip() in text


@pytest.mark.parametrize(
    ("mask", "width", "shown"),
    [
        (masks.window(3), 16, "window(3)"),
        (masks.window(3) | masks.stride(5) | masks.full(), 22, "... [8 digits]"),
        (masks.window(3) | masks.stride(5) | masks.full(), 26, "window(3) | ... [8 digits]"),
        (~masks.offsets(range(9)), 35, "~offsets([0, 1, 2, ...]) [8 digits]"),
        (masks.toeplitz([1, 0] * 9), 28, "toeplitz([1,...]) [8 digits]"),
        ((masks.window(3) | masks.stride(5)) & (masks.full() | masks.window(9)), 34,
         "(window(3) | ...) & ... [8 digits]"),
        (masks.per_layer([masks.per_head([masks.full(), masks.star()]), masks.full()]), 34,
         "3 of 4 heads full [8 digits]"),
        (str(masks.per_head([masks.window(1), masks.window(2)] * 9)), 20, "2 masks in 18 heads"),
        ("star", 16, "star"),
        ("the mask that I drew myself", 16, "the mask that..."),
    ],
)  # fmt: skip
def test_short_text_of_known_masks(mask, width, shown):
    digest = mask.digest[:8] if isinstance(mask, masks.Mask) else ""
    assert short_text(mask, width) == shown.replace("8 digits", digest)


# -- masks as HTML: the picture shows the cells, is small, and nothing in it is markup ----------
def shown(html: str) -> np.ndarray:
    """Darkness of the pixels of the picture in a piece of HTML, in [0, 1]."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    red = matplotlib.image.imread(io.BytesIO(data), format="png")[..., 0] * 255
    return (242 - red) / (242 - 11)


@dataclass(frozen=True, eq=False, repr=False)
class Flagged(Mask, stored=False):
    """A kind of one's own with a flag that is on by default, one without a default, and parts."""

    kind = "flagged"
    members: tuple[Mask, ...]
    must: bool
    both: bool = True

    @property
    def heads(self):
        return len(self.members)

    def allows(self, at):
        return at.offset == 0


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True), (False, False)])
def test_flags_and_tuples_of_masks_of_ones_own_come_back(monkeypatch, flags):
    monkeypatch.setitem(Mask.kinds, "flagged", Flagged)
    mask = Flagged((masks.window(1), masks.star()), *flags)
    again = masks.parse(str(mask))
    assert (again.must, again.both) == flags
    assert again.members == mask.members
    assert again.digest == mask.digest
    assert ("both" in str(mask)) == (not flags[1])


@pytest.mark.parametrize("mask", [masks.axial(4, 8), masks.cropped(masks.window(2), 32)], ids=str)
def test_a_short_mask_has_a_picture(mask):
    assert np.allclose(shown(mask._repr_html_()), mask.dense(32)[0, 0].float(), atol=0.01)


@pytest.mark.parametrize("mask", [masks.bigbird(), masks.window(3), masks.causal()], ids=str)
def test_pixels_are_the_cells(mask):
    html = mask._repr_html_()
    assert np.allclose(shown(html), mask.dense(64)[0, 0].float().numpy(), atol=0.01)
    assert f"<code>{mask}</code>" in html
    assert f"{100 * mask.sparsity(64):.1f}% sparse at 64 positions" in html


def test_layers_and_heads_are_panels_and_equal_ones_are_drawn_once():
    first, second = masks.window(1), masks.star()
    across = masks.per_head([first, second])._repr_html_()
    assert shown(across).shape == (64, 64 + 4 + 64)
    assert np.allclose(shown(across)[:, 68:], second.dense(64)[0, 0].numpy(), atol=0.01)
    assert "2 heads across" in across
    down = masks.per_layer([masks.per_head([first, second]), masks.per_head([second, first])])
    assert shown(down._repr_html_()).shape == (132, 132)
    assert "3 layers across" in masks.per_layer([first, second, first])._repr_html_()
    assert shown(masks.per_head([first, first])._repr_html_()).shape == (64, 64)


@pytest.mark.parametrize("shape", [(1, 1, 700, 700), (12, 12, 96, 96), (3, 5, 17, 17)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_a_picture_is_small_whatever_the_table(shape, density):
    table = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    html = masks.table(table | torch.eye(shape[-1]).bool())._repr_html_()
    assert len(html) < 50_000
    assert ("6 x 8 are drawn" in html) == (shape[0] == 12)


def test_one_cell_is_seen_in_a_reduced_picture():
    table = torch.eye(900).bool()
    assert (shown(masks.table(table)._repr_html_()).diagonal() > 0).all()


def test_masks_of_tokens_are_told_in_words():
    assert "mask.table(input_ids)" in (masks.special_tokens(101) | masks.window(1))._repr_html_()


def test_text_is_escaped():
    @dataclass(frozen=True, eq=False, repr=False)
    class Named(Mask, stored=False):
        kind = "named"
        name: str

        def allows(self, at):
            return at.offset == 0

    html = Named("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
