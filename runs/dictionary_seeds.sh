#!/bin/sh
# The dictionary model from other training seeds than the shipped one's, and what they answer at 64K, 1M and 16M tokens.
#
# One thread of a 2-core AMD EPYC (AVX2), other work on both cores, 2026-11-22: seed 1 1,627 steps in 74.9 CPU-minutes, seed 2 1,644 in
# 72.6 (25 with AMX); 64K and 1M tokens 5 minutes, 16M tokens 17 to 24.
# The same command goes on where it was stopped. Models and results: folders under $1 (docs/evaluation.md).
set -eu
out=${1:-.runs/dictionary_seeds}
export OMP_NUM_THREADS=1

for seed in 1 2; do
    longfocus train dictionary --output "$out/seed$seed" --cpu-minutes 90 --seed $seed
    longfocus evaluate dictionary --model "$out/seed$seed" --tokens 64K 1M --seeds 1 2 3 --search clustered \
        --output "$out/results/seed$seed"
    # a memory of 8 GiB, of which at most 2 GiB are kept in memory
    longfocus evaluate dictionary --model "$out/seed$seed" --tokens 16M --seeds 1 --search clustered --memory-gib 2 \
        --spill-folder "${TMPDIR:-/tmp}" --output "$out/results/seed${seed}_16m"
done
