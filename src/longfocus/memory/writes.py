"""What happened to pairs that are written in place, for those who keep something learned of them, such as an index."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Writes:
    """Which pairs of a room were written over: an undone append leaves room that the next one fills.

    One object for as long as the room lives, also when its pairs move to a larger tensor.
    """

    end: int = 0
    """Past the last pair that was ever written."""
    over: list[int] = field(default_factory=list)
    """The first pair of every write over earlier ones, in order of time."""

    def note(self, start: int, stop: int) -> None:
        """Pairs [start, stop) are about to be written."""
        if start < self.end:
            self.over.append(start)
        self.end = max(self.end, stop)
