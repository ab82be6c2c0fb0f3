"""Attention over runs of pairs, of some queries each, as in visits to clusters: in C where it can be, else in torch.

A visit is small: in Python most of its time would go into calling torch (docs/speed.md).
"""

import ctypes
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from longfocus.core import kernels
from longfocus.core.attention import Partial, merge
from longfocus.core.blocked import Scoring, exact_dtype
from longfocus.core.native_library import native_library

MANY = 8
"""With so many queries of one run torch's matrix products win, unless C has matrix tiles (AMX)."""
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_WIDEST = 512


class Runs(NamedTuple):
    """Pairs [starts[r], stops[r]) get the visits [asking[r], asking[r + 1]).

    Without an `order` visit v is that of query v. With one it is that of query order[v] // each, and its answer is
    row order[v]: so many visits belong to a query, and lie side by side in the answer.
    """

    starts: Int[Tensor, " runs"]
    stops: Int[Tensor, " runs"]
    asking: Int[Tensor, " runs+1"]
    order: Int[Tensor, " visits"] | None = None
    each: int = 1

    def answers(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the output and lse of all visits."""
        exact = exact_dtype(query)
        shape = (len(query) * self.each, query.shape[1])
        return query.new_empty(shape, dtype=exact), query.new_empty(shape[0], dtype=exact)

    def of_run(self, query: Tensor, first: int, last: int) -> tuple[slice | Tensor, Tensor]:
        """Rows of the answers of some visits, and their queries."""
        if self.order is None:
            return slice(first, last), query[first:last]
        rows = self.order[first:last]
        return rows, query[rows // self.each]


class Pairs(NamedTuple):
    """Keys and values of one line and KV head; int8 ones with a scale each."""

    key: Shaped[Tensor, "pairs dim"]
    value: Shaped[Tensor, "pairs dim"]
    key_scale: Float[Tensor, " pairs"] | None = None
    value_scale: Float[Tensor, " pairs"] | None = None


def attend_runs(
    query: Float[Tensor, "queries dim"],
    pairs: Pairs,
    runs: Runs,
    *,
    scale: float,
    softcap: float | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "visits dim"], Float[Tensor, " visits"]]:
    """Output and lse of every visit; differentiable. An empty run gives zero and -inf. Written `into` what is given."""
    library = native_library() if _is_native(query, pairs) else None
    if library is None:
        return plain(query, pairs, runs, scale=scale, softcap=softcap, into=into)
    in_tiles = _fits_tiles(library, query, pairs)
    output, lse = runs.answers(query) if into is None else into
    call = _Call(library, query, pairs, runs, scale, softcap, in_tiles)
    is_heavy = (runs.asking.diff() >= MANY) & (not in_tiles)
    call.fill(output, lse, ~is_heavy)
    scoring = Scoring(scale=scale, softcap=softcap)
    _attend_each(query, pairs, runs, is_heavy.nonzero()[:, 0], scoring, output, lse)
    return output, lse


def attend_all(
    query: Float[Tensor, "queries dim"],
    pairs: Pairs,
    *,
    scale: float,
    softcap: float | None = None,
) -> Partial | None:
    """Every query over all pairs, which are widened where they are multiplied; None where C cannot do that."""
    library = native_library() if _is_native(query, pairs) else None
    if library is None or not _fits_tiles(library, query, pairs):
        return None
    # as many runs as there are threads
    each = min(torch.get_num_threads(), max(1, len(pairs.key)))
    bounds = torch.linspace(0, len(pairs.key), each + 1).long()
    visits = torch.arange(len(query) * each).view(-1, each).T.flatten()
    runs = Runs(bounds[:-1], bounds[1:], torch.arange(each + 1) * len(query), visits, each)
    output, lse = attend_runs(query, pairs, runs, scale=scale, softcap=softcap)
    outputs, lses = (
        output.unflatten(0, (-1, each)).unbind(1),
        lse.unflatten(0, (-1, each)).unbind(1),
    )
    return merge([Partial(*own) for own in zip(outputs, lses, strict=True)])


def attend_lines(
    query: Float[Tensor, "lines heads query dim"],
    pairs: Callable[[int, int], Pairs],
    sizes: tuple[int, int],
    *,
    scale: float,
    softcap: float | None = None,
) -> Partial | None:
    """`attend_all` for every line and KV head, of which there are `sizes`; None where C cannot do that."""
    lines, kv_heads = sizes
    # (lines, kv_heads, groups * query, dim)
    folded = query.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    output = torch.empty_like(folded, dtype=exact_dtype(query))
    lse = output.new_empty(output.shape[:-1])
    for own in product(range(lines), range(kv_heads)):
        found = attend_all(folded[own], pairs(*own), scale=scale, softcap=softcap)
        if found is None:
            return None
        output[own], lse[own] = found
    return Partial(output.view(*query.shape), lse.view(query.shape[:-1]))


def plain(
    query: Float[Tensor, "queries dim"],
    pairs: Pairs,
    runs: Runs,
    *,
    scale: float,
    softcap: float | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "visits dim"], Float[Tensor, " visits"]]:
    """The same, run by run in torch."""
    output, lse = runs.answers(query) if into is None else into
    every = torch.arange(len(runs.starts))
    _attend_each(query, pairs, runs, every, Scoring(scale=scale, softcap=softcap), output, lse)
    return output, lse


def _attend_each(
    query: Tensor,
    pairs: Pairs,
    runs: Runs,
    which: Tensor,
    scoring: Scoring,
    output: Tensor,
    lse: Tensor,
) -> None:
    """Fill in the answers of the visits to some of the runs."""
    bounds = (runs.starts, runs.stops, runs.asking[:-1], runs.asking[1:])
    for start, stop, first, last in zip(*(own[which].tolist() for own in bounds), strict=True):
        rows, asking = runs.of_run(query, first, last)
        key, value = _numbers(pairs, slice(start, stop), query.dtype)
        output[rows], lse[rows] = _attend(asking, key, value, scoring)


def _attend(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    if not len(key):
        exact = exact_dtype(query)
        return torch.zeros_like(query, dtype=exact), query.new_full(
            (len(query),), -torch.inf, dtype=exact
        )
    given = (query[None, None], key[None, None], value[None, None])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        output, lse = kernels.KeySetAttention.apply(*given, scoring)
    else:
        output, lse = kernels.forward(*given, scoring)
    return output[0, 0], lse[0, 0]


def _numbers(pairs: Pairs, own: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = pairs.key[own].to(dtype), pairs.value[own].to(dtype)
    if pairs.key_scale is None or pairs.value_scale is None:
        return key, value
    return key * pairs.key_scale[own, None].to(dtype), value * pairs.value_scale[own, None].to(
        dtype
    )


class _Visits(ctypes.Structure):
    """`visits` in native/runs.c."""

    _fields_ = (("order", ctypes.c_void_p), ("each", ctypes.c_int64))


class _Vectors(ctypes.Structure):
    """`vectors` in native/runs.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("scale_stride", ctypes.c_int64),
    )


def _is_native(query: Tensor, pairs: Pairs) -> bool:
    """Whether C may do it: for numbers that it knows, where nobody asks for gradients."""
    tensors = (query, pairs.key, pairs.value)
    return (
        query.dtype in (torch.float32, torch.bfloat16)
        and pairs.key.dtype in _KINDS
        and pairs.key.dtype == pairs.value.dtype
        and (pairs.key.dtype == torch.int8) == (pairs.key_scale is not None)
        and pairs.key.shape == pairs.value.shape
        and pairs.key.shape[-1] <= _WIDEST
        and all(t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def _fits_tiles(library: ctypes.CDLL, query: Tensor, pairs: Pairs) -> bool:
    is_narrow = query.dtype == torch.bfloat16 and pairs.key.dtype != torch.float32
    return is_narrow and bool(library.has_tiles(query.shape[1]))


class _Call(NamedTuple):
    """Arguments of `attend_runs` in native/runs.c."""

    library: ctypes.CDLL
    query: Tensor
    pairs: Pairs
    runs: Runs
    scale: float
    softcap: float | None
    in_tiles: bool

    def fill(self, output: Tensor, lse: Tensor, which: Tensor) -> None:
        """Write output and lse of the visits to some of the runs."""
        query, runs = self.query.contiguous(), self.runs
        scaled = query if self.in_tiles else (query.float() * self.scale)
        total = torch.empty_like(lse)
        bounds = (runs.starts, runs.stops, runs.asking[:-1], runs.asking[1:])
        if not which.all():
            bounds = tuple(own[which] for own in bounds)
        bounds = [own.contiguous() for own in bounds]
        order = None if runs.order is None else runs.order.contiguous()
        self.library.attend_runs(
            None if self.in_tiles else _pointer(scaled),
            _pointer(query) if self.in_tiles else None,
            ctypes.c_float(self.scale),
            _Visits(None if order is None else order.data_ptr(), runs.each),
            _vectors(self.pairs.key, self.pairs.key_scale),
            _vectors(self.pairs.value, self.pairs.value_scale),
            _KINDS[self.pairs.key.dtype],
            ctypes.c_int64(len(bounds[0])),
            *map(_pointer, bounds),
            ctypes.c_int64(query.shape[1]),
            ctypes.c_float(self.softcap or 0.0),
            *map(_pointer, (output, lse, total)),
            torch.get_num_threads(),
        )


def _vectors(vectors: Tensor, scale: Tensor | None) -> _Vectors:
    own = (None, 0) if scale is None else (scale.data_ptr(), scale.stride(0))
    return _Vectors(vectors.data_ptr(), vectors.stride(0), *own)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
