"""Clustered search is exact attention over the clusters that it chooses, and it chooses those that promise the most."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sources import ROWS, Together, plain
from torch import Tensor

from long import mostly_long
from longfocus.core.attention import Partial
from longfocus.memory import Part, clustered, dense
from longfocus.memory.audit import Audit, Width
from longfocus.memory.clustered import Clustered
from longfocus.memory.quantized import Scales, quantize
from longfocus.memory.sorting import cluster

HEADS, KV_HEADS, DIM, QUERIES, SCALE = 6, 2, 8, 5, 0.5
FIRST = 8
"""Clusters that are visited at least, of the 40 and more that there are."""
Memory = Callable[[], list[Part]]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
every_type = pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items(), ids=str)


@pytest.fixture(autouse=True)
def _first_round_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "TOGETHER", 0)


def pinned() -> Clustered:
    """A search that visits the best clusters once, and is content with whatever they hold."""
    audit = Audit(1e-9, FIRST)
    audit.width = Width(1e30, FIRST)
    return Clustered(audit=audit)


def pairs(lines: int, count: int) -> tuple[Tensor, Tensor]:
    key, value = (torch.randn(lines, KV_HEADS, count, DIM) for _ in range(2))
    return key, value


def queries(rows: int = ROWS) -> Tensor:
    return 2 * torch.randn(rows, HEADS, QUERIES, DIM)


def document(count: int = 300) -> Part:
    return cluster(Part(*pairs(1, count)), 40)


def narrow_document() -> Part:
    """Of int8 pairs."""
    (key, by_key), (value, by_value) = (quantize(tensor) for tensor in pairs(1, 200))
    return cluster(Part(key, value, scales=Scales(by_key, by_value)), 40)


def grown(lines: int = 2, rows: tuple[int, ...] = (1, 0, 1)) -> Part:
    """Lines with padding, of which one holds little."""
    real = torch.rand(lines, 250) < 0.8
    real[0, 90:] = False
    return cluster(Part(*pairs(lines, 250), real, rows), 40)


def blind() -> Part:
    real = torch.ones(3, 64, dtype=torch.bool)
    real[1] = False
    return cluster(Part(*pairs(3, 64), real, (0, 1, 2)), 40)


MEMORIES: dict[str, Memory] = {
    "a document": lambda: [document()],
    "several documents": lambda: [document(), document(90), document(500)],
    "int8": lambda: [narrow_document(), document()],
    "a short document": lambda: [document(), Part(*pairs(1, 9))],
    "rows with padding": lambda: [grown()],
    "rows that see other lines": lambda: [document(), grown(), grown(3, (2, 1, 0))],
    "an unsorted tail": lambda: [grown(), document(), Part(*pairs(ROWS, 31), None, (2, 1, 0))],
    "a blind row": lambda: [blind()],
}
every_memory = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)


def ranked(parts: Sequence[Part], row: int, kv_head: int, query: Tensor) -> tuple[Tensor, list]:
    """Expected log mass [queries, clusters] of all clusters that hold anything, and where they are."""
    ranks, places = [torch.empty(len(query), 0, dtype=torch.float64)], []
    for number, part in enumerate(parts):
        if part.clusters is None:
            continue
        own, line = part.clusters, part.line_of(row)
        for place, (start, stop) in enumerate(pairwise(own.starts[line, kv_head].tolist())):
            if start < stop:
                centroid, spread = (
                    t[line, kv_head, place].double() for t in (own.centroids, own.spread)
                )
                size = query.square().sum(-1) * spread / (2 * DIM)
                ranks.append((query @ centroid + size + torch.tensor(stop - start).log())[:, None])
                places.append((number, start, stop))
    return torch.cat(ranks, 1), places


def chosen(parts: Sequence[Part], query: Tensor) -> list[list[Tensor]]:
    """For every row and head, of every pair of all parts [queries, pairs], whether its cluster is visited."""
    found: list[list[Tensor]] = []
    for row in range(len(query)):
        found.append([])
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            ranks, places = ranked(parts, row, kv_head, query[row, head].double() * SCALE)
            sees = [torch.full((QUERIES, len(p)), p.clusters is None) for p in parts]
            best = ranks.topk(min(FIRST, len(places)), dim=1).indices
            for asks, own in enumerate(best.tolist()):
                for number, start, stop in (places[index] for index in own):
                    sees[number][asks, start:stop] = True
            found[-1].append(torch.cat(sees, 1))
    return found


def expected(parts: Sequence[Part], query: Tensor, softcap: float | None) -> Partial:
    """Attention over just the chosen pairs, by the formula; sorted parts have no order that it would mind."""
    both = Together([replace(p, clusters=None) for p in parts])
    mask = torch.stack([torch.stack(heads) for heads in chosen(parts, query.detach())])
    key, value = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (both.key, both.value))
    scores = (query @ key.mT) * SCALE
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~(mask & both.valid[:, None, None]), -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - torch.where(lse.isinf(), 0.0, lse)[..., None]).exp()
    return Partial(weights @ value, lse)


def close(found: Partial, wanted: Partial, tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@every_type
@every_memory
@pytest.mark.parametrize("softcap", mostly_long([None, 1.5], 1.5))
def test_a_search_is_attention_over_the_best_clusters(
    memory: Memory, dtype: torch.dtype, tolerance: float, softcap: float | None
) -> None:
    torch.set_default_dtype(dtype)
    parts, query = memory(), queries()
    found = pinned()(query, parts, scale=SCALE, softcap=softcap)
    close(found, expected(parts, query, softcap), tolerance)


@pytest.mark.parametrize("dtype", mostly_long(TOLERANCES, torch.float64), ids=str)
@every_memory
def test_gradients_are_those_of_attention_over_the_best_clusters(
    memory: Memory, dtype: torch.dtype
) -> None:
    torch.set_default_dtype(dtype)
    parts, query = memory(), queries().requires_grad_()
    weight = torch.randn(query.shape)
    found = pinned()(query, parts, scale=SCALE, softcap=3.0), expected(parts, query, 3.0)
    grads = []
    for output, lse in found:
        seen = torch.where(lse.isinf(), 0.0, lse)
        grads.append(torch.autograd.grad((output * weight).sum() + seen.sum(), query)[0])
    torch.testing.assert_close(*grads, atol=10 * TOLERANCES[dtype], rtol=0)


def test_pairs_that_carry_a_gradient_get_theirs_also_from_queries_without() -> None:
    # whatever an audit says: it must not be the last word
    torch.set_default_dtype(torch.float64)
    search = Clustered(0.999999)
    search.audit.width = Width(1e30, FIRST)
    key, value = (tensor.requires_grad_() for tensor in pairs(ROWS, 20))
    parts = [document(), Part(key, value, None, (0, 1, 2))]
    output, _ = search(queries(), parts, scale=0.01)
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(output.sum(), [key, value]))
    assert search.audit.report() is None


def test_queries_that_read_all_clusters_anyway_visit_more_of_them_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_default_dtype(torch.float64)
    query, document = 2 * torch.randn(1, KV_HEADS, 20, DIM), cluster(Part(*pairs(1, 900)), 80)
    few = pinned()(query, [document], scale=SCALE)
    # twenty queries with 8 of 80 clusters each are two to a cluster; more than a quarter of all is no visit
    for together, first in ((3, FIRST), (4, 2 * FIRST), (100, 2 * FIRST)):
        monkeypatch.setattr(clustered, "TOGETHER", together)
        found = pinned()(query, [document], scale=SCALE)
        assert found.lse.equal(few.lse) == (first == FIRST)
        monkeypatch.setattr(clustered, "TOGETHER", 0)
        wide = pinned()
        wide.audit.width = Width(1e30, first)
        close(found, wide(query, [document], scale=SCALE), 1e-12)


def test_documents_share_one_ranking() -> None:
    # all that matters lies in one document: the other one gets no visit
    torch.set_default_dtype(torch.float64)
    near, query = document(), torch.full((1, HEADS, QUERIES, DIM), 3.0)
    key, value = pairs(1, 300)
    far = cluster(Part(key - 9, value), 40)
    found = pinned()(query, [near, far], scale=SCALE)
    close(found, pinned()(query, [near], scale=SCALE), 1e-12)
    close(pinned()(query, [far, near], scale=SCALE), found, 1e-12)


def test_who_wants_many_clusters_gets_all() -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = [grown(), document(), Part(*pairs(1, 9))], queries()
    for width in (Width(1e-12, FIRST), Width(0.5, 1000)):
        search = pinned()
        search.audit.width = width
        found = search(query, parts, scale=SCALE)
        close(found, dense(query, parts, scale=SCALE), 1e-12)


def test_diffuse_attention_on_keys_without_clusters_is_dense_and_said_so() -> None:
    # nothing below linear cost would be honest
    torch.set_default_dtype(torch.float64)
    parts, query = [document(4000)], 0.1 * queries()
    search = Clustered(0.99)
    search.audit.width = Width(1e30, FIRST)
    found = search(query, parts, scale=SCALE)
    close(found, dense(query, parts, scale=SCALE), 1e-2)
    report = search.audit.report()
    assert report is not None
    assert report.widened > 0
    assert report.mean >= 0.99
    again = search(query, parts, scale=SCALE)
    close(again, dense(query, parts, scale=SCALE), 1e-2)


def test_padding_may_hold_anything() -> None:
    torch.set_default_dtype(torch.float64)
    real = torch.rand(ROWS, 300) < 0.6
    key, value = pairs(ROWS, 300)
    query = queries()
    part = Part(key, value, real, (0, 1, 2))
    wild = replace(
        part,
        key=key.masked_fill(~real[:, None, :, None], 1e6),
        value=value.masked_fill(~real[:, None, :, None], torch.nan),
    )
    for search in (pinned(), Clustered(0.999999)):
        found = search(query, [cluster(wild, 40)], scale=SCALE)
        again = pinned() if search.audit.retain < 0.5 else Clustered(0.999999)
        close(found, again(query, [cluster(part, 40)], scale=SCALE), 1e-12)
        assert found.output.isfinite().all()


def test_rows_answer_as_if_they_were_alone() -> None:
    torch.set_default_dtype(torch.float64)
    part, query = grown(3, (2, 0, 2)), queries()
    together = pinned()(query, [part, document_ := document()], scale=SCALE)
    for row in range(ROWS):
        own = replace(part, rows=(part.line_of(row),))
        alone = pinned()(query[row : row + 1], [own, document_], scale=SCALE)
        close(Partial(*(t[row : row + 1] for t in together)), alone, 1e-12)


def test_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)
    parts, query = [document(), grown()], queries()
    wanted = pinned()(query, parts, scale=SCALE)
    monkeypatch.setattr(clustered, "HELD", 1)
    monkeypatch.setattr("longfocus.memory.visits.HELD", 1)
    close(pinned()(query, parts, scale=SCALE), wanted, 1e-12)


def test_without_anything_sorted_it_is_dense_and_measures_nothing() -> None:
    parts, query = [Part(*pairs(1, 50))], queries()
    search = Clustered()
    for one, other in zip(
        search(query, parts, scale=SCALE), dense(query, parts, scale=SCALE), strict=True
    ):
        assert one.equal(other)
    assert search.audit.report() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_equal_dense_where_all_is_visited(dtype: torch.dtype) -> None:
    parts = [Part(*(t.to(dtype) for t in pairs(1, 300)))]
    query = queries().to(dtype)
    search = pinned()
    search.audit.width = Width(1e-12, FIRST)
    found = search(query, [cluster(part, 40) for part in parts], scale=SCALE)
    close(
        found,
        plain(query.float(), [p32(p) for p in parts], scale=SCALE, softcap=None, top_k=None),
        3e-2,
    )


def p32(part: Part) -> Part:
    return Part(part.key.float(), part.value.float())


def test_autocast_rounds_products_and_changes_no_choice() -> None:
    # keys far from zero: in bfloat16 many ranks would be equal
    key, value = pairs(1, 300)
    part = cluster(Part((key + 8).bfloat16().float(), value), 40)
    query = queries().bfloat16().float()
    wanted = pinned()(query, [part], scale=SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pinned()(query, [part], scale=SCALE)
    close(found, wanted, 1e-1)


def test_nothing_is_visited_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(clustered, "DENSE_SHARE", 0.5)
    part, query = document(2000), 4 * queries()
    part = cluster(replace(part, clusters=None), 128)
    search = pinned()
    search.audit.width = Width(0.02, FIRST)
    _, lse = search(query, [part], scale=SCALE)
    assert (lse <= dense(query, [part], scale=SCALE).lse + 1e-12).all()
    few = pinned()(query, [part], scale=SCALE).lse
    assert (lse >= few - 1e-12).all()
    assert (lse > few + 1e-3).any()
