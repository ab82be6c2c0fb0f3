"""Clustered search with `certify=True`: what it missed is never more than it says, nor than it may."""

import gc
from collections.abc import Callable

import pytest
import torch
from certify_cases import keys_of, memory
from sources import SOURCES
from torch import Tensor

from long import mostly_long
from longfocus.config import FocusConfig
from longfocus.core.attention import Partial
from longfocus.errors import LongFocusError
from longfocus.memory import Part, certified, dense, make_search
from longfocus.memory.audit import Audit
from longfocus.memory.certified import Certificate
from longfocus.memory.clustered import Clustered
from longfocus.memory.residuals import Residuals
from longfocus.memory.sorting import cluster
from longfocus.memory.visits import SortedHead

SCALE, HEADS, DIM = 0.25, 6, 64


def queries(rows: int = 1, count: int = 9, dim: int = DIM) -> Tensor:
    return torch.randn(rows, HEADS, count, dim)


def truth(query: Tensor, parts: list[Part], softcap: float | None = None) -> Partial:
    return dense(query.double(), parts, scale=SCALE, softcap=softcap)


def missed(
    found: Partial, query: Tensor, parts: list[Part], softcap: float | None = None
) -> Tensor:
    """The true share of attention that was missed; rounding of `found` itself may make it negative."""
    share = 1 - (found.lse.double() - truth(query, parts, softcap).lse).exp()
    return share.nan_to_num(0.0)


def lazy(retain: float) -> Clustered:
    """A search that visits next to nothing if nobody makes it."""
    search = Clustered(retain, Audit(0.0, least=1), certify=True)
    search.audit.width.tolerance = 1.0
    return search


def bounds(search: Clustered) -> Tensor:
    assert search.certificate is not None
    assert search.certificate.latest is not None
    return search.certificate.latest


@pytest.mark.parametrize("softcap", mostly_long([None, 8.0], None))
@pytest.mark.parametrize("number", mostly_long(["float32", "bfloat16", "int8"], "float32", "int8"))
@pytest.mark.parametrize(
    "kind", ["clustered", "isotropic", "equal", "outlier", "antiparallel", "one token", "zeros"]
)
def test_certify_makes_a_search_visit_what_it_needs(
    kind: str, number: str, softcap: float | None
) -> None:
    # float64 measures what is missed, however large the scores
    parts, query = [memory(kind, number, 600, DIM, 32)], queries(count=5).double()
    for retain in (0.6, 0.99):
        search = lazy(retain)
        found = search(query, parts, scale=SCALE, softcap=softcap)
        assert (bounds(search) <= 1 - retain).all()
        assert (missed(found, query, parts, softcap) <= bounds(search) + 1e-9).all()


def test_certify_is_what_makes_it_visit_more() -> None:
    parts, query = [memory("clustered", "float32", 4000, DIM, 256)], queries(count=30)
    searches = [Clustered(0.5, Audit(0.0, least=1)), lazy(0.5), lazy(0.9), lazy(0.9999)]
    searches[0].audit.width.tolerance = 1.0
    found = [missed(search(query, parts, scale=SCALE), query, parts) for search in searches]
    assert found[0].max() > 0.5
    assert found[1].max() <= 0.5
    assert found[2].max() <= 0.1
    assert found[3].max() <= 0.0001 + 1e-5
    # and no more than it must: a little at the first, not all
    assert found[1].mean() > 0.05
    assert found[2].mean() > 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_certify_counts_what_is_not_sorted_as_seen(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    key = keys_of("clustered", 900, DIM).to(dtype)
    value = torch.randn_like(key)
    first, rest = (Part(key[:, :, own], value[:, :, own]) for own in (slice(600), slice(600, 900)))
    parts, query = [cluster(first, 32), rest, cluster(rest, 16)], queries().to(dtype)
    search = lazy(0.9)
    found = search(query, parts, scale=SCALE)
    assert (bounds(search) <= 0.1).all()
    # a narrow type rounds the answer itself
    assert (
        missed(found, query, parts) <= bounds(search) + (1e-4 if dtype.itemsize > 2 else 0.05)
    ).all()
    assert bounds(search).max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_certify_counts_no_more_as_seen_than_there_is(dtype: torch.dtype) -> None:
    key = 3 * torch.randn(1, 2, 300, DIM)
    real = torch.ones(1, 300, dtype=torch.bool)
    parts, query = [Part(key, key, real)], (3 * queries(1, 50)).to(dtype)
    own = Certificate(0.9)
    for softcap in (None, 60.0):
        true = truth(query, parts, softcap).lse
        for is_autocast in (False, True):
            # as the search does, which sees queries after autocast
            asked = query.bfloat16() if is_autocast else query
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                lse = dense(asked, parts, scale=SCALE, softcap=softcap).lse
                found = own.floor(asked, parts, lse, SCALE, softcap)
            if asked.dtype == query.dtype:
                assert (found <= true).all()
                assert (found > true - 0.05).all()
    nothing = own.floor(
        query, [Part(key, key, ~real)], torch.full_like(lse, -torch.inf), SCALE, None
    )
    assert nothing.isneginf().all()


def test_certify_knows_where_it_does_not_know_what_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    key = torch.randn(1, 2, 30, DIM)
    lse = torch.zeros(1, HEADS, 9)
    found = Certificate(0.9).floor(queries(), [Part(key, key)], lse, SCALE, None)
    assert (found.exp() == 0).all()
    assert not found.isneginf().any()


def test_certify_trusts_a_sum_over_clusters_alone() -> None:
    part, query = memory("clustered", "float32", 200, DIM, 8), torch.randn(2, DIM)
    floor = torch.tensor([-torch.inf, 3.0], dtype=torch.float64)
    given = (query, torch.tensor([3.0, 4.0]), floor, [(part, 0)], 0)
    proof = Certificate(0.9).prove(*given, scale=SCALE, softcap=None)
    assert proof.off[0] < 0.01
    assert proof.off[1].isinf()
    torch.testing.assert_close(proof.rest.log(), torch.tensor([-torch.inf, -1.0]).double())


def test_certify_knows_rows_lines_and_padding() -> None:
    torch.manual_seed(1)
    key = torch.cat([keys_of("clustered", 700, DIM), keys_of("clustered", 700, DIM)]).float()
    value, real = torch.randn_like(key), torch.rand(2, 700) < 0.6
    parts = [cluster(Part(key, value, real, (1, 0, 1)), 32)]
    query = queries(3)
    search = lazy(0.95)
    found = search(query, parts, scale=SCALE)
    assert (bounds(search) <= 0.05).all()
    assert bounds(search).shape == (3, HEADS, 9)
    assert (missed(found, query, parts) <= bounds(search) + 1e-5).all()
    for row in range(3):
        alone = [cluster(Part(key, value, real, ((1, 0, 1)[row],)), 32)]
        search(query[row : row + 1], alone, scale=SCALE)
        assert (bounds(search) <= 0.05).all()
        assert (bounds(search) > 0).any()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_certify_of_what_is_attended_to_in_full_misses_nothing(
    source: Callable[[], list[Part]],
) -> None:
    parts = source()
    query = torch.randn(3, HEADS, 5, 8)
    search = Clustered(0.99, certify=True)
    found = search(query, parts, scale=SCALE)
    assert (bounds(search) <= 0.01).all()
    assert not bounds(search).isnan().any()
    expected = dense(query, parts, scale=SCALE)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), atol=2e-2, rtol=0)


def test_certify_reports_all_queries() -> None:
    parts = [memory("clustered", "float32", 3000, DIM, 128)]
    search = lazy(0.9)
    assert search.certificate is not None
    assert search.certificate.report() is None
    both = []
    for _ in range(2):
        search(queries(), parts, scale=SCALE)
        both.append(bounds(search))
    report = search.certificate.report()
    assert report is not None
    every = torch.stack(both)
    assert report.queries == every.numel() == 2 * HEADS * 9
    assert report.mean == pytest.approx(float(every.mean()))
    assert report.most == float(every.max()) > 0
    assert certified.certified({3: search, 5: dense, 7: lazy(0.9)}) == {3: report}


def test_certify_says_zero_where_nothing_is_sorted() -> None:
    search = Clustered(0.9, certify=True)
    key = torch.randn(1, 2, 30, DIM)
    search(queries(), [Part(key, key)], scale=SCALE)
    assert bounds(search).equal(torch.zeros(1, HEADS, 9, dtype=torch.float64))


def test_certify_does_not_look_again_at_what_was_seen_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    everything = SortedHead.everything

    def counted(own: SortedHead, query: Tensor) -> Partial:
        looked.append(len(query))
        return everything(own, query)

    monkeypatch.setattr(SortedHead, "everything", counted)
    search = Clustered(0.9, Audit(0.0, least=10**6), certify=True)
    search(queries(), [memory("clustered", "float32", 400, DIM, 16)], scale=SCALE)
    assert (bounds(search) == 0).all()
    # all queries of a KV head, once
    assert looked == [HEADS // 2 * 9] * 2


def test_certify_has_the_gradients_of_what_it_visits() -> None:
    torch.set_default_dtype(torch.float64)
    parts = [memory("isotropic", "float64", 400, DIM, 16)]
    query = queries().requires_grad_()
    weight = torch.randn_like(query)
    # isotropic keys: everything is visited
    search = lazy(0.999999)
    ours, theirs = (
        torch.autograd.grad((found.output * weight).sum() + found.lse.sum(), query)[0]
        for found in (search(query, parts, scale=SCALE), dense(query, parts, scale=SCALE))
    )
    assert (bounds(search) == 0).all()
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_certify_makes_residuals_once_and_keeps_them_as_long_as_the_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def counted(part: Part) -> Residuals:
        made.append(len(part))
        return Residuals.of(part)

    class Counting:
        of = staticmethod(counted)

    monkeypatch.setattr(certified, "Residuals", Counting)
    part = memory("clustered", "float32", 500, DIM, 16)
    search = lazy(0.9)
    for _ in range(2):
        search(queries(), [part], scale=SCALE)
    assert made == [500]
    assert search.certificate is not None
    assert len(search.certificate._residuals) == 1
    del part
    gc.collect()
    assert len(search.certificate._residuals) == 0


def test_certify_in_a_config_reaches_the_search() -> None:
    for is_certified in (False, True):
        config = FocusConfig(
            memory_layers=(0,), window=8, search="clustered", certify=is_certified, retain=0.75
        )
        search = make_search(config)
        assert isinstance(search, Clustered)
        assert (search.certificate is not None) == is_certified
    assert search.certificate is not None
    assert search.certificate.most == 0.25


def test_certify_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(LongFocusError, match="certify is True or False"):
        FocusConfig(memory_layers=(0,), window=8, certify="yes")  # pyrefly: ignore
