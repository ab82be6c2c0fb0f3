"""The training text: documents from packages, no standard library, the same every time, resumable."""

import json
from pathlib import Path

import numpy as np
import pytest

from longfocus.errors import LongFocusError
from longfocus.training.corpus import (
    corpus_source,
    find_documents,
    open_corpus,
    tokenise_corpus,
    without_licence,
)
from longfocus.training.stdlib_leak import SourceIndex, leak_report
from longfocus.training.tokenizer import train_tokenizer

LONG = "    value_of_line_{i} = compute_the_value(first_argument={i}, second_argument={i})\n"
STANDARD = "import os\n" + "".join(LONG.format(i=i) for i in range(100))


def source(start: int, lines: int = 80) -> str:
    return "# licence\n# more\n\nimport os\n" + "".join(
        LONG.format(i=i) for i in range(start, start + lines)
    )


@pytest.fixture(scope="module")
def index() -> SourceIndex:
    return SourceIndex.of_texts([STANDARD])


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    root = tmp_path / "site-packages"
    files = {
        "alpha/__init__.py": source(1000),
        "alpha/b.py": source(2000),
        "alpha/sub/deep/deeper/deepest.py": source(3000),
        "alpha/copied.py": STANDARD,
        "alpha/mostly_copied.py": STANDARD + source(4000, 20),
        "beta/__init__.py": source(5000),
        "setuptools/__init__.py": source(6000),
        "beta/_vendor/typing_extensions/x.py": source(7000),
        "beta-1.0.dist-info/x.py": source(8000),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_documents_are_packages_and_sub_packages_without_copies(
    packages: Path, index: SourceIndex
) -> None:
    documents = find_documents(packages, index=index)
    found = {document.name: [path.name for path in document.files] for document in documents}
    assert found == {
        "alpha": ["__init__.py", "b.py"],
        "alpha.sub.deep": ["deepest.py"],
        "beta": ["__init__.py"],
    }


def test_a_package_is_capped(packages: Path, index: SourceIndex) -> None:
    cap = len(source(3000)) + 10
    names = [
        document.name for document in find_documents(packages, index=index, max_package_bytes=cap)
    ]
    assert names == ["alpha.sub.deep", "beta"]


def test_no_packages_is_an_error(tmp_path: Path, index: SourceIndex) -> None:
    with pytest.raises(LongFocusError, match="no training text"):
        find_documents(tmp_path, index=index)


def test_leading_licence_comments_are_cut() -> None:
    assert without_licence("#!/bin/python\n# licence\n\nimport os\n# kept\n") == "import os\n# kept"
    assert without_licence("# only comments\n") == ""


def test_copies_are_recognised_whatever_their_blank_space(index: SourceIndex) -> None:
    assert index.is_copy(STANDARD.replace("\n", "  \n\n"))
    assert index.is_copy(STANDARD + source(4000, 90))
    assert not index.is_copy(STANDARD + source(4000, 110))
    assert not index.is_copy("import os\n")


def test_leak_report_counts_copies_and_known_lines(index: SourceIndex) -> None:
    clean = leak_report([source(1000), source(2000)], index)
    assert (clean.files, clean.copied_files, clean.known_line_share) == (2, 0, 0.0)
    leaking = leak_report([source(1000), STANDARD, source(50, 200)], index)
    assert (leaking.copied_files, leaking.known_line_share) == (1, 1.0)


def test_this_package_is_never_trained_on_the_standard_library() -> None:
    import email.message

    index = SourceIndex.of_files([Path(email.message.__file__)])
    assert index.is_copy(Path(email.message.__file__).read_text())


def test_the_source_changes_with_the_content(packages: Path, index: SourceIndex) -> None:
    before = corpus_source(find_documents(packages, index=index))
    assert before == corpus_source(find_documents(packages, index=index))
    (packages / "beta/__init__.py").write_text(source(5001))
    after = corpus_source(find_documents(packages, index=index))
    assert (before.packages, before.documents) == (after.packages, after.documents)
    assert before.sha256 != after.sha256


def test_resumed_tokenising_equals_uninterrupted(
    packages: Path, index: SourceIndex, tmp_path: Path
) -> None:
    documents = find_documents(packages, index=index)
    tokenizer = train_tokenizer((document.text() for document in documents), 400)
    whole = tokenise_corpus(documents, tokenizer, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_after_one(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        tokenise_corpus(documents, tokenizer, tmp_path / "resumed", progress=stop_after_one)
    with (tmp_path / "resumed" / "tokens.bin").open("ab") as torn:
        torn.write(b"half a document")
    with (tmp_path / "resumed" / "documents.jsonl").open("a") as torn_journal:
        torn_journal.write('["alpha.s')
    resumed = tokenise_corpus(documents, tokenizer, tmp_path / "resumed")
    assert resumed.names == whole.names == ("alpha", "alpha.sub.deep", "beta")
    assert np.array_equal(resumed.tokens, whole.tokens)
    assert np.array_equal(open_corpus(tmp_path / "resumed").starts, whole.starts)
    assert tokenizer.decode(whole.document(2)) == documents[2].text()


def test_other_packages_cannot_continue_a_corpus(
    packages: Path, index: SourceIndex, tmp_path: Path
) -> None:
    documents = find_documents(packages, index=index)
    tokenizer = train_tokenizer((document.text() for document in documents), 400)
    tokenise_corpus(documents, tokenizer, tmp_path / "corpus")
    with pytest.raises(LongFocusError, match="another corpus"):
        tokenise_corpus(documents[1:], tokenizer, tmp_path / "corpus")


def test_tokenizer_keeps_lines_and_digits_apart_and_knows_offsets(
    packages: Path, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(iter([source(0, 300)]), 400)
    one, two = "\n    return 48213 + x", "\n\tdef f():  # a"
    joined = tokenizer(one + two, return_offsets_mapping=True)
    assert joined["input_ids"] == tokenizer(one)["input_ids"] + tokenizer(two)["input_ids"]
    pieces = [(one + two)[start:end] for start, end in joined["offset_mapping"]]
    assert [piece for piece in pieces if piece.isdigit()] == list("48213")
    assert tokenizer.decode(joined["input_ids"]) == one + two == "".join(pieces)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    assert (
        AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(one)["input_ids"]
        == tokenizer(one)["input_ids"]
    )


def test_the_shipped_models_name_their_source() -> None:
    folder = Path(__file__).parents[2] / "src" / "longfocus" / "models"
    for name in ("code", "code_control"):
        summary = json.loads((folder / name / "training.json").read_text())
        assert summary["control"] is (name == "code_control")
        assert len(summary["data"]["sha256"]) == 64
        assert "torch" in summary["data"]["packages"]
