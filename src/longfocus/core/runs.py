"""Attention over runs of pairs, of some queries each, as in visits to clusters: in C where it can be, else in torch.

A visit is small: in Python most of its time would go into calling torch (docs/speed.md).
"""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from longfocus.core import kernels
from longfocus.core.blocked import Scoring, exact_dtype
from longfocus.core.native_library import native_library

MANY, MANY_IN_TILES = 8, 128
"""With so many queries of one run torch's matrix products win; where C has matrix tiles (AMX), later."""
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_WIDEST = 512


class Runs(NamedTuple):
    """Pairs [starts[r], stops[r]) are looked at by queries [asking[r], asking[r + 1])."""

    starts: Int[Tensor, " runs"]
    stops: Int[Tensor, " runs"]
    asking: Int[Tensor, " runs+1"]


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
) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, " queries"]]:
    """Output and lse of every query over its run; differentiable. An empty run gives zero and -inf."""
    library = native_library() if _is_native(query, pairs) else None
    if library is None:
        return plain(query, pairs, runs, scale=scale, softcap=softcap)
    in_tiles = pairs.key.dtype == query.dtype == torch.bfloat16 and library.has_tiles(
        query.shape[1]
    )
    output = query.new_empty(query.shape, dtype=torch.float32)
    lse = query.new_empty(len(query), dtype=torch.float32)
    call = _Call(library, query, pairs, scale, softcap, bool(in_tiles))
    heavy = (runs.asking.diff() >= (MANY_IN_TILES if in_tiles else MANY)).nonzero()[:, 0].tolist()
    if not heavy:
        call.fill(output, lse, runs.starts, runs.stops, runs.asking[:-1], runs.asking[1:])
        return output, lse
    is_light = torch.ones(len(runs.starts), dtype=torch.bool)
    is_light[heavy] = False
    chosen = (runs.starts, runs.stops, runs.asking[:-1], runs.asking[1:])
    call.fill(output, lse, *(numbers[is_light] for numbers in chosen))
    for run in heavy:
        own = slice(int(runs.asking[run]), int(runs.asking[run + 1]))
        key, value = _numbers(
            pairs, slice(int(runs.starts[run]), int(runs.stops[run])), query.dtype
        )
        scoring = Scoring(scale=scale, softcap=softcap)
        output[own], lse[own] = _attend(query[own], key, value, scoring)
    return output, lse


def plain(
    query: Float[Tensor, "queries dim"],
    pairs: Pairs,
    runs: Runs,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, " queries"]]:
    """The same, run by run in torch."""
    scoring = Scoring(scale=scale, softcap=softcap)
    found, asking = [], runs.asking.tolist()
    for run, (start, stop) in enumerate(
        zip(runs.starts.tolist(), runs.stops.tolist(), strict=True)
    ):
        own = query[asking[run] : asking[run + 1]]
        key, value = _numbers(pairs, slice(start, stop), query.dtype)
        found.append(_attend(own, key, value, scoring))
    if not found:
        exact = exact_dtype(query)
        return query.to(exact), query.new_zeros(len(query), dtype=exact)
    outputs, lses = zip(*found, strict=True)
    return torch.cat(outputs), torch.cat(lses)


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


class _Call(NamedTuple):
    """Arguments of `attend_runs` in native/runs.c."""

    library: ctypes.CDLL
    query: Tensor
    pairs: Pairs
    scale: float
    softcap: float | None
    in_tiles: bool

    def fill(
        self,
        output: Tensor,
        lse: Tensor,
        starts: Tensor,
        stops: Tensor,
        firsts: Tensor,
        lasts: Tensor,
    ) -> None:
        """Write output and lse of the queries [firsts, lasts) over the pairs [starts, stops) of every run."""
        query = self.query.contiguous()
        scaled = query if self.in_tiles else (query.float() * self.scale)
        total = torch.empty_like(lse)
        bounds = [numbers.contiguous() for numbers in (starts, stops, firsts, lasts)]
        self.library.attend_runs(
            None if self.in_tiles else _pointer(scaled),
            _pointer(query) if self.in_tiles else None,
            ctypes.c_float(self.scale),
            _vectors(self.pairs.key, self.pairs.key_scale),
            _vectors(self.pairs.value, self.pairs.value_scale),
            _KINDS[self.pairs.key.dtype],
            ctypes.c_int64(len(starts)),
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
