"""A page that shows an answer and where in the documents the model looked: one HTML file that needs nothing else.

    question | places with most attention, ranked, each with the lines around it
    answer   | document: strip of its attention from the first to the last character
             |           text in colour; stretches without colour stay closed until somebody opens them

The input is in `input`; `heat` and `view` decide which text is marked and shown. Everything that is
given is escaped, a Content-Security-Policy allows the page's own style and script only, and without the script the
page can still be read.
"""

from collections.abc import Sequence
from pathlib import Path

from longfocus.atomic import write_text
from longfocus.inference.page.heat import LEVELS, Passage, Stretch
from longfocus.inference.page.html import (
    ODD_CHARACTERS,
    Writer,
    asset,
    attribute,
    bars,
    counted,
    escaped,
    has_odd_characters,
    lines,
    margin,
    percent,
    source_hash,
)
from longfocus.inference.page.input import AnswerPage, AnswerToken, Looked, PageDocument
from longfocus.inference.page.view import DocumentView, Look, PageView, view

__all__ = ["AnswerPage", "AnswerToken", "Looked", "PageDocument", "render_page", "write_page"]

BINS = 600
"""Parts of a document's strip."""
LISTED = 25
"""Passages in the ranked list."""
EXCERPT = 1200
"""Characters of a passage in the list."""
STRIPS = (
    "A strip shows a document from its first to its last character: each step of height is twice the attention. "
    "Its bars lead to the text."
)


def write_page(path: Path, page: AnswerPage, *, max_text_characters: int = 20_000_000) -> None:
    """Write `render_page` to a file, whole or not at all. Raises LongFocusError if it cannot be written."""
    write_text(path, render_page(page, max_text_characters=max_text_characters))


def render_page(page: AnswerPage, *, max_text_characters: int = 20_000_000) -> str:
    """The page as HTML; the same input gives the same text.

    Coloured text and its surroundings are always in the page. Closed stretches are left out, and the page says which,
    once its text would exceed `max_text_characters`.
    """
    seen = view(page, max_text_characters)
    style, script = asset("page.css"), asset("page.js")
    policy = (
        f"default-src 'none'; style-src {source_hash(style)}; script-src {source_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{attribute(page.title)}</title>
<style>{style}</style>
</head>
<body>
<a class=skip href="#places">To the places with most attention</a>
<main>
{_answer(page, seen)}
{_places(seen)}
{_documents(seen)}
</main>
<script>{script}</script>
</body>
</html>
"""


def _answer(page: AnswerPage, seen: PageView) -> str:
    tokens = "".join(
        _token(token.text, looks, seen)
        for token, looks in zip(page.answer_tokens, seen.looks, strict=True)
    )
    text = f"<p class=plain>{tokens}</p>" if tokens else "<p class=soft>The answer is empty.</p>"
    note = f"<p class=note>{escaped(page.note)}</p>" if page.note else ""
    hint = "Underlined tokens lead to the place that had most of their attention."
    return f"""<section id=answer>
<h1>{escaped(page.title)}</h1>{note}
<h2>Question</h2><p class=plain>{escaped(page.question)}</p>
<h2>Answer</h2>{text}
{f"<p class='soft hint'>{hint}</p>" if any(seen.looks) else ""}
<div id=looked aria-live=polite></div>
</section>"""


def _token(text: str, looks: Sequence[Look], seen: PageView) -> str:
    """A token of the answer, a link to the place that it looked at most; page.js reads `data-at`."""
    if not looks:
        return f"<span>{escaped(text)}</span>"
    at = []
    for look in looks:
        ids = ",".join(f"t{look.document}-{mark}" for mark in look.marks)
        part = _part(seen.of[look.document], look.marks[0])
        at.append(f"{ids}={percent(look.weight)}@{part}")
    first = f"#t{looks[0].document}-{looks[0].marks[0]}"
    return f'<a href="{first}" data-at="{" ".join(at)}">{escaped(text)}</a>'


def _part(document: DocumentView, mark: int) -> int:
    """Where on the strip a mark lies."""
    return int(document.heated.begins[mark]) * BINS // len(document.heated.text)


def _places(seen: PageView) -> str:
    ranked = seen.passages
    items = "\n".join(
        _listed(document, passage, seen.most) for document, passage in ranked[:LISTED]
    )
    rest = len(ranked) - LISTED
    more = f"{counted(rest, 'more place')} with less attention: see the documents."
    return f"""<section id=places>
<h2>Places with most attention</h2>
<p>{_summary(seen)}</p>
{_legend(seen) if seen.coloured else ""}
<ol>
{items}
</ol>
{f"<p class=soft>{more}</p>" if rest > 0 else ""}
</section>"""


def _summary(seen: PageView) -> str:
    if not seen.documents:
        return "There are no documents."
    tokens = counted(sum(document.tokens for document in seen.documents), "memory token")
    documents = f"{counted(len(seen.documents), 'document')} of {tokens} together"
    if not seen.weight:
        return f"No attention fell on the documents ({documents})."
    even = "" if seen.passages else " It is spread so evenly that no place stands out."
    return (
        f"{percent(seen.weight)} of the attention fell on the documents ({documents}), "
        f"the rest on the question and the answer.{even}"
    )


def _legend(seen: PageView) -> str:
    """What every colour says."""
    steps = "".join(
        f"<span class=h{level}>{percent(seen.most * 2.0 ** (level - LEVELS - 1))}</span>"
        for level in range(1, LEVELS + 1)
    )
    return f"""<div class=legend>{steps}</div>
<p class=soft>The colour of a token says that it received more than this share of the attention, mean over the tokens
of the answer. {counted(seen.coloured, "coloured token")} together: {percent(seen.coloured_weight)}.</p>"""


def _listed(document: DocumentView, passage: Passage, most: float) -> str:
    text = document.heated
    start, end = text.around(passage.start, passage.end)
    if end - start > EXCERPT:
        start = max(start, int(text.begins[passage.mark]) - EXCERPT // 3)
        end = min(end, start + EXCERPT)
    is_cut = "" if text.is_line_start(end) else " class=cut"
    excerpt = Writer(text, document.index, document.marks, most).write(
        start, end, are_targets=False
    )
    where = f"{escaped(document.name)}, {lines(text, passage.start, passage.end)}"
    marks = text.places(passage.start, passage.end)
    return (
        f'<li data-marks="{document.index} {marks.start} {marks.stop}">'
        f'<a href="#t{document.index}-{passage.mark}"><b>{percent(passage.weight)}</b> {where}</a>'
        f"<pre{is_cut}>{excerpt}</pre></li>"
    )


def _documents(seen: PageView) -> str:
    marked = [_marked(document, seen) for document in seen.documents if len(document.marks)]
    others = [_unmarked(document) for document in seen.documents if not len(document.marks)]
    has_odd = any(has_odd_characters(document.heated.text) for document in seen.documents)
    sections = [
        *(["<h2>Documents</h2>"] if seen.documents else []),
        *([f"<p class=soft>{ODD_CHARACTERS}</p>"] if has_odd else []),
        *([f"<p class=soft>{STRIPS}</p>"] if marked else []),
        *marked,
        *(["<h2>Documents without marks</h2>"] if marked and others else []),
        *others,
    ]
    return "\n".join(["<section id=documents>", *sections, "</section>"])


def _marked(document: DocumentView, seen: PageView) -> str:
    """A document with its strip and its text, open."""
    writer = Writer(document.heated, document.index, document.marks, seen.most)
    parts = []
    for cut in document.stretches:
        if cut.is_shown:
            written = writer.write(cut.start, cut.end, are_targets=True)
            parts.append(f"<pre data-a={cut.start}>{written}</pre>")
        else:
            parts.append(_hidden(document, cut))
    return f"""<details class=document open>{_heading(document)}
{_strip(document)}
<div class=text>{"".join(parts)}</div></details>"""


def _unmarked(document: DocumentView) -> str:
    """A document as one closed stretch."""
    text = "".join(
        _raw(document, cut) if cut in document.kept else "<p class=soft>Left out of this page.</p>"
        for cut in document.stretches
    )
    return f'<details class="document cold">{_heading(document)}\n{text}</details>'


def _heading(document: DocumentView) -> str:
    length = f"{counted(document.tokens, 'token')}, {counted(len(document.heated.lines), 'line')}"
    share = f"{percent(document.weight)} of the attention" if document.weight else "no attention"
    return (
        f"<summary><h3>{escaped(document.name)}</h3> "
        f"<span class=soft>{share}, {length}</span></summary>"
    )


def _strip(document: DocumentView) -> str:
    """The attention from the first to the last character; its passages are links, page.js makes the rest clickable."""
    text = document.heated
    links = "".join(
        f'<a href="#t{document.index}-{passage.mark}"><rect x={_part(document, passage.mark) - 2} '
        f"y=0 width=5 height={LEVELS}></rect><title>{percent(passage.weight)}, "
        f"{lines(text, passage.start, passage.end)}</title></a>"
        for passage in sorted(document.passages, key=lambda one: -one.weight)[:LISTED]
    )
    return (
        f'<svg class=map viewBox="0 0 {BINS} {LEVELS}" preserveAspectRatio="none" role="group" '
        f'aria-label="Attention from the first to the last character" data-n={len(text.text)}>'
        f'<path d="{bars(text.strip(BINS))}"></path>{links}</svg>'
    )


def _hidden(document: DocumentView, cut: Stretch) -> str:
    """A stretch without colour: closed, or left out."""
    text, weight = document.heated, document.heated.weight(cut.start, cut.end)
    last = text.line(cut.end - 1)
    are_whole = text.is_line_start(cut.start) and text.is_line_start(cut.end)
    size = (
        counted(last - text.line(cut.start) + 1, "line")
        if are_whole
        else counted(cut.end - cut.start, "character")
    )
    share = f"with {percent(weight)} of the attention" if weight else "without attention"
    label = f"{size} {share}: {lines(text, cut.start, cut.end)}"
    if cut not in document.kept:
        return f"<p class=left-out data-a={cut.start}>{label}, left out of this page</p>"
    return (
        f"<details class=cold data-a={cut.start}><summary>{label}</summary>"
        f"{_raw(document, cut)}</details>"
    )


def _raw(document: DocumentView, cut: Stretch) -> str:
    """Text with the number of its first line; page.js numbers the others when it is opened."""
    text = document.heated
    return f"<pre>{margin(text, cut.start)}{escaped(text.text[cut.start : cut.end])}</pre>"
