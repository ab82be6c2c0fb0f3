"""The text of HTML pages: what a reader sees, with headings, lists, rows and code, whatever a page declares."""

import sys
from pathlib import Path

import pytest

from longfocus import LongFocusError
from longfocus.inference.source import open_source
from longfocus.inference.texts.html_text import html_text

PATH = Path("page.html")


def text_of(page: str) -> str:
    return html_text(page.encode(), PATH)


def test_a_page_is_read_as_light_markdown() -> None:
    page = """<!doctype html><html><head><title>Keys &amp; owls</title><style>p { color: red }</style></head><body>
<h1>The   owl
and the <i>keys</i></h1><!-- a remark --><p>It saw&nbsp;<b>nine</b>keys, 3 &lt; 4.<br>Über &#x1F989;</p>
<h2></h2><p>not closed<ul><li>one<li>two<ul><li>in two</ul></ul>
<ol><li><p>first</p></li><li></li><li>third</ol>
<table><tr><th>A<th>B<th>C<tr><td><p>1</p><td><td>3<tr><td><td>2</table>
<pre class="x"><code>def f():

    return 1 &lt; 2
</code></pre><dl><dt>term<dd>said</dl><div>one<div>two</div></div></body></html>"""
    assert text_of(page) == (
        "Keys & owls\n\n# The owl and the keys\n\nIt saw ninekeys, 3 < 4.\nÜber 🦉\n\nnot closed\n\n"
        "- one\n- two\n  - in two\n\n1. first\n\n3. third\n\nA | B | C\n1 |  | 3\n | 2\n\n"
        "```\ndef f():\n\n    return 1 < 2\n```\n\nterm\nsaid\n\none\ntwo\n"
    )


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.xhtml", "a.HTML"])
def test_a_page_is_known_by_its_ending(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<p>one</p><p>two")
    source = open_source(tmp_path / name)
    assert "".join(source.texts()) == "one\n\ntwo\n"
    assert source.parts() == ()


def test_blanks_between_elements_count_once_and_only_where_they_are() -> None:
    assert text_of("<b>a</b> <i>b</i><u>c</u>\n \n<b> d</b>") == "a bc d\n"


def test_line_breaks_are_lines_and_two_are_a_paragraph() -> None:
    assert (
        text_of("<br>a<br>b<br>\n<br>c<br><br><br>d<p>e<br></p>f") == "a\nb\n\nc\n\nd\n\ne\n\nf\n"
    )


def test_scripts_of_any_size_are_no_text() -> None:
    script = "<script>" + "if (a < b) { '<p>no</p>' }\n" * 50_000 + "</script>"
    others = (
        "<template>no</template><noscript>no</noscript><svg><text>no</text></svg><style>no</style>"
    )
    assert text_of(f"<p>before {script}{others}after") == "before after\n"


def test_tables_inside_tables_are_rows() -> None:
    inner = "<table><tr><td>a<td>b</tr><tr><td>c<td>d</tr></table>"
    assert text_of(f"<table><tr><td>1<td>{inner}<td>2</tr><tr><td>3</table>end") == (
        "1\na | b\nc | d\n\n2\n3\n\nend\n"
    )


def test_code_keeps_its_lines_and_blanks() -> None:
    assert text_of("a<pre>  x\ty<br>z<div>one</div><div>two</div>\n\n</pre>b") == (
        "a\n\n```\n  x\ty\nz\none\ntwo\n```\n\nb\n"
    )
    assert text_of("<pre> \n </pre>a<pre>\r\n</pre>") == "a\n"


@pytest.mark.parametrize("tag", ["div", "b", "ul><li", "table><tr><td", "pre"])
def test_a_page_may_be_nested_as_deep_as_it_likes(tag: str) -> None:
    found = text_of(f"<{tag}>" * 3000 + "deep")
    assert found.replace("```", "").strip("-\n ") == "deep"


ENCODED = {
    "UTF-8 without a word": "<p>Über 🦉".encode(),
    "UTF-8 that says Latin-1": '<meta charset="iso-8859-1"><p>Über 🦉'.encode(),
    "UTF-8 with a mark": "<p>Über 🦉".encode("utf-8-sig"),
    "UTF-16": "<p>Über 🦉".encode("utf-16"),
    "a declared code page": '<meta charset="utf-16"><p>Über 🦉'.encode(),
    "an XML declaration": '<?xml version="1.0" encoding="gb18030"?><p>Über 🦉'.encode("gb18030"),
    "a meta tag": '<meta http-equiv=x content="text/html; charset=GB18030"><p>Über 🦉'.encode(
        "gb18030"
    ),
}


@pytest.mark.parametrize("name", ENCODED)
def test_characters_are_right_whatever_is_declared(name: str) -> None:
    assert html_text(ENCODED[name], PATH) == "Über 🦉\n"


@pytest.mark.parametrize(
    "declared", ["", "utf-8", "iso-8859-1", "ascii", "hex", "nonsense", "undefined", "utf-16"]
)
def test_old_western_pages_are_right_even_with_a_wrong_declaration(declared: str) -> None:
    page = f'<meta charset="{declared}"><p>“Über” 5 €'.encode("windows-1252")
    assert html_text(page, PATH) == "“Über” 5 €\n"


def test_one_bad_byte_does_not_change_the_other_characters() -> None:
    page = '<meta charset="utf-8"><p>Über 🦉 '.encode() + b"\xff."
    assert html_text(page, PATH) == "Über 🦉 \ufffd.\n"


def test_entities_that_are_no_characters_are_replaced() -> None:
    assert text_of("a&#0;b&#xD800;c&unknown;d&amp;amp;") == "a\ufffdb\ufffdc&unknown;d&amp;\n"


@pytest.mark.parametrize("page", [b"", b" \n", b"<html><script>x</script><img src=a></html>"])
def test_a_page_without_text_is_refused(page: bytes) -> None:
    with pytest.raises(LongFocusError, match=r"page\.html is an HTML page without text\. "):
        html_text(page, PATH)


def test_a_picture_that_is_called_a_page_is_refused() -> None:
    with pytest.raises(LongFocusError, match="looks like a binary file"):
        html_text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", PATH)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(LongFocusError, match=r"needs the package selectolax, .*longfocus\[read\]"):
        text_of("<p>x")
