#!/usr/bin/env bash
# Exported models against ONNX Runtime, and files and gradients of PyTorch: installs tests/peers/requirements.txt and
# tests/peers/torch.txt under target/ and runs the tests that need them. What PyPI does not hand over is skipped, with a
# message. PyTorch downloads 1.9 GB, takes 4 GB under target/ and, with a quick line, less than a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
venv=$target/peers
mkdir -p "$target"

# Installs a list of packages unless they are there: LIST SECONDS [PIP'S OPTIONS]
installed() {
    local list=$1 seconds=$2 record=$venv/$(basename "$1")
    shift 2
    cmp -s "$list" "$record" && return
    timeout "$seconds" "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-compile --retries 1 \
        "$@" --requirement "$list" || return 1
    cp "$list" "$record"
}

if ! cmp -s tests/peers/requirements.txt "$venv/requirements.txt" && ! python3 -m venv --clear "$venv"; then
    echo "skipped: python3 cannot make a virtual environment (Debian: apt install python3-venv)"
    exit 0
fi
if ! installed tests/peers/requirements.txt 150; then
    echo "skipped: the packages of tests/peers/requirements.txt cannot be installed from PyPI"
    exit 0
fi
python=$(realpath -s "$venv/bin/python")
export INTSEG_PEERS_PYTHON=$python
start=$SECONDS
if ! { [ "$(uname -sm)" = "Linux x86_64" ] && installed tests/peers/torch.txt 240 --no-deps; }; then
    echo "skipped: the tests with PyTorch, whose packages (tests/peers/torch.txt) cannot be installed here"
elif ! "$python" -c "import torch, torchvision"; then
    echo "skipped: the tests with PyTorch, which was installed and does not load"
else
    echo "PyTorch was installed and loaded in $((SECONDS - start)) s"
    export INTSEG_PEERS_TORCH=$python
fi
cargo test -p intseg-cli --release --test peers --test conformance --test torch -- --nocapture
