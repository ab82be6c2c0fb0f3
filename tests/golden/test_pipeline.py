"""The published data pipelines: documents in, batches out. Ours go on where those fail at the end of a source."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from golden_cases import Case, cases, name_of

from longfocus.training.rows import Document, Rows, document_rows, linear_rows

CASES = cases("pipeline")


def documents_of(case: Case) -> list[Document]:
    return [
        Document(np.array(given["tokens"]), np.array(given["loss_mask"]), given["source"])
        for given in case.description["documents"]
    ]


def rows_of(case: Case) -> Rows:
    args = case.description["args"]
    sizes = {"batch_size": args["batch_size"], "length": args["seq_len"]}
    if case.description["kind"] == "LinearPipeline":
        return linear_rows(documents_of(case), **sizes)
    return document_rows(
        documents_of(case), **sizes, packing=args.get("k", 1), pad=args.get("pad", False)
    )


def published_part(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as JSON, without what the published pipelines do not give."""
    return {
        name: value if name == "metrics" else value.tolist()
        for name, value in batch.items()
        if name != "documents"
    }


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_golden_batches_are_a_prefix_of_ours(case: Case) -> None:
    golden = case.description["batches"]
    ours = list(islice(rows_of(case), len(golden)))
    assert [published_part(batch) for batch in ours] == golden


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_token_of_the_golden_documents_is_read_and_most_are_given(case: Case) -> None:
    documents = documents_of(case)
    batches = list(rows_of(case))
    given = np.concatenate([batch["documents"].ravel() for batch in batches])
    counts = np.bincount(given[given >= 0], minlength=len(documents))
    lengths = np.array([len(document.tokens) for document in documents])
    missing = lengths - counts
    # a row's very last token is a target and has none itself
    assert set(missing) <= {0, 1}
    assert missing.sum() <= len(batches[0]["documents"])
    assert batches[-1]["metrics"]["dataset_example_index"] == len(documents)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_input_token_is_the_one_its_document_number_names(case: Case) -> None:
    documents = documents_of(case)
    for batch in rows_of(case):
        for tokens, numbers in zip(batch["input_tokens"], batch["documents"], strict=True):
            assert not tokens[numbers < 0].any()
            for number in set(numbers[numbers >= 0].tolist()):
                part = tokens[numbers == number]
                whole = documents[number].tokens
                (start,) = np.flatnonzero(whole == part[0])[:1]
                assert part.tolist() == whole[start : start + len(part)].tolist()
