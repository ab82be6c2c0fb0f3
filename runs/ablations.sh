#!/bin/sh
# The paper's ablations on language models (docs/results.md): one softmax against the gate, memory keys with gradient against
# without, and one or two windows of memory in training against up to 15. A smaller base and fewer steps than in
# runs/language.sh, whose data are taken from $2; the same documents are held out.
#
# One thread of a 2-core AMD EPYC (AVX2), other work on both cores, 2026-11-22: base 31 processor minutes, variants 15 to 24 each, their
# evaluations about 4 each.
# The same command goes on where it was stopped. Models: folders under $1; results: folders under $3 (docs/evaluation.md).
# A second training seed, with a base of its own (36 minutes), and of three variants (19 to 23 minutes each):
#     SEED=1 VARIANTS="fot fot_d1 memorizing" sh runs/ablations.sh .runs/ablations_1 .runs/language/data .runs/ablation_results_1
set -eu
out=${1:-.runs/ablations} data=${2:-.runs/language/data} results=${3:-.runs/ablation_results}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
seed=${SEED:-0} variants=${VARIANTS:-fot fot_d1 gate memorizing no_gradient memorizing_joint w1 w2}

longfocus train language --output "$out" --data-folder "$data" --base-steps 1000 --steps 120 --seed "$seed" --only $variants
for variant in $variants; do
    longfocus evaluate perplexity --model "$out/$variant" --data "$data/held_out" --max-documents 200 --tokens 0 512 4K 16K \
        --windows 1 --output "$results/perplexity_$variant"
done
if [ "$seed" = 0 ]; then
    # a memory that nobody trained, without and with a first token that is the same in every window
    longfocus evaluate benefit --model "$out/base" --tasks loss --methods memory --tokens 3K 16K 64K --text "$data/held_out" \
        --budget 256 --windows 1 --max-documents 200 --output "$results/predict_base"
    longfocus evaluate benefit --model "$out/base" --tasks loss --methods memory --tokens 3K 16K 64K --text "$data/held_out" \
        --budget 256 --windows 1 --max-documents 200 --window-prefix 0 --output "$results/predict_base_prefix"
fi
longfocus report "$results" -o "$results/report.html" --markdown "$results/report.md"
