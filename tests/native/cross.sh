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

build() {  # a compiler, a name
    local sources=() source
    for source in engine pass attention program team dispatch; do sources+=("$native/$source.cpp"); done
    "$1" -std=c++20 -O2 -Wall -Wextra -Werror -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized -static -pthread -I"$native" -DCHINCHILLA_ISA=portable \
        "$native/kernels.cpp" "${sources[@]}" "$root/tests/native/cross.cpp" -o "$work/$2"
}

build g++ here
build "$architecture-linux-gnu-g++" there
"$work/here" | tee "$work/here.txt"
"qemu-$architecture" "$work/there" | tee "$work/there.txt"
# Compilers join products and sums differently; where values are rounded to a few bits that shows.
paste -d' ' "$work/here.txt" "$work/there.txt" | awk '{
    if (NF != 18) exit 1
    for (i = 2; i <= 9; ++i) if (($i - $(i + 9)) ^ 2 > 0.1 ^ 2) exit 1
}' || { echo "$architecture: not the same"; exit 1; }
echo "$architecture: the same"
