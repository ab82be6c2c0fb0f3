"""The pieces of HTML that an answer's page is made of: text that cannot become markup, marks, line numbers, strips."""

import base64
import hashlib
import html
import math
import re
from pathlib import Path

from longfocus.inference.page.heat import LEVELS, FloatArray, HeatedText, IntArray, levels

# Characters that HTML cannot hold, and those that turn the direction of writing.
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ODD_CHARACTERS = (
    "Control characters are shown as their pictures (\u2400), halves of surrogate pairs as \ufffd. "
    "Characters that turn the direction of writing have no effect and are named."
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def escaped(text: str) -> str:
    """Text between tags, character for character but for the odd ones."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # a parser of HTML takes a bare carriage return for a line end
    return _ODD.sub(_named, text.replace("\r", "&#13;"))


def attribute(text: str) -> str:
    """Text for a quoted attribute or a title."""
    return html.escape(_ODD.sub(_picture, text))


def has_odd_characters(text: str) -> bool:
    """Whether ODD_CHARACTERS has to be said."""
    return _ODD.search(text) is not None


def _named(found: re.Match[str]) -> str:
    character = found[0]
    if _turns_direction(character):
        return f'<bdi data-u="U+{ord(character):04X}">{character}</bdi>'
    return _picture(found)


def _picture(found: re.Match[str]) -> str:
    """A control character as its picture (NUL as U+2400), what has none as U+FFFD."""
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _turns_direction(character: str) -> bool:
    return "\u202a" <= character <= "\u2069"


def percent(share: float) -> str:
    """Three digits, without spaces or characters that mean something in HTML."""
    if 0 < share < 1e-8:
        return "\u22480%"
    decimals = 2 - math.floor(math.log10(100 * share)) if share else 0
    number = f"{100 * share:.{min(max(decimals, 0), 8)}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}%"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def lines(document: HeatedText, start: int, end: int) -> str:
    """The line, or first and last line, of some characters."""
    first, last = document.line(start), document.line(max(end - 1, start))
    return f"line {first:,}" if first == last else f"lines {first:,} to {last:,}"


def margin(document: HeatedText, start: int) -> str:
    """The number of a line, at its first character or where it goes on."""
    inside = "" if document.is_line_start(start) else " class=inside"
    return f"<i data-n={document.line(start)}{inside}></i>"


class Writer:
    """Writes parts of one document: line numbers in the margin, marks in the colour of their heat."""

    def __init__(self, document: HeatedText, index: int, marks: IntArray, most: float) -> None:
        self.document, self.index, self.marks = document, index, marks
        self.levels = levels(document.heat[marks], most)

    def write(self, start: int, end: int, *, are_targets: bool) -> str:
        """The characters from `start` to before `end`; links can lead to the marks if they are targets."""
        document = self.document
        first = document.ends[self.marks].searchsorted(start, "right")
        last = document.begins[self.marks].searchsorted(end, "left")
        written, place = [], start
        for mark, level in zip(self.marks[first:last], self.levels[first:last], strict=True):
            begin, stop = max(int(document.begins[mark]), start), min(int(document.ends[mark]), end)
            target = f" id=t{self.index}-{mark}" if are_targets else ""
            share = f"{percent(float(document.heat[mark]))} of the attention"
            opened = f'<mark{target} class=h{level} title="line {document.line(begin):,}: {share}">'
            # the number of the mark's first line stands before the mark
            number = self._number(begin, start)
            text = self._numbered(begin, stop, start).removeprefix(number)
            written += [self._numbered(place, begin, start), number, opened, text, "</mark>"]
            place = stop
        return "".join([*written, self._numbered(place, end, start)])

    def _numbered(self, place: int, end: int, start: int) -> str:
        written = []
        for line in _LINE.findall(self.document.text[place:end]):
            written += [self._number(place, start), escaped(line)]
            place += len(line)
        return "".join(written)

    def _number(self, place: int, start: int) -> str:
        is_numbered = place == start or self.document.is_line_start(place)
        return margin(self.document, place) if is_numbered else ""


def bars(heat: FloatArray) -> str:
    """The attention of equal parts of a text, `[parts]`, as bars of 1 to LEVELS units height."""
    heights = levels(heat, heat.max())
    return "".join(
        f"M{part} {LEVELS - heights[part]}h1v{heights[part]}h-1z" for part in heights.nonzero()[0]
    )


def asset(name: str) -> str:
    """The style or the script of the page."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def source_hash(source: str) -> str:
    """How a Content-Security-Policy names the one style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
