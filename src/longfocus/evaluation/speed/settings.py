"""How much is measured: the lengths, the repetitions and the models of a run."""

from dataclasses import dataclass, replace

K, M = 1024, 1024**2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A random Llama."""

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 8
    vocabulary: int = 1000
    window: int = 512
    memory_layers: tuple[int, ...] = (3, 5)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


R8 = Shape()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the bench."""

    shape: Shape = R8
    """The model of random weights."""
    grouped_kv_heads: int = 2
    """KV heads of the same model with groups of query heads."""
    one_layer: tuple[int, ...] = (4,)
    """Its memory layer, where it has one."""
    lengths: tuple[int, ...] = (4 * K, 16 * K, 64 * K, 256 * K, M)
    """Tokens that are read, and that are in memory while decoding."""
    side_length: int = 16 * K
    """Tokens of what is measured at one length only: groups of query heads, resident memory."""
    exponent_from: int = 16 * K
    """Where growth is measured from, with one memory layer; to the last of `lengths`."""
    trained: str = "dictionary"
    """A trained model of the dictionary task with one memory layer, whose keys are searched."""
    trained_two: str = "dictionary_two"
    """One with two memory layers."""
    trained_lengths: tuple[int, ...] = (64 * K, 256 * K, M)
    trained_tokens: int = M
    """Keys that a search goes through, and tokens in memory while the trained model decodes."""
    knn_tokens: int = 64 * K
    """Keys that the graph index of memorizing-transformers-pytorch is built for."""
    decode_steps: int = 8
    """Tokens that the random models decode in a repetition."""
    trained_decode_steps: int = 64
    """Tokens that the trained model decodes: enough that a search which measures itself does so."""
    repetitions: int = 3
    limit_seconds: float = 180.0
    """A peer's cell with a repetition that takes longer says "not measured"."""
    budget_seconds: float | None = None
    """Time of the whole run; what does not fit is left out, and said."""
    threads: int = 1
    peers: tuple[str, ...] = ("published_sdpa", "published_eager", "full_attention")
    """Against which reading is measured."""
    most_peers_tokens: int | None = None
    """Longer readings are measured against the first of them only; None: there is no such length."""
    least_repetitions: int = 3
    """Of a search and of decoding, which take little time."""


QUICK = ("kernel", "window", "decode", "bytes", "reading_one_layer", "reading")
"""What a quick run measures, by how names begin, in this order."""


def quick(settings: Settings) -> Settings:
    """The same within three minutes: fewer repetitions, peers and lengths."""
    return replace(
        settings,
        lengths=(4 * K, 16 * K, 64 * K),
        repetitions=1,
        least_repetitions=2,
        peers=("published_sdpa", "full_attention"),
        most_peers_tokens=16 * K,
        limit_seconds=min(settings.limit_seconds, 90.0),
        budget_seconds=160.0,
    )
