#!/bin/sh
# The shipped code model and its d = 1 control (src/longfocus/models/code, code_control).
#
# Made on 2026-11-21 by this command in one go, with one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), the other core busy:
# 29 CPU-minutes for the model (`refine` made 397 of its 400 steps in them), 20 for the control. Steps and CPU time of every
# phase stand in training.json beside each model, and the packages whose source code was read, with versions and a hash.
# On a faster or slower machine the number of steps differs a little, and so do the weights.
set -eu
OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 longfocus train code --output .runs/code --cpu-minutes 29 --seed 0

# What ships: weights, tokenizer, recipe, summary and test words.
for pair in .runs/code:code .runs/code/control:code_control; do
    target=src/longfocus/models/${pair#*:}
    mkdir -p "$target"
    for file in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json \
        recipe.json training.json passkey_words.json; do
        cp "${pair%:*}/$file" "$target/$file"
    done
done
