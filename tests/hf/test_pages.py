"""docs/hf_contract.md and docs/models.md name tests that exist, and every family that is tested."""

import re
from pathlib import Path

import pytest

from families import FAMILIES, REFUSED

REPOSITORY = Path(__file__).parents[2]
TESTS = {
    name
    for room in ("hf", "training")
    for file in (REPOSITORY / "tests" / room).glob("test_*.py")
    for name in [file.stem, *re.findall(r"def (test_\w+)", file.read_text())]
}


@pytest.mark.parametrize("page", ["hf_contract.md", "models.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    files = {Path(name).stem for name in re.findall(r"tests/hf/(test_\w+\.py)", text)}
    named = set(re.findall(r"\btest_\w+(?:\.\.\.)?", text)) | files
    assert len(named) > 5
    for name in named:
        stem = name.removesuffix("...")
        assert stem in TESTS or (stem != name and any(t.startswith(stem) for t in TESTS)), name


def test_the_page_of_models_lists_every_family() -> None:
    text = (REPOSITORY / "docs" / "models.md").read_text()
    listed = set(re.findall(r"^\| [^|]+ \| `(\w+)` \|", text, re.MULTILINE))
    assert listed - {"model_type"} == {entry.model_type for entry in FAMILIES}
    for name in ("GPT-2", "OPT", "Bloom", "GPT-J", "Falcon", "Llama 4"):
        assert name in text
    assert len(REFUSED) == 6
