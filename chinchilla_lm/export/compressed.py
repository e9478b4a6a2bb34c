"""A rounded model as a Hugging Face folder in the format of compressed-tensors, `pack-quantized`, which vLLM and
transformers load.

A matrix of N outputs × K inputs is three tensors: `weight_packed`, int32 [N, K · bits / 32], the first code in the
lowest bits; `weight_scale`, [N, groups]; `weight_shape`, int64 [2]. Codes are those that were made, offset by half
their range as ours are. Zero points are whole codes there, and the minima of asymmetric formats are not: those formats
are refused rather than rounded again. (github.com/vllm-project/compressed-tensors, compressors/pack_quantized.)

The embedding and a decoder stay floats: vLLM has no rounded ones in this format. Floats are of 16 bits, in the file and
by the config's word: scales are float16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import refuse_ours_only
from chinchilla_lm.export.parts import Portable
from chinchilla_lm.files import building, json_text, read_json
from chinchilla_lm.models.checkpoint import Checkpoint, write_rest
from chinchilla_lm.models.filling import OUTPUT, output_weight
from chinchilla_lm.models.meta import adapted
from chinchilla_lm.models.saving import write_tensors
from chinchilla_lm.pack.quantized import Codes, Quantized

LEAST_GROUP = 32  # inputs that share a scale: vLLM's kernels have none of fewer
FORMAT = "pack-quantized"


def export_compressed(checkpoint: Checkpoint, codes: Mapping[str, Quantized], folder: str | Path) -> dict[str, int]:
    """Write the folder, wholly or not at all; returns the bytes of tensors by the format of their numbers.

    codes: of rounded matrices, by parameter. Raises InputError for codes that the format cannot hold, a family that has
    no linear layers for it, and where there are none at all.
    """
    refuse_ours_only(checkpoint)
    found = coded(checkpoint, codes)
    tensors, modules, ignored = spread(found)
    with building(folder) as temporary:
        write_tensors(tensors, temporary)
        write_rest(found.checkpoint, temporary, adapted(checkpoint.meta))
        path = temporary / "config.json"
        config = read_json(path, "model config") | {"dtype": "float16", "torch_dtype": "float16"}
        config["quantization_config"] = quantization_config(modules, ignored)
        path.write_text(json_text(config, indent=2) + "\n", encoding="utf-8")
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        form = "codes" if name.endswith(".weight_packed") else str(tensor.dtype).removeprefix("torch.")
        sizes[form] += tensor.nbytes
    return dict(sizes)


def coded(checkpoint: Checkpoint, codes: Mapping[str, Quantized]) -> Portable:
    """The portable model, and of its codes those that are written; links that add nothing are codes too."""
    family = checkpoint.family
    links = {name: one for name, one in codes.items() if name.startswith("links.")}
    if not links:
        raise InputError("this model has no rounded matrix; pass --format int4-sym, or a model packed in such a format")
    turned = {weight.ours for weight in family.weights(checkpoint.model.config) if weight.transposed}
    if turned & set(links):
        raise InputError(
            f"transformers' {family.name} has no linear layers, which compressed-tensors is for; pass --to hf"
        )
    found = Portable.of(checkpoint, {name: _whole_groups(name, one) for name, one in links.items()})
    like = next(iter(found.codes.values()))
    matrices = {f"{name}.weight": one.weight for name, one in _linears(found) if name.startswith("links.")}
    zeros = {name for name, one in matrices.items() if name not in found.codes and not one.any()}
    return found.with_codes(dict(found.codes) | {name: _nothing(like, matrices[name]) for name in zeros})


def _linears(found: Portable) -> list[tuple[str, nn.Linear]]:
    modules = found.checkpoint.model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if isinstance(module, nn.Linear)]


def _whole_groups(name: str, codes: Quantized) -> Quantized:
    """The same codes in groups that a row is whole ones of."""
    codes = codes.plain()
    inputs = codes.shape[1]
    if codes.minima_NG is not None:
        raise InputError(
            f"{name} has minima, which compressed-tensors has no place for; pack the model in int4-sym or int8"
        )
    if codes.group == 0:
        return codes
    group = gcd(codes.group, inputs)
    if group < LEAST_GROUP:
        raise InputError(
            f"{name} has {inputs} inputs, no whole groups of {LEAST_GROUP} or more; pack it in int8-row, or as bf16"
        )
    scales = codes.scales_NG[:, np.arange(inputs // group) * group // codes.group]
    return Quantized(codes.codes_NV, scales, None, group, codes.middle)


def _nothing(like: Quantized, weight: Tensor) -> Quantized:
    """Zeros, in the format of another matrix."""
    outputs, inputs = weight.shape
    group = gcd(like.group, inputs)
    codes = np.full((outputs, inputs), like.middle, np.uint8)
    scales = np.zeros((outputs, inputs // group if group else 1), like.scales_NG.dtype)
    return Quantized(codes, scales, None, group, like.middle)


Scheme = tuple[int, int]  # bits, and inputs that share a scale: 0 for a whole row


def spread(found: Portable) -> tuple[dict[str, Tensor], dict[str, Scheme], list[str]]:
    """The tensors of the file; the rounded modules with their schemes; and the linear modules that are not."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Scheme] = {}
    ignored = []
    linear = {f"{name}.weight" for name, _ in _linears(found)}
    for ours, name, values in found.parts():
        module = name.removesuffix(".weight")
        if isinstance(values, Quantized):
            _check_halves(torch.from_numpy(values.values()), ours)
            modules[module] = (8 if values.middle == 128 else 4, values.group)
            tensors[f"{module}.weight_packed"] = torch.from_numpy(packed(values))
            tensors[f"{module}.weight_scale"] = torch.from_numpy(np.ascontiguousarray(values.scales_NG))
            tensors[f"{module}.weight_shape"] = torch.tensor(values.shape)
            continue
        tensors[name] = torch.from_numpy(np.array(values, np.float32))
        _check_halves(tensors[name], ours)
        if values.ndim > 1:
            tensors[name] = _of_16_bits(tensors[name])
        if ours in linear:
            ignored.append(module)
    config = found.checkpoint.model.config
    if config.head.tied and OUTPUT in linear:
        ignored.append(output_weight(config, found.checkpoint.family).theirs[0].removesuffix(".weight"))
    return tensors, modules, ignored


def packed(codes: Quantized) -> NDArray[np.int32]:
    """int32 [N, K · bits / 32] of codes that are 8 or 4 bits: the first one in the lowest bits of a word."""
    raw: Codes = codes.codes_NV
    if codes.middle != 128:
        raw = raw[:, 0::2] | np.left_shift(raw[:, 1::2], 4, dtype=np.uint8)
    missing = -raw.shape[1] % 4
    return np.ascontiguousarray(np.pad(raw, ((0, 0), (0, missing)))).view("<i4")


def _of_16_bits(matrix: Tensor) -> Tensor:
    """In bfloat16 where that is exact, else in float16."""
    half = matrix.to(torch.bfloat16)
    return half if torch.equal(half.float(), matrix) else matrix.to(torch.float16)


def _check_halves(values: Tensor, where: str) -> None:
    """Raises InputError for a number beyond float16, which a loader turns all into, however the file has them."""
    if not torch.isfinite(values.to(torch.float16)).all():
        raise InputError(f"{where} has a weight that float16 cannot hold; pass --to hf")


def quantization_config(modules: Mapping[str, Scheme], ignored: list[str]) -> dict[str, Any]:
    """What config.json says: all linear layers but some, or where there are several schemes, each by its names."""
    schemes = list(dict.fromkeys(modules.values()))
    groups: dict[str, Any] = {}
    for number, (bits, group) in enumerate(schemes):
        named = [name for name, scheme in modules.items() if scheme == (bits, group)]
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(schemes) == 1 else named,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group" if group else "channel",
                "group_size": group or None,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
