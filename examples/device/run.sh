#!/usr/bin/env bash
# From a photo to the class map that an emulated board computes, in one command:
#   examples/device/run.sh [PHOTO] [MODEL] [BOARD]
# Without a photo and a model, `intseg demo` draws scenes and trains one first (about a minute). BOARD is m3, m4, m7, m55
# or rv32. SIZE=96x128 is the size that the photo is brought to, RAM=128K runs it in strips that fit.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --quiet -p intseg-cli
intseg=target/release/intseg out=target/device-demo
photo=${1:-demo/scenes/JPEGImages/scene_00002.png} model=${2:-demo/run/best.iseg} board=${3:-m3}
if [ $# -lt 2 ] && [ ! -f "$model" ]; then
    "$intseg" demo --out demo
fi
"$intseg" export --format c --size "${SIZE:-96x128}" ${RAM:+--ram "$RAM"} --image "$photo" -o "$out" "$model"
examples/device/board.sh "$board" "$out"
cmp "$out/classes.raw" "$out/expected.raw"
echo "the board's class map is the host's, byte for byte; in colours: $out/classes.ppm"
