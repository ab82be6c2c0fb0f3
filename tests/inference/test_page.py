"""An answer's page, read back with a parser of HTML: nothing is lost, nothing becomes markup, links lead somewhere."""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from pages import HOSTILE, TEXTS, document, hostile_page, marks, page, parsed, section, texts, warm

from longfocus.inference.page import view as page_view
from longfocus.inference.page.heat import LEVELS
from longfocus.inference.page.html import percent
from longfocus.inference.page.render import (
    BINS,
    EXCERPT,
    AnswerToken,
    Looked,
    PageDocument,
    render_page,
    write_page,
)


@pytest.mark.parametrize("name", TEXTS)
def test_shown_and_closed_text_together_are_the_document(name: str) -> None:
    text = TEXTS[name]
    root = parsed(page(warm(text), document(text, name="quiet")))
    assert texts(root) == [text, text]
    shown = [one for one in section(root, "documents").all("pre") if "data-a" in one.attributes]
    assert bool(shown) == bool(text)


@pytest.mark.parametrize("name", TEXTS)
def test_marks_have_the_text_and_the_share_of_the_tokens_that_are_hot(name: str) -> None:
    given = warm(TEXTS[name])
    hot = np.flatnonzero(given.heat)
    found = [
        (one.text, one.attributes["title"].split(": ")[1]) for one in marks(parsed(page(given)))
    ]
    assert found == [
        (given.text[given.starts[t] : given.ends[t]], f"{percent(given.heat[t])} of the attention")
        for t in hot
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_the_margin_counts_the_lines_that_are_shown(name: str) -> None:
    text, place = TEXTS[name], 0
    for pre in section(parsed(page(warm(text))), "documents").all("pre"):
        numbers = [int(one.attributes["data-n"]) for one in pre.all("i")]
        goes_on = ["class" in one.attributes for one in pre.all("i")]
        assert goes_on == [place > 0 and text[place - 1] != "\n"] + [False] * (len(numbers) - 1)
        first = 1 + text.count("\n", 0, place)
        place += len(pre.text)
        last = 1 + text.count("\n", 0, place - 1)
        is_shown = "data-a" in pre.attributes
        assert numbers == (list(range(first, last + 1)) if is_shown else [first])


def test_every_link_leads_to_an_element_and_every_id_is_one_element() -> None:
    for given in (hostile_page(), page(), page(warm(TEXTS["prose"]), warm(TEXTS["a long line"]))):
        root = parsed(given)
        ids = [one.attributes["id"] for one in root.all("") if "id" in one.attributes]
        assert len(set(ids)) == len(ids)
        links = [one.attributes["href"] for one in root.all("a")]
        assert {link[0] for link in links} == {"#"}
        assert {link[1:] for link in links} <= set(ids)


def test_nothing_that_is_given_becomes_markup() -> None:
    given, written = hostile_page(), render_page(hostile_page())
    root = parsed(given)
    body = re.sub(r"<(style|script)>.*?</\1>", "", written, flags=re.S)
    assert not [one for one in HOSTILE if "<" in one and one in body]
    tags = {one.tag for one in root.all("")}
    assert not tags & {"img", "iframe", "link", "base", "form"}
    assert len(list(root.all("script"))) == len(list(root.all("style"))) == 1
    assert not [n for one in root.all("") for n in one.attributes if n.startswith("on")]
    assert next(root.all("title")).text == next(root.all("h1")).text == given.title
    assert [one.text for one in root.all("h3")] == HOSTILE
    assert "".join(one.text for one in section(root, "answer").all("a")) == "".join(HOSTILE)
    assert next(root.all("p", **{"class": "note"})).text == given.note


def test_a_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else() -> None:
    root = parsed(hostile_page())
    policy = next(root.all("meta", **{"http-equiv": "Content-Security-Policy"})).attributes
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    own = {
        f"{tag}-src": hashlib.sha256(next(root.all(tag)).text.encode()).digest()
        for tag in ("style", "script")
    }
    hashes = {name: f"'sha256-{base64.b64encode(one).decode()}'" for name, one in own.items()}
    none = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert rules == {**hashes, **none}
    assert not [one for one in root.all("") if {"style", "src", "srcset"} & set(one.attributes)]


def test_what_html_cannot_hold_is_shown_by_a_sign_and_what_turns_direction_is_enclosed() -> None:
    text = "nul \x00 bell \x07 delete \x7f half \ud83e turned \u202eabc\u2066\n"
    root = parsed(page(document(text, {0: 0.1}, name="a\x00\u202e")))
    assert texts(root) == [
        "nul \u2400 bell \u2407 delete \u2421 half \ufffd turned \u202eabc\u2066\n"
    ]
    turned = [(one.text, one.attributes["data-u"]) for one in root.all("bdi")]
    assert turned[-2:] == [("\u202e", "U+202E"), ("\u2066", "U+2066")]
    assert "Control characters are shown" in section(root, "documents").text
    assert "Control characters" not in parsed(page(warm(TEXTS["hostile"]))).text


def test_a_token_of_the_answer_names_its_places_with_their_weights_heaviest_first() -> None:
    text = "".join(f"{line:04d} is a line\n" for line in range(2000))
    looked = (
        Looked(0, 300, 303, 0.125),
        Looked(1, 9000, 9003, 0.25),
        # twice, as by two layers, and then its neighbour: one place
        Looked(1, 600, 603, 0.25),
        Looked(1, 600, 603, 0.125),
        Looked(1, 603, 606, 0.125),
    )
    tokens = (AnswerToken("It", looked), AnswerToken(" is", ()))
    root = parsed(page(document(text, {3: 0.1}), document(text), tokens=tokens))
    (link,) = section(root, "answer").all("a")
    assert (link.text, link.attributes["href"]) == ("It", "#t1-200")
    parts = [9000 * BINS // len(text), 600 * BINS // len(text), 300 * BINS // len(text)]
    assert link.attributes["data-at"].split() == [
        f"t1-200,t1-201=50%@{parts[1]}",
        f"t1-3000=25%@{parts[0]}",
        f"t0-100=12.5%@{parts[2]}",
    ]
    found = {one.attributes["id"]: (one.text, one.attributes["class"]) for one in marks(root)}
    assert found["t1-200"] == (text[600:603], "h0")
    assert found["t0-3"] == (text[9:12], f"h{LEVELS}")
    assert section(root, "answer").text.count("It is") == 1


def test_neighbours_are_one_passage_and_passages_are_ranked_by_their_attention() -> None:
    text = "".join(f"{line:04d} is a line\n" for line in range(1000))
    hot = {100: 0.1, 106: 0.2, 2000: 0.25, 4000: 0.01}
    given = document(text, {**hot, 101: 0.0001}, name="tale")
    places = section(parsed(page(given)), "places")
    items = list(places.all("li"))
    assert [next(item.all("a")).text for item in items] == [
        "30% tale, lines 21 to 22",
        "25% tale, line 401",
        "1% tale, line 801",
    ]
    assert next(items[1].all("pre")).text == "".join(text.splitlines(keepends=True)[398:403])
    assert "56% of the attention fell on the documents" in places.text


def test_a_long_passage_is_cut_around_its_hottest_token_to_which_it_leads() -> None:
    # the first token lies across the cut
    hot = dict.fromkeys((4986, 5040, 5090, 5180, 5240), 0.1)
    given = document("word " * 9000, {**hot, 5120: 0.3})
    (item,) = section(parsed(page(given)), "places").all("li")
    (excerpt,) = item.all("pre")
    start = 5120 * 3 - EXCERPT // 3
    assert excerpt.text == given.text[start : start + EXCERPT]
    assert excerpt.attributes == {"class": "cut"}
    assert next(item.all("a")).attributes["href"] == "#t0-5120"
    colours = [one.attributes["class"] for one in excerpt.all("mark")]
    assert colours == ["h6", "h6", "h6", "h7", "h6", "h6"]


def test_a_token_shows_its_heaviest_places_and_no_more_of_a_long_one_than_its_beginning() -> None:
    looked = [Looked(0, 60 * n, 60 * n + 3, 0.01 * n) for n in range(12)]
    tokens = (AnswerToken("a", tuple(looked)), AnswerToken("b", (Looked(0, 900, 1800, 0.5),)))
    root = parsed(page(document("line\n" * 400), tokens=tokens))
    at = [link.attributes["data-at"].split() for link in section(root, "answer").all("a")]
    heaviest = list(range(11, 11 - page_view.LOOKED_PER_TOKEN, -1))
    assert [one.split("=")[0] for one in at[0]] == [f"t0-{20 * n}" for n in heaviest]
    beginning = range(300, 300 + page_view.PLACES_PER_LOOK)
    assert at[1] == [",".join(f"t0-{place}" for place in beginning) + f"=50%@{900 * BINS // 2000}"]


def test_the_strip_knows_where_every_stretch_begins_and_how_long_the_document_is() -> None:
    text = "line\n" * 3000
    root = section(parsed(page(document(text, {0: 0.5, 2500: 0.1, 4000: 0.2}))), "documents")
    places = [one for one in root.all("") if "data-a" in one.attributes]
    lengths = [sum(len(pre.text) for pre in one.all("pre")) or len(one.text) for one in places]
    starts = [0, *np.cumsum(lengths)]
    assert [int(one.attributes["data-a"]) for one in places] == starts[:-1]
    (strip,) = root.all("svg")
    assert int(strip.attributes["data-n"]) == starts[-1] == len(text)
    links = [link.attributes["href"] for link in strip.all("a")]
    middles = [int(next(link.all("rect")).attributes["x"]) + 2 for link in strip.all("a")]
    assert links == ["#t0-0", "#t0-4000", "#t0-2500"]
    assert middles == [0, 12000 * BINS // len(text), 7500 * BINS // len(text)]


def test_a_closed_stretch_says_how_much_it_hides() -> None:
    root = parsed(page(document("line\n" * 3000, {0: 0.5, 1000: 0.001, 4000: 0.25})))
    assert [one.text for one in section(root, "documents").all("summary")][1:] == [
        "2,395 lines with 0.1% of the attention: lines 4 to 2,398",
        "597 lines without attention: lines 2,404 to 3,000",
    ]
    assert "2 coloured tokens together: 75%." in section(root, "places").text


def test_text_beyond_the_limit_is_left_out_and_said_but_never_a_place_with_attention() -> None:
    text = "line\n" * 3000
    given = page(document(text, {3000: 0.5}), document(text, name="quiet"))
    full, shown = parsed(given), "line\n" * 5
    assert texts(parsed(given, max_text_characters=2 * len(text))) == texts(full) == [text, text]
    # the stretches before and after the passage, then the other document
    some = parsed(given, max_text_characters=len(text) + 30)
    assert texts(some) == [text, ""]
    assert section(some, "documents").text.endswith("Left out of this page.\n")
    least = parsed(given, max_text_characters=0)
    assert texts(least) == [shown, ""]
    assert [one.text for one in least.all("p", **{"class": "left-out"})] == [
        "1,798 lines without attention: lines 1 to 1,798, left out of this page",
        "1,197 lines without attention: lines 1,804 to 3,000, left out of this page",
    ]


def test_documents_with_marks_come_first_by_attention_and_only_they_are_open() -> None:
    shares = [0.0, 0.1, 0.0, 0.3, 0.0002, 0.2]
    found = [document("abc def\n", {1: share}, f"d{n}") for n, share in enumerate(shares)]
    # more attention than any other, but nowhere enough for a colour
    even = document("abc" * 1000, dict.fromkeys(range(1000), 0.0004), "even")
    opened = list(section(parsed(page(*found, even)), "documents").all("details"))
    assert opened[-1].text.startswith("d2 no attention, 3 tokens, 1 line\n")
    listed = [(next(one.all("h3")).text, "open" in one.attributes) for one in opened]
    assert listed == [(name, True) for name in ("d3", "d5", "d1")] + [
        (name, False) for name in ("even", "d4", "d0", "d2")
    ]


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ((), "There are no documents."),
        ((document("abc"),), "No attention fell on the documents (1 document of 1 memory token"),
        ((document(""),), "No attention fell on the documents (1 document of 0 memory tokens"),
        ((document("abc" * 5000, dict.fromkeys(range(5000), 2e-4)),), "no place stands out."),
    ],
)
def test_nothing_to_show_is_a_sentence(documents: tuple[PageDocument, ...], said: str) -> None:
    root = parsed(page(*documents))
    assert said in section(root, "places").text
    assert not [*root.all("li"), *root.all("mark"), *root.all("svg")]
    assert "The answer is empty." in section(root, "answer").text


def test_a_file_holds_the_page_and_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("an older page")
    write_page(path, hostile_page())
    assert path.read_bytes() == render_page(hostile_page()).encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_million_tokens_take_less_than_a_megabyte_beside_their_text() -> None:
    random = np.random.default_rng(0)
    text = "".join(f"    line {line} = value[{line % 977}]  # why\n" for line in range(116_000))
    starts = np.arange(0, len(text), 4)
    assert len(starts) > 1_000_000
    # many places alone, which is the dearest, over attention that is nowhere zero
    heat = random.random(len(starts)) * 1e-8
    heat[random.integers(0, len(starts), 3000)] = 1e-4 + random.random(3000) * 1e-4
    looks = random.integers(0, len(starts), (500, 8)) * 4
    tokens = tuple(
        AnswerToken(" it", tuple(Looked(0, int(one), int(one) + 4, 0.01) for one in row))
        for row in looks
    )
    given = PageDocument("big", text, starts, np.minimum(starts + 4, len(text)), heat)
    root = render_page(page(given, tokens=tokens))
    assert root.count("<mark id=") > page_view.COLOURED
    assert len(root.encode()) <= len(text.encode()) + 1_000_000
