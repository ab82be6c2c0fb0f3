#!/bin/sh
# Train the dictionary model that ships with the package (src/longfocus/models/dictionary) from random weights.
#
# Made on 2026-11-20 with one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), shared with other processes:
# 98% at 25 records after 2.0 CPU-minutes (403 steps), all 803 steps in 16.7 CPU-minutes. Training was stopped
# at step 369 (SIGTERM) and continued; the options of the last stage (steps, alphabets, temperature_factor, sharpen) were
# settled during that stop. They do not touch earlier steps, so this command repeats the whole of it.
# Stages and their times: src/longfocus/models/dictionary/training.json. Every choice: recipe.json beside it.
set -e
OMP_NUM_THREADS=1 longfocus train dictionary --output "${1:-.runs/dictionary}" --cpu-minutes 29 --seed 0
