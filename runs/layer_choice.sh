#!/bin/sh
# Does `longfocus evaluate layers` choose well? r_d of the layers of a base without memory, and then every layer trained as the only
# memory layer for equally many steps, from two bases (docs/results.md): one of 500 steps, and that of runs/ablations.sh.
#
# One thread of a 2-core AMD EPYC (AVX2), other work on the other core, 2026-11-22: about 55 and 40 minutes.
# The same command goes on where it was stopped. Needs what runs/language.sh makes in $1, and runs/ablations.sh in $2; models and
# results: folders under $3.
set -eu
language=${1:-.runs/language} ablations=${2:-.runs/ablations} out=${3:-.runs/layer_choice}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1

python benchmarks/layer_choice.py --output "$out/small" --data "$language/data" --base-steps 500 --steps 60

# its layer 2 had no positions until now
longfocus train continue --model "$ablations/base" --output "$out/start" --method plain --window 256 --batch-size 64 \
    --kind text --min-tokens 4096 --data "$language/data/train" "$language/data/recall" --weights 1 1 --max-steps 40 \
    --optimizer muon --learning-rate 2.5e-3 --warmup-steps 10 --scheduler linear --weight-decay 0.05 --save-steps 20 --cpu
python benchmarks/layer_choice.py --output "$out/larger" --base "$out/start" --data "$language/data" --steps 60
