#!/bin/sh
# The shipped model `code`: needles by length and depth, which keys it retrieves, and a report of all results in $1.
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), about 3 minutes. Results: a folder each under $1 (docs/evaluation.md).
set -eu
results=${1:-.runs}
export OMP_NUM_THREADS=1

longfocus evaluate needle --model code --wording passkey --tokens 4K 16K 64K --seeds 1 --depths 5 --needles 4 \
    --distractors 20 --output "$results/needle_code"
longfocus evaluate retrieval --model code --tokens 4K 16K --seeds 1 2 --queries 256 --output "$results/retrieval_code"
longfocus report "$results" -o "$results/report.html"
