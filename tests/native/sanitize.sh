#!/usr/bin/env bash
# Runs the native tests with the engine built under AddressSanitizer and UndefinedBehaviorSanitizer, then under
# ThreadSanitizer. Everything is built and run in a temporary folder; any report fails. From a clone, in an environment
# that has the package's test dependencies, scikit-build-core and nanobind:
#
#     bash tests/native/sanitize.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$(command -v "${PYTHON:-python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What this CPU does not have is emulated, so that every kernel is tested.
lacks=ALL
grep -qs avx512_bf16 /proc/cpuinfo && grep -qs avx_vnni /proc/cpuinfo && lacks=TILES

check() {  # sanitizers, libraries to load first, pytest's arguments
    local kinds=$1 libraries=$2 build=$work/$1 copy=$work/$1-copy
    shift 2
    echo "== $kinds"
    cmake -S "$root" -B "$build" -DPython_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DCHINCHILLA_SANITIZE="$kinds" -DCHINCHILLA_EMULATE="$lacks" >"$work/log" 2>&1 &&
        cmake --build "$build" --parallel "$(nproc)" >"$work/log" 2>&1 || { tail -50 "$work/log"; exit 1; }
    mkdir -p "$copy"
    cp -r "$root/chinchilla_lm" "$root/tests" "$root/pyproject.toml" "$copy"
    rm -f "$copy"/chinchilla_lm/native/_engine*
    cp "$build"/_engine* "$copy/chinchilla_lm/native/"
    # An editable installation would find its own engine first.
    cat >"$copy/run.py" <<'END'
import sys

sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
import pytest

import chinchilla_lm.native._engine as engine

if not engine.__file__.startswith(sys.path[0]):
    sys.exit(f"{engine.__file__} is not the engine that was built")
print("kernels:", *engine.kernel_names())
sys.exit(pytest.main(sys.argv[1:]))
END
    local preload="" library
    for library in $libraries; do preload+="$(g++ -print-file-name="$library") "; done
    # Address-space layout: ThreadSanitizer's shadow has no room for a random one. Threads: one for torch, whose own
    # synchronisation the sanitizer does not see.
    (cd "$copy" && env LD_PRELOAD="$preload" PYTHONPATH="$copy" OMP_NUM_THREADS=1 PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
        TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 \
        setarch -R "$python" run.py -q -x -p no:cacheprovider --capture=sys "$@")
}

# A sanitizer takes more memory than any limit leaves, and ThreadSanitizer starts no threads behind a fork.
check address,undefined "libasan.so libubsan.so" tests/native -k "not system_does_not_give"
check thread "libtsan.so" tests/native/test_engine.py tests/native/test_resources.py tests/native/test_screen.py tests/native/test_threads.py \
    -k "not system_does_not_give and not fork and not child"
