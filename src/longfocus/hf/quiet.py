"""A warning of transformers that is wrong for a model with memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "transformers.generation.stopping_criteria"
_REMINDER = "friendly reminder"


@contextmanager
def without_length_reminder() -> Iterator[None]:
    """Texts longer than `max_position_embeddings` are what windows are for."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return _REMINDER not in str(record.msg)

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
