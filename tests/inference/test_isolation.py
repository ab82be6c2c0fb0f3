"""Documents are islands: none changes another, none is there in part, and one that left has left no bit behind."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from long import mostly_long
from longfocus import DocumentMemory, FocusCache, Library, LongFocusError, Session
from longfocus.inference.source import together
from longfocus.memory import Part
from small import TEXT, WINDOW, byte_tokenizer, ids_of, session, small_model

QUESTIONS = ["Who?", "What is the owl's 42nd key, and where did it see it?"]
"""One that fits its window, and one that does not."""
TEXTS = {"owl": TEXT, "backwards": TEXT[::-1], "short": "abc", "middle": TEXT[20:90]}
EXACT = {"search": "exact", "top_k": 5}
every_memory = pytest.mark.parametrize("layers", mostly_long([(1,), (0, 2)], (0, 2)), ids=str)
every_combination = pytest.mark.parametrize(
    ("layers", "search"), [((1,), {}), ((0, 2), EXACT)], ids=["one, dense", "two, exact"]
)


def logits(
    documents: Sequence[DocumentMemory], layers: tuple[int, ...] = (1,), **search: Any
) -> Tensor:
    """Of every token of all questions."""
    model = small_model(layers, **search)
    with torch.no_grad():
        given = [(ids_of(text)[None], FocusCache(model, documents)) for text in QUESTIONS]
        return torch.cat([model(ids, past_key_values=cache).logits for ids, cache in given], 1)


def told(layers: tuple[int, ...] = (1,), names: Sequence[str] = (), **search: Any) -> Session:
    """A session that has read some of the texts."""
    made = session(layers, **search)
    for name in names:
        made.read(TEXTS[name], name)
    return made


def assert_same_answers(one: Session, other: Session) -> None:
    """The same logits bit for bit, the same words, and the same places where the model looked."""
    search = {"search": one.model.focus.config.search, "top_k": one.model.focus.config.top_k}
    layers = one.model.focus.config.memory_layers
    assert logits(one.documents, layers, **search).equal(logits(other.documents, layers, **search))
    answers = [asking.ask(QUESTIONS[0], max_new_tokens=4) for asking in (one, other)]
    assert answers[0] == answers[1]
    assert answers[0].looked == answers[1].looked


@every_combination
def test_forgetting_a_document_is_never_having_read_it(
    layers: tuple[int, ...], search: dict[str, Any]
) -> None:
    made = told(layers, ["backwards", "owl", "short"], **search)
    with_owl = logits(made.documents, layers, **search)
    made.ask(QUESTIONS[0], max_new_tokens=3)
    made.forget("owl")
    assert_same_answers(made, told(layers, ["backwards", "short"], **search))
    assert not with_owl.equal(logits(made.documents, layers, **search))
    # and reading it again is having it again
    made.read(TEXTS["owl"], "owl")
    assert logits(made.documents, layers, **search).equal(with_owl)
    for name in TEXTS:
        if name in {document.name for document in made.documents}:
            made.forget(name)
    assert_same_answers(made, told(layers, [], **search))


@every_combination
def test_removing_a_document_from_a_library_is_never_having_added_it(
    layers: tuple[int, ...], search: dict[str, Any], tmp_path: Path
) -> None:
    made = told(layers, list(TEXTS), **search)
    library, never = Library(tmp_path / "library"), Library(tmp_path / "never")
    for document in made.documents:
        library.add(document)
        if document.name != "owl":
            never.add(document)

    def asking(documents: Sequence[DocumentMemory]) -> Session:
        return Session(small_model(layers, **search), byte_tokenizer(), documents=documents)

    assert_same_answers(asking(library.select()), made)
    library.remove("owl")
    assert_same_answers(asking(library.select()), asking(never.select()))
    made.forget("owl")
    assert_same_answers(asking(library.select()), made)


@every_combination
def test_the_order_of_documents_changes_no_bit(
    layers: tuple[int, ...], search: dict[str, Any]
) -> None:
    made = told(layers, ["owl", "backwards", "short"], **search)
    # alike in name and length, and in all else that is said of them
    for text in (TEXT[:30], TEXT[30:60], TEXT[:30]):
        made.read(ids_of(text)[:30], "ids")
    made.read(TEXTS["owl"], "owl")
    expected = logits(made.documents, layers, **search)
    for _ in range(4):
        order = torch.randperm(len(made.documents)).tolist()
        some = [made.documents[place] for place in order]
        assert logits(some, layers, **search).equal(expected)


@pytest.mark.long
@every_memory
def test_a_document_of_another_process_answers_bit_for_bit_like_one_of_this(
    layers: tuple[int, ...], read_elsewhere: Path
) -> None:
    here = told(layers, list(TEXTS))
    there = Library(read_elsewhere / str(layers)).select()
    assert [document.hash for document in there] == [
        document.hash for document in sorted(here.documents, key=lambda document: document.name)
    ]
    made = Session(small_model(layers), byte_tokenizer(), documents=there)
    assert_same_answers(made, here)


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries of all texts that another process has read."""
    folder = tmp_path_factory.mktemp("elsewhere")
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from longfocus import Library\n"
        "from test_isolation import TEXTS, told\n"
        "for layers in [(1,), (0, 2)]:\n"
        "    library = Library(Path(sys.argv[1]) / str(layers))\n"
        "    for document in told(layers, list(TEXTS)).documents: library.add(document)\n"
    )
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, folder, here, here.parent], check=True)
    return folder


def pieces(document: DocumentMemory, borders: Sequence[int]) -> list[DocumentMemory]:
    """Documents of some of the pairs each."""
    return [
        DocumentMemory.of(
            name=f"{start:04}",
            layers={
                layer: Part(part.key[:, :, start:stop], part.value[:, :, start:stop])
                for layer, part in document.layers.items()
            },
            token_ids=document.token_ids[start:stop],
            read_with=document.description.read_with,
        )
        for start, stop in pairwise(borders)
    ]


@every_combination
def test_a_document_in_pieces_is_the_same_memory(
    layers: tuple[int, ...], search: dict[str, Any]
) -> None:
    document = session(layers, **search).read(TEXT)
    whole = logits([document], layers, **search)
    for borders in ([0, 1, document.tokens], range(0, document.tokens + 1, document.tokens // 7)):
        borders = [*borders[:-1], document.tokens]
        found = logits(pieces(document, borders), layers, **search)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layers", "search"), [((1,), EXACT), ((0, 2), {})], ids=str)
def test_three_hundred_documents_are_merged_like_one(
    layers: tuple[int, ...], search: dict[str, Any]
) -> None:
    # no window twice: equal keys would share the k places by chance
    document = session(layers, **search).read(torch.randint(3, 259, (500,)))
    many = pieces(document, [*range(300), document.tokens])
    assert len(many) == 300
    some, whole = (
        Session(small_model(layers, **search), byte_tokenizer(), documents=documents)
        for documents in (many, [document])
    )
    assert some.tokens == document.tokens
    with torch.no_grad():
        found, expected = (
            asking.model(ids_of("Who?")[None], past_key_values=asking.cache()).logits
            for asking in (some, whole)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert some.ask("Who?", max_new_tokens=1) == whole.ask("Who?", max_new_tokens=1)


@every_memory
def test_int8_pairs_answer_within_the_error_of_rounding(layers: tuple[int, ...]) -> None:
    document = session(layers).read(TEXT)
    narrow, scale = document.to("int8"), 8**-0.5
    for layer, part in document.layers.items():
        heads, dim = part.key.shape[1], part.key.shape[3]
        query = torch.randn(1, heads, 50, dim)
        by_key, by_value = narrow.layers[layer].scales
        exact, rounded = (
            own.layers[layer].keys(0, 999, torch.float32) for own in (document, narrow)
        )
        assert ((exact - rounded).abs() <= 0.501 * by_key[..., None]).all()
        # no component is off by more than half a step, so that no score is off by more than this,
        score = scale * query.abs().sum(-1) * by_key.amax(-1)[..., None] / 2
        # no weight by more than a factor exp(2 score), and no component of the mean by more than this
        most = part.value.abs().amax((2, 3))[..., None]
        bound = (torch.exp(2 * score) - 1) * most + by_value.amax(-1)[..., None] / 2
        found, expected = (
            own.layers[layer].attend(query, scale=scale).output for own in (narrow, document)
        )
        error = (found - expected).abs().amax(-1)
        assert (error <= bound + 1e-6).all()
        assert error.max() > 0
    plain, without = logits([document], layers), logits([], layers)
    # measured: at most 0.08, where the document itself changes logits by 10
    error = (logits([narrow], layers) - plain).abs().max()
    assert error < 0.25 < 5 < (plain - without).abs().max()


def batch(texts: Sequence[str], layers: tuple[int, ...], **search: Any) -> Tensor:
    """Logits of the last row, padded on the left like the others, through several windows and single tokens."""
    made = told(layers, ["owl"], **search)
    rows = [ids_of(text).tolist() for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    cache, found = made.cache(), []
    with torch.no_grad():
        for _ in range(4):
            found.append(made.model(ids, attention_mask=mask, past_key_values=cache).logits[-1])
            ids = torch.cat([ids[:-1, -1:] + 1, torch.tensor([[77]])])
            mask = torch.cat([mask, torch.ones(len(rows), 1).long()], 1)
    own = found[0][longest - len(rows[-1]) :]
    return torch.cat([own, *found[1:]])


@every_combination
def test_what_stands_in_other_rows_changes_no_bit_of_a_row(
    layers: tuple[int, ...], search: dict[str, Any]
) -> None:
    own, text = TEXT[:40], TEXT[20:95]
    others = [text, text[::-1], "x" * len(text.encode())]
    found = [batch([other, own], layers, **search) for other in others]
    for each in found[1:]:
        assert each.equal(found[0])
    # more rows, or others with as much padding, which share lines with it, are multiplied together
    for length in (1, 40):
        three = batch([text, text[-length:], own], layers, **search)
        torch.testing.assert_close(three, found[0], atol=1e-5, rtol=0)
    # what stands in the row itself does
    assert not batch([text, TEXT[1:41]], layers, **search)[-1].isclose(found[0][-1], atol=0.1).all()


HEADER = "# text 1\n"


def test_texts_that_are_read_together_are_read_with_the_earlier_ones_in_sight(
    tmp_path: Path,
) -> None:
    layers = (0, 2)
    start, second = 4 * WINDOW, TEXT[70:]
    first = "The owl saw nine keys.".ljust(start - len(HEADER) - 1, "?") + "\n"
    made = session(layers)
    both = made.read(together([first, second]), "both")
    assert [part.name for part in both.parts] == ["text 1", "text 2"]
    assert both.description.is_together
    # the second begins with a window of its own: alone it is the same text in the same windows
    alone = made.read("# text 2\n" + second + "\n", "alone")
    assert both.token_ids[start:].equal(alone.token_ids)
    own = {layer: part.key[:, :, start:] for layer, part in both.layers.items()}
    torch.testing.assert_close(own[0], alone.layers[0].key, atol=1e-5, rtol=0)
    assert not own[2].isclose(alone.layers[2].key, atol=0.1).all()
    # its first window has seen all of the first text
    earlier = made.read(HEADER + first, "earlier")
    cache = FocusCache(made.model, [earlier])
    with torch.no_grad():
        made.model(alone.token_ids[None, :WINDOW], past_key_values=cache)
    torch.testing.assert_close(cache.window_keys(2), own[2][:, :, :WINDOW], atol=1e-5, rtol=0)
    library = Library(tmp_path)
    library.add(both)
    with pytest.raises(LongFocusError, match="part of 'both', which was read together and cannot"):
        library.remove("text 2")
    assert library.names() == ["both"]
