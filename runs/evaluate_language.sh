#!/bin/sh
# The language models of runs/language.sh on all held-out documents that are long enough: perplexity by length of the
# memory, of one document and among others, attention on the own document, and top-k against dense. Then a report.
#
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), 2026-11-21, minutes not recorded; top-k against dense: one thread of a 2-core AMD
# EPYC (AVX2), 2026-11-22, with the data of runs/ablations.sh. Results: a folder each under $2 (docs/evaluation.md).
set -eu
models=${1:-.runs/language} results=${2:-.runs/language_results}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
held_out="--data $models/data/held_out --max-documents 200"

for model in fot memorizing fot_d1 base; do
    longfocus evaluate perplexity --model "$models/$model" $held_out --tokens 0 512 1K 2K 4K 8K 16K --windows 1 \
        --output "$results/perplexity_$model"
done
longfocus evaluate perplexity --model "$models/transformer_xl" $held_out --tokens 0 512 1K 16K --windows 1 \
    --output "$results/perplexity_transformer_xl"
# its 4,096 positions hold 3,840 tokens and a window; documents are those that hold 16K, as for the others
longfocus evaluate perplexity --model "$models/plain" $held_out --tokens 0 512 1K 2K 3840 16K --windows 1 \
    --output "$results/perplexity_plain"

among_others() {
    longfocus evaluate perplexity --model "$1" --data "$models/data/held_out" --max-documents 40 --documents multi --own 2K \
        --tokens 0 4K 16K 64K --windows 1 --output "$results/multi_$2"
}
for model in fot memorizing fot_d1; do
    among_others "$models/$model" $model
done
among_others language language
for model in fot fot_d1 base; do
    longfocus evaluate distraction --model "$models/$model" --data "$models/data/held_out" --max-documents 30 --tokens 2K --others 1 3 7 15 31 63 --windows 1 \
        --output "$results/distraction_$model"
done
top_k() {
    longfocus evaluate perplexity --model language --data "$models/data/held_out" --max-documents 40 --tokens 0 4K 16K \
        --windows 1 "$@"
}
top_k --output "$results/dense_language"
for k in 8 32 128 512; do
    top_k --search exact --top-k "$k" --output "$results/top_${k}_language"
done
longfocus evaluate perplexity --model "$models/fot" $held_out --tokens 0 4K 16K --windows 1 --search exact --top-k 8 \
    --output "$results/top_8_fot"
longfocus report "$results" -o "$results/report.html" --markdown "$results/report.md"
