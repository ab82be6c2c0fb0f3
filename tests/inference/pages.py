"""Small pages, and a rendered page as a tree of elements, which exists only if every tag is closed in order."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from longfocus.inference.page.render import (
    AnswerPage,
    AnswerToken,
    Looked,
    PageDocument,
    render_page,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</script></title></style></pre>",
    "<!-- <script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "&lt;&amp;&#60;",
]
TEXTS = {
    "empty": "",
    "prose": "The owl saw nine keys.\nThen it slept.\n" * 90,
    "no line end": "one\n" * 50 + "last",
    "line ends only": "\n" * 300,
    "CRLF, tabs": "a\tb\r\n\r\n\tc\rd\r\n" * 90,
    "emoji, combining": "🦉e\u0301\U0001f468\u200d\U0001f469 \u05d0\u05d1\u2028x\x85\ufeff\n" * 90,
    "a long line": "word " * 9000 + "\nend",
    "hostile": "\n".join(HOSTILE * 40),
}


class Element:
    """An element of a page, with elements and texts in it."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def all(self, tag: str, **wanted: str) -> Iterator["Element"]:
        """Elements below, in order of the page, that have a tag ("": any) and attributes."""
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("", child.tag) and wanted.items() <= child.attributes.items():
                    yield child
                yield from child.all(tag, **wanted)


class Parser(HTMLParser):
    """Builds the tree, and fails where a tag is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag != "meta":
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data[:50]}")


def parsed(page: AnswerPage, **settings: Any) -> Element:
    """The rendered page; `settings` of `render_page`."""
    parser = Parser()
    # what a browser does with line ends before it parses
    parser.feed(re.sub("\r\n?", "\n", render_page(page, **settings)))
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def document(text: str, heat: dict[int, float] | None = None, name: str = "tale") -> PageDocument:
    """A token for every three characters; `heat` by token."""
    starts = np.arange(0, len(text), 3)
    shares = np.zeros(len(starts))
    for token, share in (heat or {}).items():
        shares[token] = share
    return PageDocument(name, text, starts, np.minimum(starts + 3, len(text)), shares)


def warm(text: str, name: str = "tale") -> PageDocument:
    """Some tokens of a text hot, in groups and alone."""
    tokens = np.random.default_rng(len(text)).integers(0, max(len(text) // 3, 1), 12)
    hot = {int(token): 0.01 / (rank + 1) for rank, token in enumerate(tokens)}
    return document(text, hot if text else {}, name)


def page(*documents: PageDocument, tokens: tuple[AnswerToken, ...] = ()) -> AnswerPage:
    return AnswerPage("Owls", "Who has it?", tokens, documents)


def section(root: Element, name: str) -> Element:
    return next(root.all("section", id=name))


def texts(root: Element) -> list[str]:
    """The whole text of every document, shown or closed."""
    return [
        "".join(pre.text for pre in one.all("pre"))
        for one in section(root, "documents").all("details")
        if "document" in one.attributes["class"].split()
    ]


def marks(root: Element) -> list[Element]:
    return list(section(root, "documents").all("mark"))


def hostile_page() -> AnswerPage:
    text = TEXTS["hostile"]
    looked = (Looked(0, 0, 9, 0.5), Looked(1, 30, 33, 0.1))
    tokens = tuple(AnswerToken(one, looked) for one in HOSTILE)
    found = tuple(warm(text, one) for one in HOSTILE)
    return AnswerPage(HOSTILE[1] + HOSTILE[3], HOSTILE[0], tokens, found, "\n".join(HOSTILE))
