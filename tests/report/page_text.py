"""What a reader of a page sees, as text, and what the page says of a section."""

from html.parser import HTMLParser
from typing import Any

from masksearch.report.result import result_of
from masksearch.report.section import Section

VOID = {"meta", "img", "br", "link", "input"}


def page_of(section: Section) -> dict[str, Any]:
    """What the page says of a section."""
    return result_of([section], title="t")["sections"][0]


class Page(HTMLParser):
    """Collects tags and visible text, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
