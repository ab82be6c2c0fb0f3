#!/bin/sh
# Does `longfocus evaluate layers` choose well? A base without memory, r_d of its layers, and then every layer trained as the only
# memory layer for equally many steps (docs/results.md).
#
# One thread of a 2-core AMD EPYC (AVX2), other work on the other core, 2026-11-22: MINUTES minutes.
# The same command goes on where it was stopped. Data of runs/language.sh in $1; models and results: folders under $2.
set -eu
data=${1:-.runs/language/data} out=${2:-.runs/layer_choice}
OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/layer_choice.py --data "$data" --output "$out" --base-steps 500 --steps 60
