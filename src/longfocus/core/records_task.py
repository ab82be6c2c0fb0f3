"""Generated records: entities with the same fields, every fact a line that is hidden in real text, and what is asked.

    sentence   The city of Ann River is Oslo.     What is the city of Ann River? The city of Ann River is
    code       ann_river.city = "oslo"            assert ann_river.city == "

All entities have the same fields, and share the words of their names with others, so that neither the field nor a part
of the name tells a line from the others. Names and values are made of the words that the caller gives: a model that is
trained on such lines is to be asked for others. Where the lines stand is the caller's business, too.
"""

from collections.abc import Sequence
from math import ceil
from random import Random
from typing import Literal, NamedTuple

from longfocus.errors import LongFocusError

BADGE = "badge"
FIELDS = (BADGE, "city", "colour", "team")
"""What an entity has, as code says it."""
BADGE_DIGITS = 5
_SPOKEN = {BADGE: "badge number"}

RecordWording = Literal["sentence", "code"]


class Fact(NamedTuple):
    """One field of one entity."""

    line: str
    """What is hidden."""
    question: str
    """The answer follows it directly; that of `code` ends with the opening quote."""
    answer: str
    name: str
    """Of the entity, as it is written."""
    field: str


def draw_facts(
    rng: Random,
    names: Sequence[str],
    values: Sequence[str],
    *,
    entities: int,
    wording: RecordWording,
) -> list[Fact]:
    """All facts of so many entities, one entity after the other; no two entities have the same name.

    A name is two of `names`, a badge number is digits, every other value is one of `values`. Raises LongFocusError
    for too few words.
    """
    return [
        _worded(first, last, field, _value(rng, field, values), wording)
        for first, last in _names(rng, names, entities)
        for field in FIELDS
    ]


def _names(rng: Random, words: Sequence[str], entities: int) -> list[tuple[str, str]]:
    """Pairs from half of the pairs that a few first and a few last words make."""
    few = ceil((2 * entities) ** 0.5)
    if len(set(words)) < 2 * few:
        raise LongFocusError(
            f"{entities} entities need names of {2 * few} different words. Got {len(set(words))}. Give fewer "
            "entities, or more words."
        )
    drawn = rng.sample(sorted(set(words)), 2 * few)
    pairs = rng.sample(range(few * few), entities)
    return [(drawn[pair // few], drawn[few + pair % few]) for pair in pairs]


def _value(rng: Random, field: str, values: Sequence[str]) -> str:
    if field == BADGE:
        return "".join(str(rng.randrange(10)) for _ in range(BADGE_DIGITS))
    return rng.choice(values)


def _worded(first: str, last: str, field: str, value: str, wording: RecordWording) -> Fact:
    if wording == "code":
        return code_fact(f"{first}_{last}".lower(), field, value.lower())
    name, spoken = f"{first} {last}".title(), _SPOKEN.get(field, field)
    told, value = f"The {spoken} of {name} is", value.capitalize()
    question = f"What is the {spoken} of {name}? {told}"
    return Fact(f"{told} {value}.", question, value, name, field)


def code_fact(name: str, field: str, value: str) -> Fact:
    """A fact as source code states it and asks for it."""
    place = f"{name}.{field}"
    return Fact(f'{place} = "{value}"', f'assert {place} == "', value, name, field)
