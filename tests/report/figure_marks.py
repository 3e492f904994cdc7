"""What a figure shows: its marks by the titles that a page gives them, its lines and its words."""

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text


def marks_of(figure: Figure) -> dict[str, tuple[float, float]]:
    """The first line of a mark's title -> where it stands."""
    found = {}
    for each in figure.axes[0].collections:
        if isinstance(each, PathCollection) and each.get_urls():
            places = each.get_offsets()
            assert len(each.get_urls()) == len(places)
            for url, (x, y) in zip(each.get_urls(), places, strict=True):
                found[url.split("\n")[0]] = (float(x), float(y))
    return found


def words_of(figure: Figure) -> list[str]:
    """Every text of a figure, as it reads."""
    figure.draw_without_rendering()
    return [text.get_text().replace(r"\$", "$") for text in figure.findobj(Text)]


def lines_of(figure: Figure, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Label of a line -> its points."""
    lines = figure.axes[panel].get_lines()
    return {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in lines}
