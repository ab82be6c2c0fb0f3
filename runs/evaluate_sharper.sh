#!/bin/sh
# Do other documents hurt because the softmax is too soft for so many keys? The model `fot` of runs/language.sh with the scores of
# its memory layer multiplied, not trained, among other documents (docs/results.md).
#
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), the other busy, 2026-11-21: about 20 minutes.
# The same command goes on where it was stopped. Models of runs/language.sh in $1; results: a folder each under $2.
set -eu
models=${1:-.runs/language} results=${2:-.runs/language_results}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1

for factor in 1.5 2 3; do
    sharper="$models/fot_times_$factor"
    python - "$models/fot" "$sharper" "$factor" <<'END'
import sys
import longfocus
from longfocus.training.temperature import sharpen
model = longfocus.from_pretrained(sys.argv[1])
sharpen(model, float(sys.argv[3]))
model.save_pretrained(sys.argv[2])
longfocus.tokenizer(sys.argv[1]).save_pretrained(sys.argv[2])
END
    longfocus evaluate perplexity --model "$sharper" --data "$models/data/held_out" --max-documents 40 --documents multi --own 2K \
        --tokens 0 4K 16K 64K --windows 1 --output "$results/multi_fot_times_$factor"
done
