"""Recall documents: what comes again has been stated above, and nothing is stated twice."""

import re
from pathlib import Path

import pytest

from longfocus.training.recall_documents import (
    RecallSettings,
    recall_documents,
    write_recall_documents,
)

WORDS = [f"{a}{b}{a}e" for a in "bcdfg" for b in "aeiou"]
CODES = [
    "".join(f"    value_{i} = compute({i})\n" for i in range(first, first + 300))
    for first in (0, 500)
]
SETTINGS = RecallSettings(documents=6, characters=4000, pools=3, seed=1)
KEY = re.compile(r"# The pass key of '(\w+)' is (\d{5})\.")
RECORD = re.compile(r'(assert )?(\w+\.\w+) (==?) "(\w+)"')


def facts(text: str) -> list[tuple[str, str, bool | None]]:
    """What is said of what, line by line, and whether it is said as one that comes again."""
    found = []
    for line in text.splitlines():
        if key := KEY.fullmatch(line):
            found.append((key[1], key[2], None))
        elif record := RECORD.fullmatch(line):
            assert (record[1] is None) == (record[3] == "=")
            found.append((record[2], record[4], record[1] is not None))
    return found


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(recall_documents(CODES, WORDS, SETTINGS))


def test_what_comes_again_is_what_was_stated_above(documents: list[str]) -> None:
    for text in documents:
        known: dict[str, str] = {}
        again = 0
        for about, value, is_again in facts(text):
            assert is_again is None or is_again == (about in known)
            again += about in known
            assert known.setdefault(about, value) == value
        assert again > len(known) / 2
        assert len(known) > 10


def test_documents_with_code_hold_it_whole_and_others_hold_nothing_else(
    documents: list[str],
) -> None:
    for text in documents[::2]:
        code = "".join(
            line + "\n"
            for line in text.splitlines()
            if not KEY.match(line) and not RECORD.match(line)
        )
        assert any(code.rstrip("\n") in whole for whole in CODES)
    for text in documents[1::2]:
        assert len(facts(text)) == len(text.splitlines())
        assert len(text) >= SETTINGS.characters


def test_a_line_comes_again_from_far_and_near(documents: list[str]) -> None:
    lines = documents[1].splitlines()
    seen: dict[str, int] = {}
    distances = []
    for place, (about, _, _) in enumerate(facts(documents[1])):
        if about in seen:
            distances.append(place - seen[about])
        seen[about] = place
    assert min(distances) <= 2
    assert len(lines) / 2 < max(distances) <= len(lines)


def test_the_same_seed_gives_the_same_documents_and_another_one_others(
    documents: list[str],
) -> None:
    assert list(recall_documents(CODES, WORDS, SETTINGS)) == documents
    other = RecallSettings(documents=6, characters=4000, pools=3, seed=2)
    assert not set(recall_documents(CODES, WORDS, other)) & set(documents)


def test_the_folder_appears_when_all_are_written(tmp_path: Path, documents: list[str]) -> None:
    folder = tmp_path / "recall"
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        assert not folder.exists()
        seen.append((done, total))

    write_recall_documents(folder, CODES, WORDS, SETTINGS, progress)
    assert seen == [(number, 6) for number in range(1, 7)]
    assert [path.read_text() for path in sorted(folder.iterdir())] == documents
