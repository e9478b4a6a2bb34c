#!/usr/bin/env bash
# Builds the engine for another architecture and runs a small model there in emulation: its outputs must not depend on how
# a text is cut, on threads, or on the architecture. Needs a cross compiler and QEMU; on Debian for the default, aarch64:
#
#     apt-get install g++-aarch64-linux-gnu qemu-user
#     bash tests/native/cross.sh
set -euo pipefail
architecture=${1:-aarch64}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
native=$root/chinchilla_lm/native
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() {  # a name, a compiler, sets of kernels as name:option
    local name=$1 compiler=$2 sources=() objects=() set source
    shift 2
    local options=(-std=c++20 -O2 -Wall -Wextra -Werror -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized -I"$native")
    for set; do
        "$compiler" "${options[@]}" ${set#*:} -DCHINCHILLA_ISA="${set%%:*}" -c "$native/kernels.cpp" -o "$work/$name.${set%%:*}.o"
        objects+=("$work/$name.${set%%:*}.o")
        [[ ${set%%:*} == portable ]] || options+=(-DCHINCHILLA_DOTPROD)
    done
    for source in engine pass head attention delta program team dispatch; do sources+=("$native/$source.cpp"); done
    "$compiler" "${options[@]}" -static -pthread "${sources[@]}" "$root/tests/native/cross.cpp" "${objects[@]}" -o "$work/$name"
}

sets=(portable:)
if [[ $architecture == aarch64 ]]; then sets+=(dotprod:-march=armv8.2-a+dotprod); fi
build here g++ portable:
build there "$architecture-linux-gnu-g++" "${sets[@]}"
"$work/here" | tee "$work/here.txt"
"qemu-$architecture" "$work/there" | tee "$work/there.txt"
# Compilers join products and sums differently; where values are rounded to a few bits that shows.
awk -v lines=$((6 * ${#sets[@]})) 'NR == FNR { for (i = 3; i <= NF; ++i) here[$2, i] = $i; next }
     { if (NF != 10) exit 1
       for (i = 3; i <= NF; ++i) if (!(($2, i) in here) || ($i - here[$2, i]) ^ 2 > 0.1 ^ 2) exit 1 }
     END { if (FNR != lines) exit 1 }' "$work/here.txt" "$work/there.txt" || { echo "$architecture: not the same"; exit 1; }
echo "$architecture: the same"
