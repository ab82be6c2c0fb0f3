"""The numbers behind an answer's page, each beside the plain way to compute it."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from longfocus.errors import LongFocusError
from longfocus.inference.page import heat as page_heat
from longfocus.inference.page.heat import (
    LEVELS,
    HeatedText,
    heated,
    hottest,
    levels,
    passages,
    stretches,
)
from longfocus.inference.page.html import bars, percent
from longfocus.inference.page.render import AnswerPage, AnswerToken, Looked, PageDocument

LENGTH = 400


def tokens(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens that overlap, repeat, are empty, and leave gaps, in any order."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, LENGTH - 5, 120)
    return starts, starts + random.integers(0, 5, 120), random.random(120)


def text(seed: int) -> HeatedText:
    letters = np.random.default_rng(seed).choice(list("ab\n"), LENGTH - 1)
    return heated("".join([*letters, "\n"]), *tokens(seed))


@pytest.mark.parametrize("seed", range(20))
def test_every_character_belongs_to_the_first_token_that_covers_it(seed: int) -> None:
    owners = np.full(LENGTH, -1)
    starts, ends, heat = tokens(seed)
    expected: list[list[float]] = []
    covered = 0
    for start, end, share in sorted(zip(starts, ends, heat, strict=True), key=lambda t: t[:2]):
        if max(start, covered) < end:
            owners[max(start, covered) : end] = len(expected)
            expected.append([])
            covered = end
        # tokens before the first place count to it
        (expected or [[]])[-1].append(share)
    found = text(seed)
    for place, (begin, end) in enumerate(zip(found.begins, found.ends, strict=True)):
        assert (np.flatnonzero(owners == place) == np.arange(begin, end)).all()
    np.testing.assert_allclose(found.heat.sum(), heat.sum())
    np.testing.assert_allclose(found.heat[1:], [sum(one) for one in expected[1:]])


def test_the_bytes_of_an_emoji_count_together() -> None:
    starts, ends = np.array([0, 1, 1, 1, 2]), np.array([2, 2, 2, 2, 3])
    found = heated("a\U0001f989b", starts, ends, np.array([1.0, 2, 4, 8, 16]))
    assert (found.begins.tolist(), found.ends.tolist()) == ([0, 2], [2, 3])
    assert found.heat.tolist() == [15, 16]


@pytest.mark.parametrize("seed", range(5))
def test_lines_and_sums_are_those_of_the_text(seed: int) -> None:
    found = text(seed)
    lines = found.text.splitlines(keepends=True)
    assert found.lines.tolist() == [0, *np.cumsum([len(line) for line in lines])][:-1]
    for start in range(0, LENGTH, 7):
        assert found.line(start) == 1 + found.text.count("\n", 0, start)
        for end in range(start, LENGTH, 31):
            inside = (found.begins >= start) & (found.begins < end)
            assert found.weight(start, end) == pytest.approx(found.heat[inside].sum(), abs=1e-12)
            covering = (found.ends > start) & (found.begins < max(end, start + 1))
            assert list(found.places(start, end)) == np.flatnonzero(covering).tolist()


def test_a_level_is_one_less_for_every_halving() -> None:
    most = 0.3
    heat = np.array([0, most / 1e6, *(most / 2**n for n in range(LEVELS + 2)), most * 0.51])
    assert levels(heat, most).tolist() == [0, 0, *range(LEVELS, 0, -1), 0, 0, LEVELS]
    assert levels(np.zeros(3), 0.0).tolist() == [0, 0, 0]


def test_the_hottest_are_the_hottest_of_all_documents_and_equals_stay_together() -> None:
    one, other = np.array([5.0, 1, 3, 0]), np.array([3.0, 4, 0.001])
    documents = [
        HeatedText("x" * 9, np.arange(len(heat)), np.arange(len(heat)) + 1, heat)
        for heat in (one, other)
    ]

    def found(limit: int) -> list[list[int]]:
        return [marks.tolist() for marks in hottest(documents, limit)]

    assert found(9) == found(5) == [[0, 1, 2], [0, 1]]
    assert found(4) == [[0, 2], [0, 1]]
    # the third and fourth are as hot as each other
    assert found(3) == found(2) == [[0], [1]]
    assert hottest([], 3) == []


def test_marks_far_apart_in_one_line_are_two_passages() -> None:
    found = heated("x" * 900, np.arange(900), np.arange(1, 901), np.ones(900))
    far = 1 + page_heat.CHARACTERS_WITHIN
    ends = [(one.start, one.end) for one in passages(found, np.array([5, 5 + far, 6 + 2 * far]))]
    assert ends == [(5, 6 + far), (6 + 2 * far, 7 + 2 * far)]


@pytest.mark.parametrize("seed", range(20))
def test_stretches_are_the_whole_text_and_show_every_mark_with_its_lines(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = heated(
        "word of\n" * 4000, np.arange(0, 32000, 4), np.arange(4, 32001, 4), np.ones(8000)
    )
    marks = np.unique(random.integers(0, 8000, random.integers(0, 30)))
    cuts = list(stretches(found, passages(found, marks)))
    assert [cut.start for cut in cuts] + [32000] == [0] + [cut.end for cut in cuts]
    assert all(one.is_shown != other.is_shown for one, other in pairwise(cuts))
    shown = {n for cut in cuts if cut.is_shown for n in range(cut.start // 8, cut.end // 8)}
    around = range(-page_heat.LINES_AROUND, page_heat.LINES_AROUND + 1)
    wanted = {int(mark) // 2 + n for mark in marks for n in around} & set(range(4000))
    assert wanted <= shown
    assert len(shown) <= len(wanted) + page_heat.HIDDEN_LINES * (len(marks) + 1)


def test_a_strip_holds_all_attention_at_its_place() -> None:
    found = text(3)
    bins = found.strip(8)
    assert bins.sum() == pytest.approx(found.heat.sum())
    assert bins.tolist() == pytest.approx([found.weight(n * 50, n * 50 + 50) for n in range(8)])


def test_a_bar_stands_on_the_ground_and_is_as_high_as_its_level() -> None:
    assert bars(np.array([0, 1, 0, 8, 2.0])) == "M1 3h1v4h-1zM3 0h1v7h-1zM4 2h1v5h-1z"


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.99996, "100%"),
        (0.1234, "12.3%"),
        (0.1, "10%"),
        (0.00123, "0.123%"),
        (1.236e-7, "0.0000124%"),
        (9e-9, "\u22480%"),
    ],
)
def test_a_share_is_written_with_three_digits(share: float, written: str) -> None:
    assert percent(share) == written


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (([0, 1], [1], [0.1]), r"needs a start, an end and a heat. Got shapes \(2,\), \(1,\)"),
        (([0], [4], [0.1]), "outside the text of 3 characters"),
        (([2], [1], [0.1]), "ends before it starts"),
        (([-1], [1], [0.1]), "outside the text"),
        (([0], [1], [-0.1]), "negative"),
        (([0], [1], [float("nan")]), "not finite"),
    ],
)
def test_tokens_that_cannot_be_placed_are_refused(given: tuple[list, ...], reason: str) -> None:
    with pytest.raises(LongFocusError, match=f"'tale'.*{reason}"):
        PageDocument("tale", "abc", *map(np.array, given))


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (Looked(-1, 0, 1, 0.1), "looked at document -1, but the page has 1"),
        (Looked(1, 0, 1, 0.1), "looked at document 1, but the page has 1"),
        (Looked(0, 0, 4, 0.1), "characters 0 to 4 of 'tale', which has 3"),
        (Looked(0, 2, 1, 0.1), "characters 2 to 1"),
        (Looked(0, 0, 1, -0.1), "weight -0.1"),
        (Looked(0, 0, 1, float("nan")), "weight nan"),
    ],
)
def test_a_look_that_cannot_be_placed_is_refused(look: Looked, reason: str) -> None:
    found = PageDocument("tale", "abc", *map(np.array, ([0], [1], [0.1])))
    with pytest.raises(LongFocusError, match=reason):
        AnswerPage("", "", (AnswerToken("x", (look,)),), (found,))


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_text_can_be_read_on_every_colour_of_both_themes_and_colours_grow_in_one_direction() -> (
    None
):
    style = Path(page_heat.__file__).with_name("page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", one)) for one in style.split("@media")[:2])
    for theme, sign in ((light, -1), (dark, 1)):
        bright = {name: luminance(colour) for name, colour in theme.items()}
        scale = [bright["paper"], *(bright[f"h{n}"] for n in range(1, LEVELS + 1))]
        assert scale == sorted(scale, reverse=sign < 0)
        pairs = [("ink", f"h{n}") for n in range(1, LEVELS + 1)]
        pairs += [(one, on) for one in ("ink", "soft", "link") for on in ("paper", "well")]
        for one, on in pairs:
            low, high = sorted((bright[one], bright[on]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (one, on)
