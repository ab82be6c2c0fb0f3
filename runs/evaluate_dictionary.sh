#!/bin/sh
# Dictionary lookup: int8 against bfloat16 memory at 64K, 256K and 1M tokens, and 16M tokens with the disk tier.
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), the other busy, 2026-11-21: 81 minutes for 16M, those
# of the shorter ones were not recorded.
# Results: a folder each under $1 (docs/evaluation.md).
set -eu
results=${1:-.runs}
export OMP_NUM_THREADS=1

# a memory of 8 GiB, of which at most 2 GiB are kept in memory
longfocus evaluate dictionary --model dictionary --tokens 16M --seeds 1 2 3 4 5 6 7 8 9 10 --search clustered --memory-gib 2 \
    --spill-folder "${TMPDIR:-/tmp}" --output "$results/dictionary_16m"

for dtype in bfloat16 int8; do
    longfocus evaluate dictionary --model dictionary --tokens 64K 256K 1M --seeds 1 2 3 --search clustered \
        --memory-dtype $dtype --output "$results/dictionary_$dtype"
done
