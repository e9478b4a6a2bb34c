"""`chinchilla pack`, and the models that it writes: sessions on both backends, and files that are damaged."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.native import NativeBackend, engine_module
from chinchilla_lm.runtime.program import PAGE, read_program

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

TEXTS = ["Angela Merkel met Siemens in Munich .", "good", "is it bad or very good ? naïve fox"]


@pytest.fixture
def packed(model_folder, tmp_path):
    """A maker of packed folders of the tiny models."""

    def make(form="f32", *kind):
        folder = tmp_path / f"{form}-{'-'.join(kind)}"
        assert main(["pack", str(model_folder(*kind)), "--format", form, "-o", str(folder)]) == 0
        return folder

    return make


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 5, "min_p": 0.05, "repetition_penalty": 1.2}])
def test_both_backends_write_the_same_text(packed, model_folder, options):
    folder = packed()
    texts = {
        load(path, backend, dtype=dtype, threads=threads).generate("Once upon", 40, ignore_eos=True, **options)
        for path, backend, dtype, threads in [
            (folder, "native", "auto", 1),
            (folder, "native", "auto", 2),
            (folder, "torch", "float32", 1),
            (model_folder(), "native", "float32", 1),
            (model_folder(), "torch", "float32", 1),
        ]
    }
    assert len(texts) == 1


def test_both_backends_answer_alike(packed):
    tagger = packed("f32", "bert", "token-classification")
    native, twin = load(tagger, "native"), load(tagger, "torch", dtype="float32")
    for one, other in zip(native.entities(TEXTS), twin.entities(TEXTS), strict=True):
        assert [(e.label, e.start, e.end) for e in one] == [(e.label, e.start, e.end) for e in other]
        assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-5)
    classes = packed("f32", "bert", "text-classification")
    pairs: list[str | tuple[str, str]] = [*TEXTS, ("good", "bad")]
    found = [load(classes, backend).classify(pairs) for backend in ("native", "torch")]
    for first, second in zip(*found, strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=0.02)


@pytest.mark.parametrize("form", ["bf16", "int8", "int4", "int4-sym-g64"])
def test_the_torch_twin_has_the_rounded_weights(packed, form):
    folder = packed(form)
    native, twin = (load(folder, backend, dtype=dtype) for backend, dtype in [("native", "auto"), ("torch", "float32")])
    ids = [5, 200, 17, 33, 301, 7, 9]
    one, other = native.logits(ids), twin.logits(ids)
    assert np.sqrt(np.mean((one - other) ** 2)) < 0.05 * other.std()
    original = load(packed("f32"), "native").logits(ids)
    assert np.abs(other - original).max() > 0


def test_a_packed_session_imports_no_torch(packed):
    folder = packed("int8", "bert", "token-classification")
    code = (
        "import sys, chinchilla_lm as ch; s = ch.load(sys.argv[1], threads=1); print(s.entities(['Angela Merkel']));"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_stop_texts_end_the_text(packed):
    session = load(packed())
    whole = session.generate("Once upon", 40, ignore_eos=True)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    pieces = list(session.generate("Once upon", 40, stream=True, ignore_eos=True, stop=["never seen", stop]))
    assert "".join(pieces) == whole[: whole.index(stop)]
    with pytest.raises(InputError, match="stop"):
        session.generate("Once", 4, stop=[""])


def test_what_cannot_be_packed_is_refused(packed, model_folder, tmp_path, capsys):
    folder = packed()
    for arguments, said in [
        ([str(folder), "--format", "int8", "-o", str(tmp_path / "b")], "is packed already"),
        ([str(model_folder()), "--format", "int3", "-o", str(tmp_path / "b")], "format 'int3' is not one of"),
        ([str(model_folder()), "--format", "int8", "-o", str(folder)], "not an empty folder"),
        ([str(tmp_path / "none"), "--format", "int8", "-o", str(tmp_path / "b")], "none"),
    ]:
        assert main(["pack", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="dtype float32 is not that of a packed model"):
        load(folder, "native", dtype="float32")
    with pytest.raises(InputError, match="is for language-modeling, not embedding"):
        load(folder, "native", task="embedding")


def rewritten(path, change):
    """The program with another header, whose length and hash are right."""
    import hashlib

    raw = path.read_bytes()
    length = int.from_bytes(raw[8:16], "little")
    header = json.loads(raw[48 : 48 + length])
    data = raw[-(-(48 + length) // PAGE) * PAGE :]
    change(header)
    text = json.dumps(header).encode()
    head = raw[:8] + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    path.write_bytes(head + bytes(-len(head) % PAGE) + data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[:-1], "bytes of weights where"),
        (lambda raw: raw[:100], "damaged"),
        (lambda raw: b"", "cannot read|damaged"),
        (lambda raw: b"GGUF" + raw[4:], "first bytes"),
        (lambda raw: raw[:8] + b"\xff" * 8 + raw[16:], "header of"),
        (lambda raw: raw[:60] + b"X" + raw[61:], "header that does not match"),
        (lambda raw: raw[:-70] + bytes([raw[-70] ^ 1]) + raw[-69:], "SHA-256"),
    ],
)
def test_a_damaged_file_is_one_clear_error(packed, damage, said):
    path = packed() / "program.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        load(path.parent)


def _links(header):
    return next(one for one in header["operations"] if one["kind"] == "attention")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(hidden=h["hidden"] + 16),
        lambda h: h.update(hidden=-1),
        lambda h: h.update(vocabulary=1 << 40),
        lambda h: h.update(ropes=[[0.1]]),
        lambda h: h.update(cache="int4"),
        lambda h: h.pop("head"),
        lambda h: h.update(operations="none"),
        lambda h: h["operations"].append(None),
        lambda h: h["head"]["output"].update(offset=h["bytes"] - 64),
        lambda h: h["head"]["output"].update(offset=-64),
        lambda h: h["head"]["output"].update(offset=h["head"]["output"]["offset"] + 1),
        lambda h: _links(h)["first"].update(outputs=7),
        lambda h: _links(h)["first"].update(format="int4", group=32, asymmetric=False, inputs=1 << 27),
        lambda h: _links(h)["first"].update(format="int9"),
        lambda h: _links(h).update(kv_heads=3),
        lambda h: _links(h).update(rope=5),
        lambda h: _links(h).update(window=-4),
        lambda h: _links(h).update(placement="beside"),
        lambda h: h.update(card=None),
        lambda h: h.update(version=2),
    ],
)
def test_a_header_that_lies_is_refused(packed, change):
    path = packed() / "program.bin"
    rewritten(path, change)
    with pytest.raises(InputError, match=r"run chinchilla pack again"):
        load(path.parent, "native")


def test_an_instruction_set_can_be_forced(packed, monkeypatch):
    folder = packed("int8")
    texts = set()
    module = engine_module()
    assert module is not None
    for isa in module.kernel_names():
        monkeypatch.setenv("CHINCHILLA_ISA", isa)
        session = load(folder, "native")
        assert isinstance(session.runner, NativeBackend)
        assert session.runner.model.isa == isa
        texts.add(session.generate("Once upon", 12, ignore_eos=True))
    assert len(texts) == 1
    monkeypatch.setenv("CHINCHILLA_ISA", "mmx")
    with pytest.raises(InputError, match="CHINCHILLA_ISA=mmx is not one of"):
        load(folder, "native")


def test_a_program_is_mapped_and_not_read(packed):
    program = read_program(packed() / "program.bin")
    assert not program.data.flags.writeable
    assert program.data.ctypes.data % 64 == 0


def test_nan_weights_are_refused(model_folder, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(model_folder(), tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(["pack", str(folder), "--format", "int8", "-o", str(tmp_path / "out")]) == 2
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
