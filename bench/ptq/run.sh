#!/usr/bin/env bash
# Trains the float networks and compares what three tools make of them: bench/ptq/run.sh DATA OUT [INTSEG]
# PYTHON names a Python with what requirements.txt lists. A network that was trained to its end (OUT/NETWORK.done) is not trained again.
set -euo pipefail
data=$1 out=$2 intseg=${3:-}
here=$(dirname "$0") python=${PYTHON:-python3}
mkdir -p "$out"
train() {
    test -e "$out/$1.done" && return
    "$python" "$here/train.py" "$1" --data "$data" --out "$out" --steps "$2" --bf16 2>&1 | tee "$out/$1.log"
    touch "$out/$1.done"
}
train fcn8s 2400
train deeplabv3 2000
train unet 2200
train lraspp 900
"$python" "$here/compare.py" --data "$data" --models "$out" --work "$out/quantised" ${intseg:+--intseg "$intseg"} | tee "$out/table.md"
