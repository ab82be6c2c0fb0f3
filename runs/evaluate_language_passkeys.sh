#!/bin/sh
# Pass keys with the shipped model `language`: the paper's prompt (a text of its own for each of 40 questions), and lines in
# source code (docs/results.md).
#
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX). Results: a folder each under $1 (docs/evaluation.md).
set -eu
results=${1:-.runs/language_results}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1

for text in landmark plain hard; do
    longfocus evaluate passkey --model language --text $text --tokens 4K 16K 64K 100K 256K --seeds 21 \
        --output "$results/passkey_$text"
done
