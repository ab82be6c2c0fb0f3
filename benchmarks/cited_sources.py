"""How well an answer names its sources, where the truth is known: pass keys hidden in real code.

    python benchmarks/cited_sources.py [--tokens 16384 65536 262144] [--questions 40] [--seed 2026] [--json FILE]

A pass-key line is in memory once, with four other lines of the kind in every window. The truth are the five digits of
the line that was asked for. Of the answers that are right:

    first in line   the place with most attention lies in the line that was asked for
    precision       share of the cited attention (of all of `answer.sources`) that lies in that line
    recall          share of the five digits that some cited place covers
"""

import argparse
import json
from pathlib import Path

import longfocus
from longfocus.evaluation.haystack import DIGITS, Haystack, PlantedKey
from longfocus.evaluation.source_lines import standard_library_lines
from longfocus.hf.pretrained import resolve
from longfocus.inference.answer import Answer, Span

PIECE = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536, 262_144])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [measure(tokens, given.questions, given.seed) for tokens in given.tokens]
    if given.json is not None:
        given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def measure(tokens: int, questions: int, seed: int) -> dict[str, float]:
    model, tokenizer = longfocus.from_pretrained("code"), longfocus.tokenizer("code")
    window = model.focus.config.window
    lines = standard_library_lines(tokenizer, seed)
    words = json.loads((Path(resolve("code")) / "passkey_words.json").read_text())["test"]
    haystack = Haystack(lines, tokenizer, words, window=window, seed=seed)
    session, keys = longfocus.Session(model, tokenizer), []
    while session.tokens < tokens:
        piece = haystack.piece(min(tokens - session.tokens, PIECE), keys=None)
        document = session.read(piece.text, str(len(session.documents)), progress=False)
        keys += [(key, document.name) for key in piece.keys]
    asked = keys[:: max(1, len(keys) // questions)][:questions]
    answers = session.ask([key.question for key, _ in asked], max_new_tokens=DIGITS)
    right = [
        (key, name, answer)
        for (key, name), answer in zip(asked, answers, strict=True)
        if answer.text[:DIGITS] == key.digits
    ]
    scores = [score(key, name, answer) for key, name, answer in right]
    first, precision, recall = (sum(column) / len(right) for column in zip(*scores, strict=True))
    print(
        f"{tokens:>9,} tokens  {len(right)} of {len(asked)} right  first in line {first:.1%}  "
        f"precision {precision:.1%}  recall {recall:.1%}",
        flush=True,
    )
    return {
        "tokens": tokens,
        "seed": seed,
        "questions": len(asked),
        "right": len(right),
        "first_in_line": first,
        "precision": precision,
        "recall": recall,
    }


def score(key: PlantedKey, name: str, answer: Answer) -> tuple[float, float, float]:
    sources = answer.sources
    start = key.span[0] + len("# The pass key of '' is ") + len(key.name)
    digits = range(start, start + DIGITS)
    covered = {place for s in sources if s.document == name for place in range(s.start, s.end)}
    inside = [s for s in sources if in_line(s, key, name)]
    return (
        float(in_line(sources[0], key, name)),
        sum(s.weight for s in inside) / sum(s.weight for s in sources),
        len(covered & set(digits)) / DIGITS,
    )


def in_line(span: Span, key: PlantedKey, name: str) -> bool:
    return span.document == name and key.span[0] <= span.start and span.end <= key.span[1]


if __name__ == "__main__":
    main()
