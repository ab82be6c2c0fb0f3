"""The tokenizer of the code model: byte-level BPE with 2048 entries, digits one by one, lines kept apart.

A newline begins a line's first token, so `tokens("\\n" + a + "\\n" + b) == tokens("\\n" + a) + tokens("\\n" + b)`:
a line that is planted into code has the same tokens everywhere, and its length can be counted on its own.
"""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
END_OF_TEXT = "<|end_of_text|>"


def train_tokenizer(texts: Iterator[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-pair encoding learnt from `texts`; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex("\n"), behavior="merged_with_next"),
            Digits(individual_digits=True),
            ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
