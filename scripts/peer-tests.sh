#!/usr/bin/env bash
# Exported models against ONNX Runtime: installs tests/peers/requirements.txt under target/ and runs the tests that need
# it. Where PyPI cannot be reached they are skipped, with a message.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
venv=$target/peers
mkdir -p "$target"
if ! cmp -s tests/peers/requirements.txt "$venv/installed.txt"; then
    if ! python3 -m venv --clear "$venv"; then
        echo "skipped: python3 cannot make a virtual environment (Debian: apt install python3-venv)"
        exit 0
    fi
    if ! timeout 150 "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --requirement tests/peers/requirements.txt; then
        echo "skipped: the packages of tests/peers/requirements.txt cannot be installed from PyPI"
        exit 0
    fi
    cp tests/peers/requirements.txt "$venv/installed.txt"
fi
INTSEG_PEERS_PYTHON=$(realpath -s "$venv/bin/python") cargo test -p intseg-cli --release --test peers --test conformance -- --nocapture
