#!/bin/sh
# Train the dictionary model that ships with the package (src/longfocus/models/dictionary) from random weights.
#
# Made on 2026-11-21 by this command in one go, with one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), the other core busy:
# 98% at 25 records after 1.3 CPU-minutes, all 1,548 steps in 25.3 CPU-minutes.
# `sharpen` was settled afterwards, on seed 500 at 16M tokens (docs/log.md): it only multiplies one norm when training is over.
# Stages and their times: src/longfocus/models/dictionary/training.json. Every choice: recipe.json beside it.
set -e
OMP_NUM_THREADS=1 longfocus train dictionary --output "${1:-.runs/dictionary}" --cpu-minutes 29 --seed 0
