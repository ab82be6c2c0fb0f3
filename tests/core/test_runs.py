"""Attention over runs of pairs: in C, in torch, and as the formula says, for whatever pairs and queries there are."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longfocus.core import native_library as native
from longfocus.core import runs as module
from longfocus.core.runs import Pairs, Runs, attend_all, attend_runs, plain
from longfocus.memory.quantized import quantize

# Empty, one pair, less than a block of C, exactly one (32 and 64), one more, several; queries of each.
LENGTHS = (0, 1, 31, 32, 33, 64, 65, 700)
ASKING = (3, 1, 2, 7, 1, 5, 18, 2)
DIMS = (64, 80, 100, 128)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

Answer = tuple[Tensor, Tensor]


def runs_of(lengths: tuple[int, ...] = LENGTHS, asking: tuple[int, ...] = ASKING) -> Runs:
    """Runs that overlap, and leave holes."""
    starts = torch.tensor([17 * place % 50 for place in range(len(lengths))])
    first = torch.tensor([0, *asking]).cumsum(0)
    return Runs(starts, starts + torch.tensor(lengths), first)


def pairs_of(dim: int, dtype: torch.dtype, count: int = 800) -> Pairs:
    """Keys and values side by side, as sorted parts have them."""
    both = torch.randn(count, 2, dim)
    if dtype != torch.int8:
        both = both.to(dtype)
        return Pairs(both[:, 0], both[:, 1])
    numbers, scales = quantize(both)
    return Pairs(numbers[:, 0], numbers[:, 1], scales[:, 0], scales[:, 1])


def formula(query: Tensor, pairs: Pairs, runs: Runs, scale: float, softcap: float | None) -> Answer:
    """Query by query, in float64."""
    key, value = pairs.key.double(), pairs.value.double()
    if pairs.key_scale is not None and pairs.value_scale is not None:
        key = key * pairs.key_scale.double()[:, None]
        value = value * pairs.value_scale.double()[:, None]
    outputs, lses = [], []
    for run in range(len(runs.starts)):
        own = slice(int(runs.starts[run]), int(runs.stops[run]))
        for place in range(int(runs.asking[run]), int(runs.asking[run + 1])):
            scores = key[own] @ query[place].double() * scale
            scores = scores if softcap is None else softcap * (scores / softcap).tanh()
            outputs.append(scores.softmax(0) @ value[own])
            lses.append(scores.logsumexp(0))
    return torch.stack(outputs), torch.stack(lses)


def close(found: Answer, expected: Answer, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance, rtol=tolerance)


@pytest.fixture
def new_library() -> Iterator[None]:
    """The library is looked for again, in the test and after it."""
    native.native_library.cache_clear()
    yield
    native.native_library.cache_clear()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("asks", [torch.float32, torch.bfloat16], ids=str)
def test_runs_equal_the_formula(
    asks: torch.dtype, dtype: torch.dtype, dim: int, softcap: float | None
) -> None:
    pairs, runs = pairs_of(dim, dtype), runs_of()
    query = torch.randn(int(runs.asking[-1]), dim).to(asks)
    expected = formula(query, pairs, runs, 0.3, softcap)
    for way in (attend_runs, plain):
        found = way(query, pairs, runs, scale=0.3, softcap=softcap)
        assert found[0].dtype == found[1].dtype == torch.float32
        assert found[1][:3].isneginf().all()
        assert found[0][:3].eq(0).all()
        close(found, expected, TOLERANCE[asks])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_few_and_hundreds_of_queries_of_one_run_get_the_same_answers(dtype: torch.dtype) -> None:
    asks = torch.bfloat16 if dtype == torch.int8 else dtype
    pairs, query = pairs_of(64, dtype), torch.randn(300, 64).to(asks)
    together = attend_runs(query, pairs, runs_of((700,), (300,)), scale=0.3)
    close(together, formula(query, pairs, runs_of((700,), (300,)), 0.3, None), TOLERANCE[asks])
    few = [attend_runs(q, pairs, runs_of((700,), (3,)), scale=0.3) for q in query.split(3)]
    # without matrix tiles hundreds of queries see int8 keys rounded to bfloat16, and few see them as they are
    bound = TOLERANCE[asks] if dtype == torch.int8 else min(TOLERANCE[asks], 2e-2)
    close(together, (torch.cat([f[0] for f in few]), torch.cat([f[1] for f in few])), bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_visits_in_any_order_are_of_their_queries_and_answered_side_by_side(
    dtype: torch.dtype,
) -> None:
    each, runs, pairs = 3, runs_of(), pairs_of(64, dtype)
    visits = int(runs.asking[-1])
    query = torch.randn(visits // each, 64).to(torch.bfloat16)
    order = torch.randperm(visits)
    ordered = runs._replace(order=order, each=each)
    expected = attend_runs(query[order // each], pairs, runs, scale=0.3)
    for way in (attend_runs, plain):
        output, lse = way(query, pairs, ordered, scale=0.3)
        assert output.shape == (visits, 64)
        close((output[order], lse[order]), expected, TOLERANCE[torch.bfloat16])
        # some of the runs alone leave the answers of the others as they are
        into = torch.full_like(output, 7.0), torch.full_like(lse, 7.0)
        first = int(runs.asking[5])
        few = Runs(runs.starts[5:], runs.stops[5:], runs.asking[5:], order, each)
        way(query, pairs, few, scale=0.3, into=into)
        assert into[0][order[first:]].equal(output[order[first:]])
        assert into[1][order[first:]].equal(lse[order[first:]])
        assert into[0][order[:first]].eq(7).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("queries", [1, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_all_pairs_are_shared_among_threads(
    dtype: torch.dtype, queries: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for count in (1, 2, 700):
        pairs = pairs_of(64, dtype, count)
        query = torch.randn(queries, 64).to(torch.bfloat16)
        found = attend_all(query, pairs, scale=0.3, softcap=5.0)
        library = native.native_library()
        if library is None or not library.has_tiles(64):
            assert found is None
        else:
            expected = formula(query, pairs, runs_of((count,), (queries,)), 0.3, 5.0)
            close(found, expected, TOLERANCE[torch.bfloat16])


def test_pairs_of_other_types_are_left_to_torch() -> None:
    assert attend_all(torch.randn(3, 64), pairs_of(64, torch.int8), scale=1.0) is None
    assert attend_all(torch.randn(3, 80).bfloat16(), pairs_of(80, torch.int8), scale=1.0) is None


def test_pairs_may_lie_apart_or_side_by_side() -> None:
    runs = runs_of()
    query = torch.randn(int(runs.asking[-1]), 80)
    pairs = pairs_of(80, torch.int8)
    apart = Pairs(*(tensor.contiguous() for tensor in pairs if tensor is not None))
    for one, other in zip(
        attend_runs(query, pairs, runs, scale=0.3),
        attend_runs(query, apart, runs, scale=0.3),
        strict=True,
    ):
        assert one.equal(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_two_threads_give_the_same_numbers_as_one(dtype: torch.dtype) -> None:
    pairs, runs = pairs_of(64, dtype), runs_of()
    asks = torch.float32 if dtype == torch.int8 else dtype
    query = torch.randn(int(runs.asking[-1]), 64).to(asks)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(attend_runs(query, pairs, runs, scale=0.3))
    torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e3, 1e9, 1e15])
def test_the_largest_score_takes_all_however_huge_it_is(size: float, dtype: torch.dtype) -> None:
    key = torch.zeros(200, 64)
    key[:, 0] = -size
    key[150, 0] = size
    value = torch.randn(200, 64).to(dtype)
    query = torch.zeros(2, 64)
    query[:, 0] = size
    given = query.to(dtype), Pairs(key.to(dtype), value), runs_of((200,), (2,))
    close(attend_runs(*given, scale=1.0), formula(*given, 1.0, None), 1e-2)
    assert attend_runs(*given, scale=1.0)[0].equal(value[[150, 150]].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_scores_give_the_mean_of_the_values(dtype: torch.dtype) -> None:
    value = torch.randn(256, 64).to(dtype)
    pairs = Pairs(torch.full((256, 64), 2.0, dtype=dtype), value)
    output, lse = attend_runs(
        torch.full((1, 64), 3.0, dtype=dtype), pairs, runs_of((256,), (1,)), scale=1.0
    )
    torch.testing.assert_close(output[0], value.float().mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(lse, torch.tensor([384.0]) + torch.tensor(256.0).log())


def test_no_runs_and_no_queries_are_answered() -> None:
    runs = Runs(*(torch.zeros(size, dtype=torch.long) for size in (0, 0, 1)))
    for way in (attend_runs, plain):
        output, lse = way(torch.empty(0, 64), pairs_of(64, torch.float32), runs, scale=1.0)
        assert output.shape == (0, 64)
        assert lse.shape == (0,)


def test_int8_numbers_without_scales_are_never_given_to_c() -> None:
    pairs = pairs_of(64, torch.int8)
    bare, runs = Pairs(pairs.key, pairs.value), runs_of((5,), (1,))
    query = torch.randn(1, 64)
    close(attend_runs(query, bare, runs, scale=1e-3), formula(query, bare, runs, 1e-3, None), 1e-4)


def test_gradients_are_those_of_the_formula() -> None:
    torch.set_default_dtype(torch.float64)
    runs = runs_of((1, 31, 700), (3, 2, 9))
    query = torch.randn(14, 64).requires_grad_()
    key, value = (tensor.requires_grad_() for tensor in pairs_of(64, torch.float64)[:2])
    pairs = Pairs(key, value)
    weight = torch.randn(14, 64)
    grads = []
    for way in (attend_runs, None):
        given = query, pairs, runs
        output, lse = (
            way(*given, scale=0.3, softcap=3.0) if way else formula(*given, 0.3, softcap=3.0)
        )
        loss = (output * weight).sum() + lse.sum()
        grads.append(torch.autograd.grad(loss, [query, key, value]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def answers_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled or loaded, and the answer is torch's."""
    assert native.native_library() is None
    pairs, runs = pairs_of(64, torch.float32), runs_of()
    query = torch.randn(int(runs.asking[-1]), 64)
    monkeypatch.setattr(module, "_Call", None)
    for one, other in zip(
        attend_runs(query, pairs, runs, scale=0.3),
        plain(query, pairs, runs, scale=0.3),
        strict=True,
    ):
        assert one.equal(other)


@pytest.mark.usefixtures("new_library")
def test_the_switch_keeps_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    answers_in_torch(monkeypatch)


@pytest.mark.usefixtures("new_library")
def test_without_a_compiler_torch_answers_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "a compiler that nobody has")
    with caplog.at_level(logging.INFO):
        answers_in_torch(monkeypatch)
    assert "There is no C compiler" in caplog.text


@pytest.mark.usefixtures("new_library")
@pytest.mark.parametrize("says", ["no such flag", r"\377\376 is no UTF-8"])
def test_where_the_compiler_fails_torch_answers_and_it_is_said_once(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "failing"
    compiler.write_text(f"#!/bin/sh\nprintf '{says}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answers_in_torch(monkeypatch)
    answers_in_torch(monkeypatch)
    assert caplog.text.count("could not be compiled") == 1
    assert list((tmp_path / "cache" / "longfocus").iterdir()) == []


@pytest.mark.usefixtures("new_library")
@pytest.mark.parametrize("through", ["", "sh "])
def test_what_cannot_be_loaded_is_not_used(
    through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "lying"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{through}{compiler}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answers_in_torch(monkeypatch)
    assert "could not be compiled or loaded" in caplog.text


@pytest.mark.usefixtures("new_library")
def test_a_cache_that_cannot_be_written_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pairs, runs = pairs_of(64, torch.float32), runs_of()
    query = torch.randn(int(runs.asking[-1]), 64)
    found = attend_runs(query, pairs, runs, scale=0.3)
    close(found, formula(query, pairs, runs, 0.3, None), 1e-5)


@pytest.mark.usefixtures("new_library")
def test_a_library_is_compiled_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if native.native_library() is None:
        # without a compiler nothing may be left there either
        assert not list(tmp_path.rglob("*.so"))
        return
    (library,) = (tmp_path / "longfocus").iterdir()
    native.native_library.cache_clear()
    monkeypatch.setattr(native, "_compile", None)
    assert native.native_library() is not None
    assert list((tmp_path / "longfocus").iterdir()) == [library]


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import longfocus.core.runs"], env=own, check=True)
    assert list(tmp_path.iterdir()) == []
