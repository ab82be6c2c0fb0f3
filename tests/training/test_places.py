"""Folders, shipped models and repositories of the hub are told apart before anything is fetched."""

from pathlib import Path

import pytest

from longfocus.errors import LongFocusError
from longfocus.training.places import place_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, also the user's home, with a folder in it."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["./a", "../a", "~/a", "a/", "a/b/c", "/a", "there/a", "a\\b"])
def test_a_path_with_nothing_at_it_is_refused(name: str, here: Path) -> None:
    with pytest.raises(LongFocusError) as error:
        place_of(name, "--tokenizer")
    assert f"There is no folder {name!r}, which --tokenizer names" in str(error.value)


@pytest.mark.parametrize("name", ["./a", "~/a", "a/", "a/b/c", "there/a", "a", "a/b"])
def test_a_folder_that_is_there_is_what_is_meant(name: str, here: Path) -> None:
    folder = here / name.removeprefix("~/")
    folder.mkdir(parents=True)
    assert Path(place_of(name, "--model")).samefile(folder)


@pytest.mark.parametrize("name", ["a", "a/b"])
def test_what_may_be_a_repository_of_the_hub_is_left_to_it(name: str, here: Path) -> None:
    assert place_of(name, "--model") == name


def test_a_shipped_model_is_found_by_its_name(here: Path) -> None:
    assert (Path(place_of("code", "--model")) / "config.json").is_file()
