"""Rows (`rows.py`, `conversations.py`) as the batches of tensors that the trainer takes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from longfocus.core.labels import NO_LOSS
from longfocus.training.conversations import ConversationRows
from longfocus.training.rows import Rows


class RowBatches(IterableDataset):
    """Batches of rows as tensors; it goes on where it stopped."""

    def __init__(self, rows: Rows | ConversationRows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.rows:
            targets = torch.from_numpy(batch["target_tokens"]).long()
            has_loss = torch.from_numpy(batch["loss_masks"]) > 0
            labels = targets.masked_fill(~has_loss, NO_LOSS)
            yield {
                "input_ids": torch.from_numpy(batch["input_tokens"]).long(),
                "labels": labels,
                # under this name transformers counts them as they are
                "shift_labels": labels,
                "documents": torch.from_numpy(batch["documents"]).long(),
            }
