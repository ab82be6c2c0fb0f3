"""The paper's dictionary lookup task (section 5.1): define many keys, then ask for some of them.

    previous window:  <k> k1 k2 k3 k4 <v> v1 v2 v3 v4  <k> ...      25 records and 6 pads = 256 tokens
    current window:   <q> k1 k2 k3 k4 <v> v1 v2 v3 v4  <q> ...      loss on v1..v4 only

Keys and values are 4 uniform symbols out of 60. A record never crosses the border of a window. Everything is
drawn from a generator or a seed that the caller gives, without loops over records, so that a memory of 16M
tokens takes a fraction of a second. A key that occurs twice in a memory has no right answer: `is_ambiguous`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from longfocus.core.labels import NO_LOSS
from longfocus.errors import LongFocusError

KEY_MARK, VALUE_MARK, QUESTION_MARK, PAD = 0, 1, 2, 3
SYMBOLS = 60
FIRST_SYMBOL = 4
VOCABULARY = FIRST_SYMBOL + SYMBOLS
KEY_LENGTH = 4
RECORD_LENGTH = 10
WINDOW = 256
RECORDS_PER_WINDOW = WINDOW // RECORD_LENGTH
_ANSWER = slice(RECORD_LENGTH - KEY_LENGTH, RECORD_LENGTH)
_LARGEST_SHUFFLED = 500_000


class Records(NamedTuple):
    """Keys and their values as symbols 0..59 (one byte each: 16M tokens of records are 13 MB)."""

    keys: UInt8[Tensor, "records 4"]
    values: UInt8[Tensor, "records 4"]

    def take(self, places: Int64[Tensor, " chosen"]) -> "Records":
        """The records at these places, in this order."""
        return Records(self.keys[places], self.values[places])


class TaskBatch(NamedTuple):
    """A crossbatch batch: first the previous windows (definitions), then the current ones (questions)."""

    input_ids: Int64[Tensor, "rows length"]
    labels: Int64[Tensor, "rows length"]
    """The answer tokens at their own places, elsewhere -100 (the model shifts them itself)."""


def draw_symbols(count: int, generator: torch.Generator) -> UInt8[Tensor, "count 4"]:
    return torch.randint(SYMBOLS, (count, KEY_LENGTH), generator=generator, dtype=torch.uint8)


def draw_distinct_keys(
    count: int, alphabet: int, generator: torch.Generator
) -> UInt8[Tensor, "count 4"]:
    """Distinct keys whose symbols come, at each of the 4 places, from `alphabet` random symbols.

    Small alphabets are hard negatives: 800 keys out of 8**4 hold as many pairs that share 3 of 4 symbols as
    several million tokens of uniform records.
    """
    space = alphabet**KEY_LENGTH
    if count > space:
        raise LongFocusError(
            f"{count} distinct keys do not fit an alphabet of {alphabet} symbols, which makes {space}. "
            "Use a larger alphabet or fewer records."
        )
    if space <= _LARGEST_SHUFFLED:
        codes = torch.randperm(space, generator=generator)[:count]
    else:
        codes = torch.randint(space, (2 * count + 100,), generator=generator).unique()
        codes = codes[torch.randperm(len(codes), generator=generator)[:count]]
    digits = torch.stack(
        [codes // alphabet**place % alphabet for place in range(KEY_LENGTH)], dim=1
    )
    chosen = [torch.randperm(SYMBOLS, generator=generator)[:alphabet] for _ in range(KEY_LENGTH)]
    return torch.stack([chosen[place][digits[:, place]] for place in range(KEY_LENGTH)], dim=1).to(
        torch.uint8
    )


def draw_memory(tokens: int, seed: int) -> Records:
    """Uniform records for a memory of at least `tokens` tokens, in whole windows (keys may repeat)."""
    windows = -(-tokens // WINDOW)
    generator = torch.Generator().manual_seed(seed)
    count = windows * RECORDS_PER_WINDOW
    return Records(draw_symbols(count, generator), draw_symbols(count, generator))


def key_codes(keys: UInt8[Tensor, "records 4"]) -> Int64[Tensor, " records"]:
    """One number per key; equal numbers are equal keys."""
    weights = torch.tensor([SYMBOLS**place for place in range(KEY_LENGTH)])
    return (keys.long() * weights).sum(1)


def is_ambiguous(keys: UInt8[Tensor, "records 4"]) -> Bool[Tensor, " records"]:
    """Records whose key occurs more than once: a question for it has no right answer."""
    times = torch.bincount(key_codes(keys), minlength=SYMBOLS**KEY_LENGTH)
    return times[key_codes(keys)] > 1


def to_tokens(records: Records, mark: int) -> Int64[Tensor, "records 10"]:
    """`mark k1..k4 <v> v1..v4` for every record; the mark says definition or question."""
    count = len(records.keys)
    tokens = torch.empty(count, RECORD_LENGTH, dtype=torch.int64)
    tokens[:, 0] = mark
    tokens[:, 1 : 1 + KEY_LENGTH] = records.keys.long() + FIRST_SYMBOL
    tokens[:, 1 + KEY_LENGTH] = VALUE_MARK
    tokens[:, _ANSWER] = records.values.long() + FIRST_SYMBOL
    return tokens


def to_windows(
    records: Records, mark: int, per_window: int, length: int
) -> Int64[Tensor, "windows length"]:
    """Windows of `per_window` records each, padded to `length` tokens; the number of records must divide."""
    tokens = to_tokens(records, mark).view(-1, per_window * RECORD_LENGTH)
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=PAD)


def memory_windows(memory: Records, first: int, last: int) -> Int64[Tensor, "windows 256"]:
    """Windows first..last-1 of a memory, so that a large one can be read in chunks."""
    chosen = slice(first * RECORDS_PER_WINDOW, last * RECORDS_PER_WINDOW)
    part = Records(memory.keys[chosen], memory.values[chosen])
    return to_windows(part, KEY_MARK, RECORDS_PER_WINDOW, WINDOW)


def answer_labels(
    windows: Int64[Tensor, "windows length"], asked: int
) -> Int64[Tensor, "windows length"]:
    """Labels of question windows: the 4 answer tokens of each of the `asked` questions, elsewhere -100."""
    labels = torch.full_like(windows, NO_LOSS)
    questions = slice(0, asked * RECORD_LENGTH)
    shape = (len(windows), asked, RECORD_LENGTH)
    labels[:, questions].view(shape)[..., _ANSWER] = windows[:, questions].view(shape)[..., _ANSWER]
    return labels


def training_batch(
    documents: int, asking: int, records: int, alphabet: int, generator: torch.Generator
) -> TaskBatch:
    """`documents` previous windows of `records` records; the first `asking` documents are also asked.

    The current window of a document asks all of its records, in another order, once each (asked twice, the
    second answer could be copied from the window). Keys are distinct in the whole batch.
    """
    count = documents * records
    defined = Records(
        draw_distinct_keys(count, alphabet, generator), draw_symbols(count, generator)
    )
    order = torch.rand(asking, records, generator=generator).argsort(1)
    order = (order + torch.arange(asking)[:, None] * records).flatten()
    length = WINDOW if records == RECORDS_PER_WINDOW else records * RECORD_LENGTH
    previous = to_windows(defined, KEY_MARK, records, length)
    current = to_windows(defined.take(order), QUESTION_MARK, records, length)
    labels = torch.cat([torch.full_like(previous, NO_LOSS), answer_labels(current, records)])
    return TaskBatch(torch.cat([previous, current]), labels)
