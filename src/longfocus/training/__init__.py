"""From documents to a model whose memory works.

sources, records, readers, tables, chat       where documents come from
encode, tokenised, token_file, stream         tokenised once, or while training
mixture, shards, rows, conversations          in which order, and as which rows of a batch
contexts, schedule, crossbatch, methods       who sees whom; other methods in transformer_xl, real_memory
recipe, model, adapters, run, trainer         `longfocus train continue | instruct | scratch`
optimizers, row_batches, saving               parts of the trainer: Muon, tensors of rows, what is left at the end
language, language_data, language_recipe      `longfocus train language`: one base, one variant per method
dictionary, code                              the shipped models, trained by the small loop of `loop`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longfocus.training.rows import Document, document_rows, linear_rows
    from longfocus.training.run import train_recipe

__all__ = ["Document", "document_rows", "linear_rows", "train_recipe"]

# Imported when they are first used, so that command lines can be read without torch.
_HOMES = {
    "Document": "rows",
    "document_rows": "rows",
    "linear_rows": "rows",
    "train_recipe": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longfocus.training' has no attribute {name!r}")
    return getattr(import_module(f"longfocus.training.{_HOMES[name]}"), name)
