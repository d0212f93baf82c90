#!/bin/sh
# Installs the peers at pinned versions into .venv beside this script.
set -eu
cd "$(dirname "$0")"
python3 -m venv .venv
.venv/bin/pip install --quiet --requirement requirements.txt
