#!/bin/sh
# The shipped code model and its d = 1 control (src/longfocus/models/code, code_control).
#
# Made on 2026-11-20 with one thread each of a 2-core Intel Xeon at 2.6 GHz (AMX), shared with other work. CPU minutes and
# steps of every phase stand in training.json beside each model, and the packages whose source code was read, with
# versions and a hash. Two things happened by hand that this command does not repeat: `compete` ran under a smaller budget
# of minutes and ended at step 445, and `refine` was shortened from 300 to 220 steps at step 177 (the control's: at 68).
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
