#!/bin/sh
# Few-shot: lines of ten packages of the standard library, which no model of ours was trained on, and which package each is of
# (docs/results.md). The shipped model `language` sees up to 2,000 labelled lines, in windows of 256 tokens.
#
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), other work on both cores, 2026-11-21: about 12 minutes.
# The same command goes on where it was stopped. Data and results: folders under $1.
set -eu
out=${1:-.runs/fewshot}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
mkdir -p "$out"
python - "$out/lines.jsonl" <<'END'
import json
import random
import sys
import sysconfig
from pathlib import Path

PACKAGES = "asyncio ctypes email encodings http idlelib multiprocessing tkinter unittest xml"
LINES = 400
chosen = random.Random(0)
library = Path(sysconfig.get_path("stdlib"))
with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
    for package in PACKAGES.split():
        modules = [m for m in sorted((library / package).rglob("*.py")) if "test" not in str(m.relative_to(library / package))]
        lines = {line.strip() for m in modules for line in m.read_text("utf-8", "replace").splitlines()}
        long_enough = sorted(line for line in lines if 30 <= len(line) <= 80)
        for line in chosen.sample(long_enough, LINES):
            file.write(json.dumps({"text": line, "label": package}) + "\n")
END

longfocus evaluate fewshot --model language --data "$out/lines.jsonl" --tokens 1K 4K 16K 64K --seeds 1 2 3 4 5 \
    --questions 200 --output "$out/language"
