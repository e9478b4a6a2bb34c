#!/usr/bin/env bash
# An installation without extras in a virtual environment of its own: it runs packed models, and has no torch.
#
#   bash tests/light_install.sh [PYTHON]
#
# PYTHON (default python3) has everything installed: it packs tiny models and, where pip brought them, MiniLM and SmolLM2
# at 8 bits. The wheel is made of this tree; its engine is PYTHON's, for compiling takes minutes. WHEEL=FILE installs that
# wheel as it is. Takes about half a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" tests/light_models.py pack "$work/models"
"$python" -m venv "$work/light"
if [ -n "${WHEEL:-}" ]; then
    "$work/light/bin/pip" install --quiet --constraint constraints.txt "$WHEEL"
else
    CHINCHILLA_NO_ENGINE=1 "$work/light/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" .
    "$work/light/bin/pip" install --quiet --constraint constraints.txt "$work"/chinchilla_lm-*.whl
    engine=$("$python" -c 'from chinchilla_lm.native import engine_module; print(engine_module().__file__)')
    cp "$engine" "$work"/light/lib/python*/site-packages/chinchilla_lm/native/
fi

"$work/light/bin/pip" list
if "$work/light/bin/pip" list | grep -E -i '^(torch|transformers|safetensors|gguf) '; then
    echo "the installation without extras brought what it should not" >&2
    exit 1
fi
cp tests/light_models.py "$work"
cd "$work"
PATH="$work/light/bin:$PATH"
chinchilla doctor --seconds 0.5
python light_models.py run models
for verb in "compress models/tagger --task token-classification --data d -o o --speedup 2" "bench models/tagger"; do
    status=0
    said=$(chinchilla $verb 2>&1) || status=$?
    echo "status $status: $said"
    [ "$status" = 2 ] && [ "$(echo "$said" | wc -l)" = 1 ] && [[ "$said" == *"pip install 'chinchilla-lm[full]'" ]]
done
echo "the installation without extras answers as the whole one does"
