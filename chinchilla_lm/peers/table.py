"""The programs that can be raced: what they need, which formats they have, and whose words those are.

Requirements are pinned: a figure of "some version" is nobody's. CPUs without AVX-512 need other build flags for
llama.cpp, so those are chosen from what the CPU has.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.cpu import NATIVE_BFLOAT16, cpu_flags

WORKERS = Path(__file__).parent / "workers"
LANGUAGE, TAGGING = "language-modeling", "token-classification"
# llama.cpp's build flag → the /proc/cpuinfo flag that it needs. Its AMX path is left out: it ends with the first token.
BUILD_FLAGS = {
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512_vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}
# Its fastest at 8 and at 4 bits: which of the two is, depends on the build. As its quantiser makes them, and with every
# matrix of that type, the tied head too, which it else keeps at 6 or 8 bits; of Q8_0 both are the same.
LLAMA_FORMS = ("Q8_0", "Q4_0", "Q4_0 pure", "Q4_1", "Q4_1 pure")
TORCH = ("torch==2.13.0",)
# Floats at their best: bfloat16 where the CPU multiplies it, else float32. OpenVINO chooses so by itself.
HALVES = bool(cpu_flags() & NATIVE_BFLOAT16)
FLOATS = ("float32", "bfloat16") if HALVES else ("float32",)


@dataclass(frozen=True, slots=True)
class Peer:
    """requirements: of its environment; none: it runs in ours. formats: by task. source: what its files are made from,
    the Hugging Face folder, a GGUF file, or the model itself; "ready": it reads the folder as it is. build: packages
    that pip has to compile, with these tools and the environment's variables. without: what these bring and text needs
    not: torchvision breaks transformers where it was built for another torch. caches: by format, in what keys and
    values are kept, one row each; "" is the program's own choice."""

    worker: str
    formats: Mapping[str, tuple[str, ...]]
    requirements: tuple[str, ...] = ()
    source: str = "folder"
    build: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    caches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _llama_flags() -> dict[str, str]:
    have = [name for name, flag in BUILD_FLAGS.items() if flag in cpu_flags()]
    return {"CMAKE_ARGS": " ".join(["-DGGML_NATIVE=OFF", *(f"-D{name}=ON" for name in have)])}


OURS = "chinchilla"
PEERS: dict[str, Peer] = {
    OURS: Peer(
        "chinchilla.py",
        {LANGUAGE: ("bf16", "int8", "int4"), TAGGING: ("bf16" if HALVES else "f32", "int8", "int8-row")},
        source="model",
        caches=dict.fromkeys(("int8", "int4"), ("int8", "bf16")),
    ),
    "llama.cpp": Peer(
        "llama_cpp_python.py",
        {LANGUAGE: LLAMA_FORMS},
        ("llama-cpp-python==0.3.36",),
        source="gguf",
        build=("llama-cpp-python",),
        tools=("scikit-build-core==1.1.2", "cmake==4.4.5", "ninja==1.13.2"),
        variables=_llama_flags(),
        caches=dict.fromkeys(LLAMA_FORMS, ("f16", "q8_0")),
    ),
    "openvino": Peer(
        "openvino_runtime.py",
        {LANGUAGE: ("int8", "int4"), TAGGING: ("bf16" if HALVES else "f32", "int8")},
        ("openvino==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0", *TORCH),
        without=("torchvision",),
    ),
    "onnxruntime": Peer(
        "onnx_runtime.py",
        {TAGGING: ("float32", "int8")},
        ("onnxruntime==1.32.0", "onnx==1.23.2", "transformers==5.23.0", *TORCH),
    ),
    "ctranslate2": Peer("ctranslate.py", {LANGUAGE: ("int8",)}, ("ctranslate2==4.8.5", "transformers==5.23.0", *TORCH)),
    "transformers": Peer("hugging_face.py", {LANGUAGE: FLOATS[-1:], TAGGING: FLOATS}, source="ready"),
    "torch-compile": Peer(
        "hugging_face.py", dict.fromkeys((LANGUAGE, TAGGING), (f"{FLOATS[-1]}+compile",)), source="ready"
    ),
}
BUILD_OF_LLAMA = "llama-bench"


def chosen(names: str) -> tuple[list[str], list[str]]:
    """The peers of a comma-separated list, and the commands that were given as llama-bench=COMMAND. Raises InputError
    for a name that is not one of them."""
    peers, commands = [], []
    for name in (one.strip() for one in names.split(",") if one.strip()):
        kind, _, command = name.partition("=")
        if kind == BUILD_OF_LLAMA and command:
            commands.append(_runnable(command))
        elif name in PEERS and name != OURS:
            peers.append(name)
        else:
            known = ", ".join(one for one in PEERS if one != OURS)
            raise InputError(f"peer {name!r} is not one of {known}; pass one of them, or {BUILD_OF_LLAMA}=PATH")
    if not peers and not commands:
        raise InputError(f"--peers {names!r} names nobody; pass --peers transformers")
    return list(dict.fromkeys(peers)), commands


def _runnable(command: str) -> str:
    """A command line whose program is there."""
    try:
        program = shlex.split(command)[0]
    except ValueError as error:
        raise InputError(f"{BUILD_OF_LLAMA}={command}: {error}; mend the quotes") from error
    if shutil.which(program) is None:
        raise InputError(f"{BUILD_OF_LLAMA}: {program!r} is no program that can be run; pass the path of a llama-bench")
    return command
