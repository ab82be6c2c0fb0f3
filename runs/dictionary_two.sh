#!/bin/sh
# Train the dictionary model with two memory layers that ships with the package (src/longfocus/models/dictionary_two), from
# random weights: trained keys for measurements of reading that looks into its own memory (docs/speed.md).
#
# Made on 2026-11-21 by this command in one go, with one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), the other core busy:
# 98% at 25 records after 1.5 CPU-minutes, all 1,594 steps in 30.0 CPU-minutes.
# Stages and their times: src/longfocus/models/dictionary_two/training.json. Every choice: recipe.json beside it.
set -e
OMP_NUM_THREADS=1 longfocus train dictionary --output "${1:-.runs/dictionary_two}" --memory-layers 2 3 --cpu-minutes 40 --seed 0
