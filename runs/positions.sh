#!/bin/sh
# How memory layers see places (docs/positions.md): none, the window's start, the same in windows longer than the model's
# positions with linear, dynamic and yarn scaling, and true places in one stream. The dictionary, a language model, and the
# shipped model that finds pass keys are trained by each for equal processor time or equal tokens, and measured.
#
# Dictionary and perplexities: one thread of a 2-core Intel Xeon at 2.6 GHz (AMX), 2026-11-21, its minutes not recorded. Pass keys: one thread
# of a 2-core AMD EPYC (AVX2), 2026-11-22, 12 to 25 minutes a variant. Other work on both cores.
# The same command goes on where it was stopped. Needs what runs/language.sh makes, in $1; results: folders under $2.
set -eu
language=${1:-.runs/language} out=${2:-.runs/positions}
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1

dictionary() {
    name=$1
    shift
    longfocus train dictionary --output "$out/dictionary/$name" --cpu-minutes 5 "$@"
    longfocus evaluate dictionary --model "$out/dictionary/$name" --tokens 1K 4K 16K 64K 256K --seeds 1 2 \
        --output "$out/results/dictionary_$name"
}
dictionary none
dictionary window_start --positions window_start
# a model of 128 positions, whose windows then become 256 tokens long
longfocus train dictionary --output "$out/dictionary/start" --cpu-minutes 5 --positions window_start \
    --curriculum 3 6 12 --curriculum-only --max-positions 128
for scaling in linear dynamic yarn; do
    dictionary $scaling --positions window_start --model "$out/dictionary/start" --curriculum 25 --rope-scaling $scaling:2
done
dictionary true_linear --positions true --rope-scaling linear:32

# a stock model of 256 positions, from the base, whose memory layer had no positions
language() {
    name=$1 model=$2
    shift 2
    # documents that were tokenised once serve all
    if [ -d "$out/language/start/data" ] && [ ! -e "$out/language/$name/data" ]; then
        rm -rf "$out/copied"
        cp -r "$out/language/start/data" "$out/copied"
        mkdir -p "$out/language/$name"
        mv "$out/copied" "$out/language/$name/data"
    fi
    longfocus train continue --model "$model" --output "$out/language/$name" --kind text --min-tokens 4096 \
        --data "$language/data/train" "$language/data/recall" --optimizer muon --learning-rate 2.5e-3 --warmup-steps 10 \
        --scheduler linear --weight-decay 0.05 --save-steps 20 --cpu "$@"
}
variant() {
    name=$1 scaled=$2
    shift 2
    language $name "$start" --weights 1 1 --memory-layers 2 --temperature-rate 5 --max-steps 60 $scaled "$@"
    longfocus evaluate perplexity --model "$out/language/$name" --data "$language/data/held_out" --tokens 0 512 4K 16K \
        --windows 1 --max-documents 200 --evaluated 256 --output "$out/results/perplexity_$name"
    # pass keys, which 60 steps do not teach: the shipped model finds them without positions, and learns to see places
    language ${name}_recall "$known" --weights 1 3 --temperature-rate 5 --seed 2 --max-steps 60 $scaled "$@"
    cp "$language/data/passkey_words.json" "$out/language/${name}_recall/"
    longfocus evaluate passkey --model "$out/language/${name}_recall" --text plain --keys 1 --tokens 1K 4K 16K 64K \
        --seeds $(seq 21 60) --output "$out/results/passkey_$name"
}
short="--window 256 --batch-size 64" long="--window 1024 --batch-size 16" own=
for n in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do own="$own 1/16($n,0)"; done

# these may have rows of 4,096 tokens, but have seen windows of 256 only: that is what scaling begins at
of_256() {
    mkdir -p "$2"
    cp "$1"/*.* "$2"
    sed 's/"max_position_embeddings": 4096/"max_position_embeddings": 256/' "$1/config.json" > "$2/config.json"
}
language start "$language/base" --method plain $short --weights 1 1 --max-steps 40
shipped=$(python -c 'from longfocus.hf.pretrained import resolve; print(resolve("language"))')
of_256 "$out/language/start" "$out/language/start_256"
of_256 "$shipped" "$out/language/known_256"
start="$out/language/start" known="$shipped"
for positions in none window_start; do
    variant $positions "" --positions $positions $short --contexts "published(packing=16)" \
        --d "8 until step 12 then 16,31,63"
done
variant unscaled "" --positions window_start $long --contexts "published(packing=4)" --d "2 until step 12 then 4,7,15"
start="$out/language/start_256" known="$out/language/known_256"
for scaling in linear yarn dynamic; do
    variant $scaling "--rope-scaling $scaling:4" --positions window_start $long --contexts "published(packing=4)" \
        --d "2 until step 12 then 4,7,15"
done
# one stream has no negatives: d = 1, up to 15 windows before in the same document
for scaling in linear yarn; do
    variant true_$scaling "--rope-scaling $scaling:16" --positions true $short --contexts "$own" --d 1
done
longfocus report "$out/results" -o "$out/report.html" --markdown "$out/report.md"
