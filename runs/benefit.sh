#!/bin/sh
# Does it help? (docs/evaluation.md, docs/results.md) The shipped model `language` against the same base trained on as many tokens
# of the same documents without memory: truncated, full context, memory without training, trained memory, BM25.
#
# One thread of a 2-core Intel Xeon at 2.6 GHz (AMX), other work on both cores, 2026-11-21: plain_recall 53 processor minutes, all else
# about 35 minutes. predict_language_prefix: an AMD EPYC (AVX2), 2026-11-22, with the data of runs/ablations.sh.
# The same command goes on where it was stopped. Needs what runs/language.sh makes, in $1; results: folders under $2.
set -eu
out=${1:-.runs/language} results=${2:-.runs/benefit}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1

# as many steps as recall, refine and language have together
longfocus train continue --model "$out/plain" --output "$out/plain_recall" --method plain --window 4096 --batch-size 4 \
    --kind text --weights 1 1 --min-tokens 4096 --data "$out/data/train" "$out/data/recall" --max-steps 450 \
    --optimizer muon --learning-rate 2.5e-3 --warmup-steps 10 --scheduler linear --weight-decay 0.05 --save-steps 25 --cpu
cp "$out/data/passkey_words.json" "$out/plain_recall/"

ask() {
    name=$1
    shift
    longfocus evaluate benefit --tasks needle records --wording passkey --record-wording code --tokens 3K 16K 64K --seeds 1 2 3 \
        --text "$out/data/held_out" --budget 256 --output "$results/ask_$name" "$@"
}
# one window of each held-out document that is long enough
predict() {
    name=$1
    shift
    longfocus evaluate benefit --tasks loss --tokens 3K 16K 64K --text "$out/data/held_out" --budget 256 --windows 1 \
        --max-documents 200 --output "$results/predict_$name" "$@"
}
untrained="--model $out/plain_recall --memory-layers 2 --window 256"
ask language --model language --methods truncated memory memory_only bm25
ask plain --model "$out/plain_recall" --methods truncated full bm25
ask untrained $untrained --methods memory memory_only
predict language --model language --methods truncated memory bm25
predict plain --model "$out/plain_recall" --methods truncated full bm25
predict untrained $untrained --methods memory
# every window begins with the same token; the tokenizer has no BOS of its own
ask language_prefix --model language --methods memory memory_only --window-prefix 0
ask untrained_prefix $untrained --methods memory memory_only --window-prefix 0
predict language_prefix --model language --methods memory --window-prefix 0
predict untrained_prefix $untrained --methods memory --window-prefix 0
longfocus report "$results" -o "$results/report.html" --markdown "$results/report.md"
