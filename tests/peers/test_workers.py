"""What workers tell their programs, by programs that only write down what they are told."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from chinchilla_lm.peers.table import LLAMA_FORMS, PEERS, WORKERS

VOCABULARY = 7


def fields(*names: str) -> type[ctypes.Structure]:
    return type("Params", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_int) for name in names]})


Quantize = fields("ftype", "pure", "token_embedding_type", "output_tensor_type")
Context = fields(
    *("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch"),
    *("type_k", "type_v", "flash_attn_type", "kv_unified"),
)


def plain(options: ctypes.Structure) -> dict[str, int]:
    return {name: getattr(options, name) for name, *_ in options._fields_}


class Llama(ModuleType):
    """llama_cpp, as far as the worker calls it."""

    LLAMA_FTYPE_MOSTLY_Q4_0, LLAMA_FTYPE_MOSTLY_Q8_0 = 2, 7

    def __init__(self) -> None:
        super().__init__("llama_cpp")
        self.context, self.made, self.files, self.freed = Context, list[dict[str, int]](), list[dict[str, int]](), 0

    def llama_model_quantize_default_params(self) -> ctypes.Structure:
        return Quantize(ftype=-1, pure=0, token_embedding_type=99, output_tensor_type=99)

    def llama_model_quantize(self, source: bytes, target: bytes, options: Any) -> int:
        self.files.append(plain(options._obj))
        return 0

    def llama_context_default_params(self) -> ctypes.Structure:
        return self.context(flash_attn_type=-1, kv_unified=0)

    def llama_init_from_model(self, model: object, options: ctypes.Structure) -> int:
        self.made.append(plain(options))
        return len(self.made)

    def llama_free(self, context: object) -> None:
        self.freed += 1

    def llama_batch_init(self, tokens: int, *_: int) -> SimpleNamespace:
        lists = {name: [0] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(tokens)], **lists)

    def llama_get_logits_ith(self, context: object, row: int) -> Any:
        return ctypes.cast((ctypes.c_float * VOCABULARY)(), ctypes.POINTER(ctypes.c_float))

    def __getattr__(self, name: str) -> Any:
        answers = {"llama_decode": 0, "llama_vocab_n_tokens": VOCABULARY, "llama_model_load_from_file": 1}
        return lambda *_: answers.get(name)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers can be imported, as where they run."""
    monkeypatch.syspath_prepend(str(WORKERS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(WORKERS)):
            del sys.modules[name]


@pytest.fixture
def llama(workers: None, monkeypatch: pytest.MonkeyPatch) -> Llama:
    found = Llama()
    monkeypatch.setitem(sys.modules, "llama_cpp", found)
    return found


def loaded(cache: str) -> Any:
    worker = importlib.import_module("llama_cpp_python").Worker()
    worker.load("folder", "Q4_0", 2, "language-modeling", 1056, cache)
    return worker


def test_llama_cpp_has_a_buffer_for_each_of_several_sequences(llama: Llama):
    worker = loaded("f16")
    assert len(worker.write([[1, 2, 3]], 4)) == 4
    one = llama.made[-1]
    assert (one["n_seq_max"], one["n_threads"], one["n_threads_batch"]) == (1, 2, 2)
    assert one["n_ctx"] == one["n_batch"] == 1280, "all that a sequence may hold, in whole steps"
    worker.write([[1] * 16] * 8, 32)
    eight = llama.made[-1]
    assert (eight["n_seq_max"], eight["kv_unified"], eight["n_ctx"]) == (8, 0, 8 * 256)
    worker.write([[1] * 16] * 8, 4)
    assert len(llama.made) == 2, "what has room is kept"
    worker.nats([[1, 2, 3]])
    assert llama.made[-1] == one
    assert llama.freed == 2


@pytest.mark.parametrize(("cache", "kind", "flash"), [("f16", 1, -1), ("q8_0", 8, 1), ("", 1, -1)])
def test_llama_cpp_keeps_keys_and_values_as_asked(llama: Llama, cache: str, kind: int, flash: int):
    worker = loaded(cache)
    made = llama.made[-1]
    assert (made["type_k"], made["type_v"], made["flash_attn_type"]) == (kind, kind, flash)
    assert worker.cache() == (cache or "f16")


def test_a_llama_cpp_without_an_option_is_not_raced_without_it(llama: Llama):
    llama.context = fields("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "flash_attn_type")
    llama.llama_context_default_params = lambda: llama.context()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no option kv_unified"):
        loaded("f16")


def test_llama_cpp_quantises_as_it_does_or_everything_alike(llama: Llama, tmp_path: Path):
    worker = importlib.import_module("llama_cpp_python").Worker()
    for form in ("Q4_0", "Q4_0 pure"):
        worker.convert("model.gguf", str(tmp_path / form), form, [], "")
    assert [tuple(one.values()) for one in llama.files] == [(2, 0, 99, 99), (2, 1, 2, 2)]
    assert {"Q8_0", "Q4_0", "Q4_0 pure", "Q4_1", "Q4_1 pure"} == set(LLAMA_FORMS)
    assert set(PEERS["llama.cpp"].caches.values()) == {("f16", "q8_0")}


@pytest.mark.parametrize(
    ("fused", "change", "said", "kept"),
    [
        (
            {"Attention": 6, "BiasGelu": 6, "Gelu": 0},
            1e-4,
            "with the transformer optimiser: 6 Attention, 6 BiasGelu",
            "fused",
        ),
        ({"LayerNormalization": 2}, 0.0, "2 LayerNormalization; it does not apply to this model's attention", "fused"),
        ({"Attention": 0}, 0.0, "without the transformer optimiser, which fused nothing here", "plain"),
        ({"Attention": 6}, 0.5, "without the transformer optimiser, which changed the logits by 50.0%", "plain"),
        ({"Attention": 6}, float("nan"), "without the transformer optimiser, which changed the logits", "plain"),
        (None, 0.0, "without the transformer optimiser, which failed: KeyError", "plain"),
    ],
)
def test_onnx_runtimes_optimiser_is_used_where_it_applies(
    workers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fused: Any, change: float, said: str, kept: str
):
    class Model:
        def get_fused_operator_statistics(self) -> dict[str, int]:
            if fused is None:
                raise KeyError("num_heads")
            return fused

        def save_model_to_file(self, path: str) -> None:
            Path(path).write_text("fused")

    asked: list[dict[str, Any]] = []

    def optimize_model(path: str, kind: str, **options: Any) -> Model:
        asked.append(options)
        return Model()

    for name in ("onnxruntime", "onnxruntime.transformers", "onnxruntime.transformers.optimizer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["onnxruntime.transformers"].optimizer = sys.modules["onnxruntime.transformers.optimizer"]  # type: ignore[attr-defined]
    sys.modules["onnxruntime.transformers.optimizer"].optimize_model = optimize_model  # type: ignore[attr-defined]
    worker = importlib.import_module("onnx_export")
    monkeypatch.setattr(worker, "_change", lambda *_: change)
    (tmp_path / "config.json").write_text('{"n_heads": 12, "dim": 384}')
    plain_file, path = tmp_path / "plain.onnx", tmp_path / "model.onnx"
    plain_file.write_text("plain")
    assert said in worker.optimise(str(tmp_path), str(plain_file), str(path), [[1, 2]])
    assert asked == [{"num_heads": 12, "hidden_size": 384}]
    assert path.read_text() == kept
