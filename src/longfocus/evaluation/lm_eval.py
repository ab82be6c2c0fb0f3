"""lm-evaluation-harness on a model with memory: the model `longfocus` for its command line and its Python interface.

    python -m longfocus.evaluation.lm_eval --model longfocus --model_args pretrained=MODEL search=exact --tasks ...

This is the harness's own command with one more model; all its options are there. `FocusLM` is its Hugging Face model
(HFLM) but for what a memory changes:

- nothing is cut away, unless `max_length` says so: what is beyond the window goes to the memory;
- what fits the window takes HFLM's own path, so scores of short tasks are those of the plain model;
- padding moves the borders of windows, so what is longer is batched with prompts of equal length only;
- a long context is read once for all its continuations, and logits are made for the continuations alone.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longfocus.config import FocusConfig
from longfocus.errors import LongFocusError
from longfocus.evaluation.choosing import score
from longfocus.evaluation.memory_options import MemoryOptions
from longfocus.hf.cache import FocusCache
from longfocus.hf.pretrained import from_pretrained, read_config, resolve
from longfocus.inference.session import Session

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry
    from lm_eval.models.huggingface import HFLM
    from tqdm import tqdm
except ImportError as error:
    raise LongFocusError(
        f"This needs lm-evaluation-harness ({error}). Install it: pip install 'longfocus[lm-eval]'."
    ) from error

UNLIMITED_TOKENS = 10**12
"""The harness wants a number."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts (the key of its cache of answers), context and continuation."""

Likelihood = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is what greedy decoding would write."""


class FocusLM(HFLM):
    """HFLM for models with memory.

    `pretrained` is a folder, a hub id, the name of a shipped model, or an attached model with its `tokenizer=`. A model
    that was saved without memory gets one by `memory_layers` (such as 8+16+24 on the command line), `window` and
    `positions`. `search` and the other settings of the memory are those of `longfocus evaluate` (`MemoryOptions`).
    `window_prefix` begins every window of a long context that is only read, as in `Session`; without it a long context
    is a prompt as for `generate`. `max_length`: tokens beyond are cut away on the left, as by HFLM. Everything else is
    HFLM's. Raises LongFocusError for a model without memory.
    """

    # HFLM says less of them
    tokenizer: Any
    softmax_dtype: Any
    mixed_precision_dtype: Any

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        *,
        max_length: int | None = None,
        memory_layers: str | int | Sequence[int] = (),
        window: int | None = None,
        positions: str | None = None,
        window_prefix: str | Sequence[int] = (),
        search: Any = None,
        top_k: int | None = None,
        retain: float | None = None,
        index: str | None = None,
        memory_dtype: Any = None,
        memory_gib: float | None = None,
        spill_folder: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        memory = MemoryOptions(
            search=search,
            top_k=top_k,
            retain=retain,
            index=index,
            memory_dtype=memory_dtype,
            memory_gib=memory_gib,
            spill_folder=None if spill_folder is None else Path(spill_folder),
        )
        self._attached = _attached(memory_layers, window, positions)
        place = resolve(pretrained) if isinstance(pretrained, str | Path) else pretrained
        super().__init__(place, max_length=max_length or UNLIMITED_TOKENS, **kwargs)
        model: Any = self.model
        self.session = Session(
            model, self.tokenizer, window_prefix=window_prefix, **memory.of_session
        )
        focus: FocusConfig = model.focus.config
        self.window, self.kept = focus.window, focus.kept
        self._fits = focus.window if focus.split == "when_needed" else focus.kept

    def _get_config(self, pretrained: str, *, revision: str = "main", **unused: Any) -> None:
        config = read_config(pretrained, revision=revision)
        has_memory = bool(getattr(config, "focus", None))
        if has_memory and self._attached:
            raise LongFocusError(
                f"{pretrained} was saved with a memory of its own. Leave out {', '.join(self._attached)}."
            )
        if not has_memory:
            if not {"memory_layers", "window"} <= set(self._attached):
                raise LongFocusError(
                    f"{pretrained} was saved without a memory. Got {self._attached or 'none to attach'}. Add both "
                    "memory_layers and window to --model_args, such as memory_layers=8+16+24 window=2048, or use "
                    "--model hf."
                )
            config.focus = FocusConfig(**self._attached).to_dict()
        self._config = config
        # HFLM asks it for the model, with all that says where and how it is loaded
        load = partial(from_pretrained, config=config)
        self.AUTO_MODEL_CLASS: Any = SimpleNamespace(from_pretrained=load)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        # batches are of what fits the window, or of prompts that are read window by window
        limit, self._max_length = self._max_length, min(self.max_length, self.window)
        try:
            return super()._detect_batch_size(requests, pos)
        finally:
            self._max_length = limit

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        answers: dict[int, Likelihood] = {}
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        short: list[int] = []
        for number, (_, context, continuation) in enumerate(requests):
            # the last token is asked for, not read
            if min(len(context) + len(continuation) - 1, self.max_length) <= self._fits:
                short.append(number)
            else:
                together[self._cut_to_length(context, continuation)].append(number)
        if short:
            chosen: Any = [requests[number] for number in short]
            found = super()._loglikelihood_tokens(chosen, disable_tqdm, override_bs)
            answers.update(zip(short, found, strict=True))
        with tqdm(
            total=sum(map(len, together.values())),
            disable=disable_tqdm or self.rank != 0 or not together,
            desc="Running loglikelihood requests that need memory",
        ) as line:
            for context, members in together.items():
                for number, answer in zip(
                    members,
                    self._after(context, [requests[number][2] for number in members]),
                    strict=True,
                ):
                    answers[number] = answer
                    if (texts := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answer)
                    line.update()
        return [answers[number] for number in range(len(requests))]

    def _cut_to_length(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The context without what `max_length` leaves no room for."""
        room = self.max_length + 1 - len(continuation)
        assert room > 0, (
            f"a continuation of {len(continuation)} tokens, max_length={self.max_length}"
        )
        return tuple(context[-room:])

    def _after(
        self, context: tuple[int, ...], continuations: list[list[int]]
    ) -> Iterator[Likelihood]:
        """What each continuation has behind the same context, which is read once."""
        with self._computing():
            cache, rest = self._seen(torch.tensor([context], device=self.device))
            last = self.model(rest, past_key_values=cache, logits_to_keep=1).logits
        for continuation in continuations:
            tokens = torch.tensor([continuation], device=self.device)
            with self._computing():
                dtype = self.softmax_dtype or torch.float32
                found = score(self.model, cache, last, tokens, dtype)
            yield found.log_likelihoods[0], found.are_greedy[0]

    def _seen(self, prompts: Tensor) -> tuple[FocusCache, Tensor]:
        """A cache for prompts `[rows, tokens]`, and what it has yet to see of them."""
        if not self.session.window_prefix or prompts.shape[1] <= self._fits:
            return self.session.cache(), prompts
        assert len(prompts) == 1, "a document is seen by all rows"
        self.session.read(prompts[0, : -self.kept].cpu(), progress=False)
        try:
            return self.session.cache(), prompts[:, -self.kept :]
        finally:
            self.session.documents.clear()

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        """Prompts `[rows, tokens]`, padded on the left, and what follows each of them, padded on the right."""
        mask = kwargs.pop("attention_mask")
        if max_length <= self._fits:
            return super()._model_generate(context, max_length, stop, attention_mask=mask, **kwargs)
        new_tokens = max_length - context.shape[1]
        new = context.new_full((len(context), new_tokens), self.tokenizer.pad_token_id)
        for rows in self._equally_long(mask):
            prompts = context[rows, context.shape[1] - int(mask[rows[0]].sum()) :]
            cache, rest = self._seen(prompts)
            length = rest.shape[1]
            own = {**kwargs, "attention_mask": torch.ones_like(rest), "past_key_values": cache}
            whole = super()._model_generate(rest, length + new_tokens, stop, **own)
            found = whole[:, length:]
            new[rows, : found.shape[1]] = found
        return torch.cat([context, new], 1)

    def _equally_long(self, mask: Tensor) -> list[list[int]]:
        """Rows that have equally many tokens."""
        if self.session.window_prefix:
            return [[row] for row in range(len(mask))]
        together: dict[int, list[int]] = defaultdict(list)
        for row, tokens in enumerate(mask.sum(1).tolist()):
            together[tokens].append(row)
        return list(together.values())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """As HFLM calls a model."""
        dtype = self.mixed_precision_dtype
        with (
            torch.no_grad(),
            torch.autocast(self.session.model.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield


def _attached(
    memory_layers: str | int | Sequence[int], window: int | None, positions: str | None
) -> dict[str, Any]:
    """The memory for a model that was saved without one, as far as it was given."""
    layers: Any = memory_layers
    if isinstance(layers, str | int):
        # the harness splits its arguments at commas, and takes a single number for a number
        words = str(layers).strip("[]() ").replace(",", "+").split("+")
        if not all(word.strip().isdigit() for word in words):
            raise LongFocusError(
                f"memory_layers={memory_layers!r} are no layer numbers. Join them by +, such as memory_layers=8+16+24."
            )
        layers = tuple(map(int, words))
    given = {"memory_layers": tuple(layers) or None, "window": window, "positions": positions}
    return {name: value for name, value in given.items() if value is not None}


def register() -> None:
    """Make the model `longfocus` known to the harness."""
    if "longfocus" not in model_registry:
        model_registry.register("longfocus", target="longfocus.evaluation.lm_eval:FocusLM")


def main() -> int:
    """The harness's own command line, which also knows the model `longfocus`."""
    register()
    try:
        cli_evaluate()
    except LongFocusError as error:
        sys.stderr.write(f"longfocus: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
