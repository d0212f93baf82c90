#!/usr/bin/env bash
# Builds the runtime itself, without an operating system, for an emulated Cortex-M3 and runs it:
#   examples/device/runtime.sh MODEL HxW FOLDER
# FOLDER holds `input.rgb`; `classes.raw` is left there. Exits with 77 when a compiler or emulator is missing. Rust's
# own library is built from the sources that Debian packages (rust-web-src), for the toolchain of rustc-web.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$(realpath "$1") size=$2 dir=$(realpath "$3")
for tool in /usr/bin/cargo /usr/bin/rustc arm-none-eabi-ld qemu-system-arm; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed: run scripts/install-device-tools.sh" >&2; exit 77; }
done
cd "$here/runtime"
target=${CARGO_TARGET_DIR:-$here/../../target}/device
env -u RUSTUP_TOOLCHAIN -u RUSTC -u CARGO RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 INTSEG_MODEL="$model" INTSEG_SIZE="$size" \
    /usr/bin/cargo build --release --quiet --target-dir "$target"
cp "$target/thumbv7m-none-eabi/release/intseg-device" "$dir/runtime.elf"
cd "$dir"
rm -f classes.raw
timeout 300 qemu-system-arm -M mps2-an385 -semihosting-config enable=on,target=native -display none -monitor none \
    -serial none -kernel runtime.elf < /dev/null
