#!/bin/sh
# Language models to compare methods (docs/training.md): a base, fot, memorizing, fot_d1, transformer_xl, plain.
#
# Hardware and minutes: not finished yet. Begun on 2026-11-21 with one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), other work
# on both cores. Steps, tokens and CPU seconds of every model will stand in .runs/language/summary.json.
# The same command goes on where it was stopped. Another seed: --output .runs/language_1 --seed 1 --data-folder .runs/language/data
set -eu
OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 longfocus train language --output "${1:-.runs/language}" --seed 0
