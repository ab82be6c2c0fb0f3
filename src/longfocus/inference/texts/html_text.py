"""The readable text of an HTML page, as light Markdown: headings, paragraphs, list items, table rows and code.

The page is parsed as a browser does (selectolax, Lexbor), so that what is not closed or wrongly nested finds its place.
Nothing is guessed: menus and footers stay. Left out is what a browser shows as no text: scripts, styles, drawings.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longfocus.errors import extra
from longfocus.inference.texts.text_file import marked_encoding, refuse_binary
from longfocus.inference.texts.unreadable import UnreadableFile

_DROPPED_NAMES = "script style template noscript svg canvas iframe object select datalist head"
_PARAGRAPH_NAMES = (
    "p table blockquote dl hr section article header footer nav main aside figure form fieldset "
    "details address"
)
_LINE_NAMES = "div dt dd caption legend summary figcaption body html"
_DROPPED = frozenset(_DROPPED_NAMES.split())
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_PARAGRAPHS = frozenset(_PARAGRAPH_NAMES.split()).union(_HEADINGS)
_LINES = frozenset(_LINE_NAMES.split())
_SPACES = re.compile("[ \t\n\r\f\xa0]+")
_CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


def html_text(data: bytes, path: Path) -> str:
    """The text of a page in any encoding. Raises UnreadableFile if there is none."""
    with extra("read", f"{path} is an HTML page, and reading it"):
        from selectolax.lexbor import LexborHTMLParser
    source = _decode(data)
    if "\0" in source:
        raise refuse_binary(path)
    tree = LexborHTMLParser(source)
    page = _Page()
    if (title := tree.css_first("head title")) is not None:
        page.write(title.text())
        page.end_line("\n\n")
    for event in _events(tree.root):
        page.take(event)
    if not page.written:
        raise UnreadableFile(
            path,
            "is an HTML page without text",
            "It may be made by its scripts: save it from a browser that shows it, and give that.",
        )
    return "".join(page.written) + "\n"


def _decode(data: bytes) -> str:
    """UTF-8 if it is that, whatever the page declares; else as declared; else as old pages of the West were written."""
    if mark := marked_encoding(data):
        return data.decode(mark, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        found = _CHARSET.search(data[:1024])
    declared = found[1].decode().lower() if found else "iso-8859-1"
    if declared.startswith("utf"):
        text = data.decode("utf-8", "replace")
        if any(letter > "\x7f" and letter != "\ufffd" for letter in text):
            return text
        declared = "windows-1252"
    if declared in ("iso-8859-1", "latin1", "us-ascii", "ascii"):
        # as the standard of HTML says
        declared = "windows-1252"
    try:
        return data.decode(declared, "replace")
    except (LookupError, UnicodeError):
        return data.decode("windows-1252", "replace")


class _Event(NamedTuple):
    tag: str
    kind: str
    """enter, leave or text"""
    text: str = ""


def _events(root) -> Iterator[_Event]:  # noqa: ANN001  (LexborNode)
    """The elements and texts in order, without recursion: pages are nested as deep as they like."""
    node, depth = root, 0
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            yield _Event(tag, "text", node.text_content or "")
        is_element = bool(tag) and tag[0] != "-" and tag not in _DROPPED
        if is_element:
            yield _Event(tag, "enter")
        if is_element and node.child is not None:
            node, depth = node.child, depth + 1
            continue
        if is_element:
            yield _Event(tag, "leave")
        while depth and node.next is None:
            node, depth = node.parent, depth - 1
            yield _Event(node.tag, "leave")
        node = node.next if depth else None


class _Page:
    """The text so far, and what has to stand before the next word."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.gap = ""
        """Line ends before the next word."""
        self.begin = ""
        """What the next line begins with: the mark of a heading or a list item."""
        self.cells = ""
        """Borders of table cells before the next word."""
        self.is_spaced = False
        self.is_new_cell = self.is_new_row = False
        self.row_start = 0
        self.lists: list[int | None] = []
        """Number of the last item of each open list; None without numbers."""
        self.code: list[str] = []
        self.open_code = 0

    def take(self, event: _Event) -> None:
        if event.kind == "text":
            if self.open_code:
                self.code.append(event.text)
            else:
                self.write(event.text)
        elif event.tag == "pre":
            self._code(event.kind)
        elif self.open_code:
            self._line_of_code(event)
        else:
            self._border(event.tag, event.kind == "enter")

    def write(self, text: str) -> None:
        text = _SPACES.sub(" ", text)
        words = text.strip(" ")
        if not words:
            self.is_spaced = self.is_spaced or bool(text)
            return
        before = (self.gap if self.written else "") + self.cells + self.begin
        if not before and self.written and (self.is_spaced or text[0] == " "):
            before = " "
        self.written.append(before + words)
        self.gap = self.cells = self.begin = ""
        self.is_spaced, self.is_new_cell = text[-1] == " ", False

    def end_line(self, gap: str = "\n") -> None:
        # a cell's first block does not break the row
        if not self.is_new_cell:
            self.gap = max(self.gap, gap, key=len)

    def _border(self, tag: str, is_enter: bool) -> None:
        if tag in ("ul", "ol"):
            self._list(tag, is_enter)
        elif tag == "li":
            self._item(is_enter)
        elif tag in ("td", "th") and is_enter:
            self._cell()
        elif tag == "tr":
            self.cells, self.is_new_cell, self.is_new_row = "", False, True
            self.end_line()
            self.row_start = len(self.written)
        elif tag in _PARAGRAPHS:
            self.end_line("\n\n")
            if tag in _HEADINGS:
                self.begin = _HEADINGS[tag] if is_enter else ""
        elif tag in _LINES:
            self.end_line()
        elif tag == "br" and is_enter:
            # a second one makes an empty line
            self.end_line("\n\n" if self.gap else "\n")

    def _list(self, tag: str, is_enter: bool) -> None:
        if not is_enter:
            self.lists.pop()
        self.end_line("\n" if self.lists else "\n\n")
        if is_enter:
            self.lists.append(0 if tag == "ol" else None)

    def _item(self, is_enter: bool) -> None:
        self.end_line()
        self.begin = ""
        if is_enter:
            mark = "-"
            if self.lists and (number := self.lists[-1]) is not None:
                self.lists[-1] = number + 1
                mark = f"{number + 1}."
            self.begin = "  " * (len(self.lists) - 1) + mark + " "

    def _cell(self) -> None:
        if not self.is_new_row:
            self.cells += " | "
            if len(self.written) > self.row_start:
                self.gap = ""
        self.is_new_cell, self.is_new_row = True, False

    def _code(self, kind: str) -> None:
        self.open_code += 1 if kind == "enter" else -1
        if self.open_code:
            return
        code, self.code = "".join(self.code).strip("\r\n"), []
        if code.strip():
            self.cells, self.is_new_cell = "", False
            self.end_line("\n\n")
            self.written.append((self.gap if self.written else "") + f"```\n{code}\n```")
            self.gap, self.begin = "\n\n", ""

    def _line_of_code(self, event: _Event) -> None:
        is_line = event.tag in {"div", "li", "tr"} and self.code and self.code[-1][-1:] != "\n"
        if is_line or (event.tag == "br" and event.kind == "enter"):
            self.code.append("\n")
