"""An audit measures the share of attention that was kept, and widens the search until it is enough."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longfocus.core.attention import Partial
from longfocus.memory import Part, dense
from longfocus.memory.audit import OFTEN, RECENT, SELDOM, Audit, Width, retained
from longfocus.memory.clustered import Clustered
from longfocus.memory.sorting import cluster

HEADS, DIM = 4, 8


def found(lse: Tensor) -> Partial:
    return Partial(torch.zeros(*lse.shape, DIM), lse)


class Searched:
    """A search that keeps a share which depends on how far it goes, and what was asked of it."""

    def __init__(self, audit: Audit, share: Callable[[Width], float]) -> None:
        self.audit, self.share = audit, share
        self.asked: list[int] = []
        self.exact: list[Tensor] = []

    def search(self, query: Tensor) -> Partial:
        self.asked.append(query.shape[2])
        kept = torch.tensor(self.share(self.audit.width)).log()
        return found(self.truth(query) + kept)

    def dense(self, query: Tensor) -> Partial:
        self.exact.append(query)
        return found(self.truth(query))

    @staticmethod
    def truth(query: Tensor) -> Tensor:
        return query.sum(-1)

    def check(self, queries: int, first: int = 0) -> Partial:
        places = torch.arange(first, first + queries, dtype=torch.get_default_dtype())
        query = places[None, None, :, None].expand(1, HEADS, queries, DIM) / 1000
        return self.audit.check(query, self.search(query), self.search, self.dense)


def test_what_was_kept_equals_the_formula() -> None:
    key, value = (torch.randn(1, 2, 2000, DIM) for _ in range(2))
    part = cluster(Part(key, value))
    query = 2 * torch.randn(2, HEADS, 130, DIM)
    search = Clustered(1e-9)
    search.audit.width = Width(1e30, 8)
    own = search(query, [part], scale=0.5)
    places = [0, 64, 128]
    keys = key.double().repeat_interleave(2, 1)
    truth = (query.double()[:, :, places] @ keys.mT * 0.5).logsumexp(-1)
    kept = (own.lse.double()[:, :, places] - truth).exp()
    report = search.audit.report()
    assert report is not None
    assert kept.min() < 0.9 < 0.99 > kept.mean()
    torch.testing.assert_close(
        torch.tensor(search.audit.kept).double(), kept.flatten(), atol=1e-5, rtol=0
    )
    assert report.queries == kept.numel()
    assert report.mean == pytest.approx(float(kept.mean()), abs=1e-5)
    assert report.p10 == pytest.approx(float(kept.flatten().quantile(0.1)), abs=1e-5)
    assert report.least == pytest.approx(float(kept.min()), abs=1e-5)
    assert report.widened == 0


def test_nothing_is_reported_before_anything_was_measured() -> None:
    audit = Audit(0.99)
    assert audit.report() is None
    assert retained({3: Clustered(audit=audit), 5: dense}) == {}
    Searched(audit, lambda width: 1.0).check(1)
    assert list(retained({3: Clustered(audit=audit), 5: dense})) == [3]


def test_a_first_call_is_audited_and_then_ever_less_often() -> None:
    audit = Audit(0.9)
    own = Searched(audit, lambda width: 1.0)
    for place in range(5000):
        own.check(1, place)
    places = [round(float(query[0, 0, 0, 0]) * 1000) for query in own.exact]
    gaps = [b - a for a, b in pairwise(places)]
    assert places[0] == 0
    assert gaps[:6] == [OFTEN, 2 * OFTEN, 4 * OFTEN, 8 * OFTEN, SELDOM, SELDOM]
    assert set(gaps[5:]) == {SELDOM}


def test_positions_are_the_same_however_many_come_at_once() -> None:
    seen = []
    for step in (1, 7, 64):
        own = Searched(Audit(0.9), lambda width: 1.0)
        for place in range(0, 448, step):
            own.check(step, place)
        seen.append([round(float(q) * 1000) for query in own.exact for q in query[0, 0, :, 0]])
    assert seen[0] == seen[1] == seen[2] == [0, 64, 192]
    own = Searched(Audit(0.9), lambda width: 1.0)
    own.check(200)
    assert own.exact[0].shape[2] == 4


def test_too_little_widens_until_it_is_enough_and_the_answer_is_the_wider_one() -> None:
    audit = Audit(0.9, least=1)
    own = Searched(audit, lambda width: min(1.0, width.least / 16))
    answer = own.check(3)
    assert audit.width == Width((1 - 0.9) / 16, 16)
    assert audit.widened == 4
    torch.testing.assert_close(answer.lse, torch.arange(3).expand(1, HEADS, 3) * DIM / 1000)
    assert audit.kept == pytest.approx([1.0] * HEADS)
    # widening is tried on what was audited, and all is searched once more
    assert own.asked == [3, 1, 1, 1, 1, 3]
    assert len(own.exact) == 1
    own.check(64, 3)
    assert audit.widened == 4


def test_a_failure_brings_audits_back() -> None:
    audit = Audit(0.9)
    share = [1.0]
    own = Searched(audit, lambda width: share[0] if width.least == 1 else 1.0)
    own.check(3 * OFTEN)
    own.check(SELDOM)
    assert audit._interval > OFTEN
    share[0] = 0.1
    own.check(SELDOM)
    assert audit.widened == 1
    assert audit._interval == OFTEN


def test_what_never_suffices_ends() -> None:
    own = Searched(Audit(0.9), lambda width: 0.5)
    for place in range(0, 40 * OFTEN, OFTEN):
        own.check(OFTEN, place)
    assert own.audit.report() is not None


def test_the_mean_of_the_latest_measurements_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RECENT // 4
    monkeypatch.setattr("longfocus.memory.audit.RECENT", recent)
    audit = Audit(0.9)
    share = [0.99]
    own = Searched(audit, lambda width: share[0] if width.least == 1 else 1.0)
    while len(audit.kept) < recent:
        own.check(1)
    share[0] = 0.5
    before = len(audit.kept)
    while not audit.widened:
        own.check(1)
    late = len(audit.kept) - before - HEADS
    # so many measurements of .5 among the recent ones bring the mean under .9
    needed = next(n for n in range(recent) if (0.99 * (recent - n) + 0.5 * n) / recent < 0.9)
    assert late < needed <= late + HEADS


@pytest.mark.parametrize("poor", range(4))
def test_every_head_is_heard_however_many_there_are(poor: int) -> None:
    # more measurements in one audit than those whose mean decides
    heads = 2 * RECENT
    audit = Audit(0.9)
    lse = torch.zeros(1, heads, 1)
    lse[:, poor * heads // 4 : (poor + 1) * heads // 4] = torch.tensor(0.1).log()
    query = torch.zeros(1, heads, 1, DIM)

    def search(query: Tensor) -> Partial:
        return found(torch.zeros(1, heads, 1))

    audit.check(query, found(lse), search, search)
    assert audit.widened == 1


def test_queries_that_see_nothing_are_not_counted() -> None:
    audit = Audit(0.9)
    nothing = torch.full((1, HEADS, 1), -torch.inf)

    def search(query: Tensor) -> Partial:
        return found(nothing)

    audit.check(torch.zeros(1, HEADS, 1, DIM), found(nothing), search, search)
    assert audit.report() is None
    assert audit.widened == 0


def test_what_misses_everything_kept_nothing() -> None:
    audit = Audit(0.9)

    def search(query: Tensor) -> Partial:
        return found(torch.zeros(1, HEADS, 1))

    nothing = found(torch.full((1, HEADS, 1), -torch.inf))
    audit.check(torch.zeros(1, HEADS, 1, DIM), nothing, search, search)
    assert audit.widened == 1


def test_a_search_that_must_keep_all_ends_dense() -> None:
    torch.set_default_dtype(torch.float64)
    key, value = (torch.randn(1, 2, 3000, DIM) for _ in range(2))
    parts, query = [cluster(Part(key, value))], torch.randn(1, HEADS, 3, DIM)
    search = Clustered(1 - 1e-9)
    search.audit.width = Width(0.9, 8)
    own = search(query, parts, scale=0.5)
    for one, other in zip(own, dense(query, parts, scale=0.5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)
    assert search.audit.widened > 0


def test_nothing_is_audited_where_gradients_are_asked_for() -> None:
    parts = [cluster(Part(*(torch.randn(1, 2, 300, DIM) for _ in range(2))), 40)]
    search = Clustered(0.999)
    query = torch.randn(1, HEADS, 100, DIM)
    search(query.requires_grad_(), parts, scale=0.5)
    assert search.audit.report() is None
    search(query.detach(), parts, scale=0.5)
    report = search.audit.report()
    assert report is not None
    assert report.queries == 2 * HEADS
