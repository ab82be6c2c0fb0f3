"""An answer as a page (page.py): what was said, and every document with the attention that its tokens received."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from longfocus.errors import LongFocusError
from longfocus.inference.answer import Answer
from longfocus.inference.page.render import AnswerPage, AnswerToken, Looked, PageDocument
from longfocus.memory.document import DocumentMemory


def answer_page(
    question: str, answer: Answer, tokenizer: PreTrainedTokenizerBase | None
) -> AnswerPage:
    """The page of an answer. Raises LongFocusError for a document whose tokens have no places in a text."""
    texts = _texts(answer.token_ids, tokenizer)
    tokens = tuple(
        AnswerToken(text, tuple(Looked(r.number, r.start, r.end, r.weight) for r in looked))
        for text, looked in zip(texts, answer.looked, strict=True)
    )
    documents = tuple(
        _document(document, place, answer) for place, document in enumerate(answer.documents)
    )
    return AnswerPage("Answer", question, tokens, documents)


def _texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """What every token adds to the text. One that is only part of a character adds nothing, the last part all."""
    texts, so_far = [], ""
    for end in range(1, len(ids) + 1):
        whole = "" if tokenizer is None else str(tokenizer.decode(list(ids[:end])))
        is_whole = not whole.endswith("\ufffd") or end == len(ids)
        texts.append(whole[len(so_far) :] if is_whole else "")
        so_far = whole if is_whole else so_far
    return texts


def _document(document: DocumentMemory, place: int, answer: Answer) -> PageDocument:
    offsets = document.offsets
    if offsets is None or document.text is None:
        raise LongFocusError(
            f"Document {document.name!r} was read from token ids, or with a slow tokenizer, and has no text to show. "
            "Read its text with a fast tokenizer."
        )
    starts, ends = offsets.numpy().T
    return PageDocument(
        document.name, document.text, starts, ends, answer.heat[place].double().cpu().numpy()
    )
