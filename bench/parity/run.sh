#!/usr/bin/env bash
# Trains an integer network and its float twins from three seeds, or those in SEEDS: bench/parity/run.sh CONFIG DATA OUT
# PYTHON names a Python with torch, safetensors, numpy and pillow (requirements.txt).
set -euo pipefail
config=$1 data=$2 out=$3
here=$(dirname "$0")
for seed in ${SEEDS:-0 1 2}; do
    intseg train --config "$config" --data "$data" --out "$out/integer-$seed" --seed "$seed"
    for norm in usual l1; do
        dir=$out/$norm-$seed
        mkdir -p "$dir"
        intseg data batches --config "$config" --data "$data" --set "train.seed=$seed" --initial "$dir/initial.safetensors" |
            "${PYTHON:-python3}" "$here/twin.py" --initial "$dir/initial.safetensors" --out "$dir" --norm "$norm"
    done
done
"${PYTHON:-python3}" "$here/table.py" "$out"
