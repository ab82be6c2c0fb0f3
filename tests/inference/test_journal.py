"""What was kept of an unfinished reading comes back as it was, whatever became of the end of its file."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longfocus import LongFocusError
from longfocus.inference.journal import Journal

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
Record = dict[int, tuple[Tensor, Tensor]]


def record(
    tokens: int, layers: tuple[int, ...] = (1, 12), dtype: torch.dtype = torch.float32
) -> Record:
    def some() -> Tensor:
        return torch.randn(1, 2, tokens, 4).to(dtype)

    return {layer: (some(), some()) for layer in layers}


@contextmanager
def opened(path: Path, key: str = KEY) -> Iterator[Journal]:
    journal = Journal(path, key)
    try:
        yield journal
    finally:
        journal.close()


def kept(path: Path, records: list[Record], key: str = KEY) -> bytes:
    """The file that holds these records behind those that it holds."""
    with opened(path, key) as journal:
        list(journal.records())
        for each in records:
            journal.append(each)
    return path.read_bytes()


def found(path: Path, key: str = KEY) -> list[Record]:
    with opened(path, key) as journal:
        return list(journal.records())


def assert_same(some: list[Record], others: list[Record]) -> None:
    assert [list(each) for each in some] == [list(each) for each in others]
    for one, other in zip(some, others, strict=True):
        for pairs, same in zip(one.values(), other.values(), strict=True):
            for tensor, expected in zip(pairs, same, strict=True):
                assert tensor.dtype == expected.dtype
                assert tensor.equal(expected)


@pytest.mark.parametrize("layers", [(0,), (3, 7, 31)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_records_come_back_as_they_were_kept(
    dtype: torch.dtype, layers: tuple[int, ...], tmp_path: Path
) -> None:
    records = [record(tokens, layers, dtype) for tokens in (5, 1, 300)]
    # views of larger tensors, as a reading makes them
    wide = torch.randn(1, 2, 9, 8).to(dtype)
    records.append(dict.fromkeys(layers, (wide[:, :, 2:7, :4], wide[:, :, ::2, 4:])))
    assert found(tmp_path / "j") == []
    kept(tmp_path / "j", records[:2])
    kept(tmp_path / "j", records[2:])
    assert_same(found(tmp_path / "j"), records)
    assert_same(found(tmp_path / "j"), records)


def test_infinite_and_subnormal_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, 1e-45, float("inf"), float("nan")]).view(1, 1, 5, 1)
    kept(tmp_path / "j", [{0: (odd, odd)}])
    ((key, value),) = found(tmp_path / "j")[0].values()
    assert key.view(torch.int32).equal(odd.view(torch.int32))
    assert value.view(torch.int32).equal(odd.view(torch.int32))


def test_cut_at_any_byte_of_its_last_record_a_journal_goes_on_behind_the_others(
    tmp_path: Path,
) -> None:
    path, records, more = tmp_path / "j", [record(3), record(2), record(1)], record(4)
    whole = kept(path, records[:2])
    assert whole + kept(path, records[2:])[len(whole) :] == path.read_bytes()
    data = path.read_bytes()
    for length in range(len(whole), len(data)):
        path.write_bytes(data[:length])
        assert_same(found(path), records[:2])
        assert path.read_bytes() == whole
        path.write_bytes(data[:length])
        kept(path, [more])
        assert_same(found(path), [*records[:2], more])


@pytest.mark.long
def test_with_any_byte_of_its_last_record_changed_a_journal_goes_on_behind_the_others(
    tmp_path: Path,
) -> None:
    path, records = tmp_path / "j", [record(3), record(2)]
    first = len(kept(path, records[:1]))
    data = kept(path, records[1:])
    again = record(2)
    for place in range(first, len(data)):
        changed = bytearray(data)
        # a digit becomes another digit
        changed[place] ^= 1
        path.write_bytes(changed)
        kept(path, [again])
        assert_same(found(path), [records[0], again])


def test_what_stands_behind_a_changed_record_is_not_taken(tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3), record(2), record(1)]
    kept(path, records[:1])
    changed = len(kept(path, records[1:2])) - 1
    data = bytearray(kept(path, records[2:]))
    data[changed] ^= 1
    path.write_bytes(data)
    assert_same(found(path), records[:1])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b"\xff\n",
        b"x" * 10_000,
        b'{"sha256":"","layers":[1],"dtype":"float32","shape":[1,2,1000000000000,4]}\n',
        b'{"sha256":"","layers":[1],"dtype":"float32","shape":[1,2,-3,4]}\n',
        b'{"sha256":"","layers":[1],"dtype":"float32","shape":["a"]}\n',
        b'{"sha256":"","layers":[],"dtype":"float32","shape":[NaN]}\n',
        b'{"sha256":"","layers":1,"dtype":"float32","shape":[1]}\n',
        b'{"sha256":"","layers":[1],"dtype":"nn","shape":[1]}\n',
    ],
    ids=ascii,
)
def test_a_line_that_describes_no_record_is_cut_off(line: bytes, tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3)]
    whole = kept(path, records)
    path.write_bytes(whole + line + bytes(200))
    assert_same(found(path), records)
    assert path.read_bytes() == whole


def test_with_another_key_a_journal_begins_anew(tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3)]
    kept(path, [record(5), record(6)])
    assert found(path, OTHER) == []
    kept(path, records, OTHER)
    assert_same(found(path, OTHER), records)
    assert found(path) == []


@pytest.mark.parametrize("length", [0, 1, 10, 24])
def test_a_journal_whose_key_was_cut_off_begins_anew(length: int, tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3)]
    path.write_bytes(kept(path, [record(2)])[:length])
    kept(path, records)
    assert_same(found(path), records)


def test_a_file_of_anything_else_becomes_a_journal(tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3)]
    path.write_bytes(bytes(range(256)) * 99)
    kept(path, records)
    assert_same(found(path), records)


def test_while_one_holds_it_nobody_else_opens_it(tmp_path: Path) -> None:
    path, records = tmp_path / "j", [record(3), record(2)]
    told = "another process that reads the same source. Wait for it, or stop it"
    with opened(path) as journal:
        journal.append(records[0])
        for key in (KEY, OTHER):
            with pytest.raises(LongFocusError, match=told):
                Journal(path, key)
        journal.append(records[1])
    assert_same(found(path), records)


def test_a_journal_that_is_removed_while_somebody_waits_for_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, first = tmp_path / "j", fcntl.flock, Journal(tmp_path / "j", KEY)

    def finished_meanwhile(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.close(remove=True)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    records = [record(2)]
    kept(path, records)
    assert_same(found(path), records)


def test_where_there_are_no_locks_a_journal_can_be_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    records = [record(2)]
    kept(tmp_path / "j", records)
    assert_same(found(tmp_path / "j"), records)


@pytest.mark.parametrize("write", range(1, 6))
def test_on_a_full_disk_an_error_says_so_and_earlier_records_stay(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, records = tmp_path / "j", [record(3), record(2)]
    kept(path, records[:1])
    made, real = 0, os.write

    def full(descriptor: int, data: Any) -> int:
        nonlocal made
        made += 1
        if made == write + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # the last bytes for which there is room
        return real(descriptor, data[: len(data) // 2] if made == write else data)

    journal = Journal(path, KEY)
    list(journal.records())
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(LongFocusError, match=r"j cannot be written: the disk is full. Make"):
            journal.append(records[1])
    assert made == write + 1
    journal.close()
    kept(path, records[1:])
    assert_same(found(path), records)


def test_on_a_full_disk_a_journal_that_cannot_be_begun_is_held_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(LongFocusError, match="the disk is full"):
            Journal(tmp_path / "j", KEY)
    assert found(tmp_path / "j") == []


def test_a_journal_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(LongFocusError, match=r"there is no such folder\. Make it first"):
        Journal(tmp_path / "nowhere" / "j", KEY)
    (tmp_path / "link").symlink_to(tmp_path / "j")
    with pytest.raises(LongFocusError, match="link cannot be written"):
        Journal(tmp_path / "link", KEY)
    assert not (tmp_path / "j").exists()


def test_what_is_finished_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", KEY)
    journal.append(record(3))
    journal.close(remove=True)
    assert list(tmp_path.iterdir()) == []
