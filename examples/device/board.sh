#!/usr/bin/env bash
# Builds an exported model for an emulated board and runs it on the folder's `input.rgb`:
#   examples/device/board.sh BOARD EXPORTED_FOLDER [plain|dsp|mve]
# BOARD is m3, m4, m7, m55 or rv32. Leaves `classes.raw`, `classes.ppm` and `BOARD.elf` in the folder and prints what
# the model's code, constants and memory take and how many instructions its images took. Exits with 77 when a compiler
# or emulator is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
board=$1 dir=$2 kernel=${3:-}
case $board in
m3) cpu=cortex-m3 machine=mps2-an385 script=mps2.ld ;;
m4) cpu=cortex-m4+nofp machine=mps2-an386 script=mps2.ld ;;
m7) cpu=cortex-m7+nofp machine=mps2-an500 script=mps2.ld ;;
m55) cpu=cortex-m55+nofp machine=mps3-an547 script=an547.ld ;;
rv32) cpu=rv32imac ;;
*) echo "unknown board $board: m3, m4, m7, m55 or rv32" >&2; exit 2 ;;
esac
if [ "$board" = rv32 ]; then
    prefix=riscv64-unknown-elf- emulator=qemu-system-riscv32
else
    prefix=arm-none-eabi- emulator=qemu-system-arm
fi
for tool in ${prefix}gcc $emulator; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed: run scripts/install-device-tools.sh" >&2; exit 77; }
done
cd "$dir"
flags=(-O2 -std=gnu99 -Wall -Wextra -Wconversion -Werror -ffunction-sections -fdata-sections -Wl,--gc-sections
    -DMODEL_BEFORE_FRAME=frame_start -DMODEL_AFTER_FRAME=frame_stop)
case $kernel in
plain) flags+=(-DINTSEG_PLAIN=1) ;;
dsp) flags+=(-DINTSEG_DSP=1) ;;
mve) flags+=(-DINTSEG_MVE=1) ;;
esac
rm -f classes.raw output.txt
if [ "$board" = rv32 ]; then
    flags+=(-march=rv32imac -mabi=ilp32 --specs=picolibc.specs --crt0=hosted --oslib=semihost -DPICOLIBC_INTEGER_PRINTF_SCANF
        -Wl,--defsym=__flash=0x80000000,--defsym=__flash_size=4M,--defsym=__ram=0x80400000,--defsym=__ram_size=4M)
    ${prefix}gcc "${flags[@]}" main.c model.c intseg_nn.c "$here/boards/riscv.c" -o "$board.elf"
    run=(-M virt -cpu rv32,f=false,d=false -bios none -chardev file,id=out,path=output.txt
        -semihosting-config enable=on,chardev=out,target=native)
else
    # The vector instructions of the M55 come with softfp alone; without the floating-point ones of +nofp all the same.
    abi=soft
    [ "$board" = m55 ] && abi=softfp
    flags+=(-mthumb "-mcpu=$cpu" "-mfloat-abi=$abi")
    ${prefix}gcc "${flags[@]}" main.c model.c intseg_nn.c "$here/boards/cortex-m.c" -nostartfiles --specs=nano.specs \
        --specs=rdimon.specs "-L$here/boards" -T "$script" -o "$board.elf"
    run=(-M "$machine" -semihosting-config enable=on,target=native)
fi
for file in model intseg_nn; do
    ${prefix}gcc "${flags[@]}" -c "$file.c" -o "$file.$board.o"
done
timeout 300 $emulator "${run[@]}" -icount shift=0 -display none -monitor none -serial none -kernel "$board.elf" \
    < /dev/null >> output.txt
cat output.txt
${prefix}size "model.$board.o" "intseg_nn.$board.o" | awk 'NR > 1 { sum += $1 + $2 } END { print "flash " sum " bytes" }'
${prefix}nm -S "$board.elf" | awk '$4 == "arena" { print "arena 0x" $2 }
    $4 == "image" || $4 == "classes" { print $4 " 0x" $2 }' | while read -r name bytes; do echo "$name $((bytes)) bytes"; done
