"""`chinchilla pack`, and the models that it writes: sessions on both backends, and files that are damaged."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine.native import NativeBackend, engine_module
from chinchilla_lm.runtime.engine.program import PAGE, VERSION, read_program, write_program
from chinchilla_lm.runtime.loading import load

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
        ([str(model_folder()), "--format", "int5", "-o", str(tmp_path / "b")], "format 'int5' is not one of"),
        ([str(model_folder()), "--format", "int8", "-o", str(folder)], "not an empty folder"),
        ([str(tmp_path / "none"), "--format", "int8", "-o", str(tmp_path / "b")], "none"),
        ([str(model_folder()), "--format", "int8,heads=int4", "-o", str(tmp_path / "b")], "'heads' names no matrix"),
        ([str(model_folder()), "--format", "int8,head", "-o", str(tmp_path / "b")], "is not MATRIX=FORMAT"),
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
        lambda h: h.update(version=VERSION + 1),
    ],
)
def test_a_header_that_lies_is_refused(packed, change):
    path = packed() / "program.bin"
    rewritten(path, change)
    with pytest.raises(InputError, match=r"run chinchilla pack again"):
        load(path.parent, "native")


KINDS = ["language-modeling", "token-classification", "text-classification", "ranking", "embedding"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["llama-gqa", "bert", "gpt2", "distilbert", "roberta", "electra", "mpnet", "modernbert", "deberta-v2-own-matrices"],
)
def test_every_head_has_a_card_that_fits(packed, name, kind):
    folder = packed("int8", name, kind)
    assert {load(folder, backend).card.kind for backend in ("native", "torch")} == {kind}


def test_a_shortened_model_has_a_card_that_fits(model_folder, tmp_path):
    """Its config is our own, not that of its family."""
    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.packing import write_packed
    from chinchilla_lm.shorten.surgery import without

    whole = checkpoints.load(model_folder("bert", "token-classification"))
    checkpoints.save(whole.with_model(without(whole.model, {"1.mlp": "keep"}, share=True)), tmp_path / "short")
    write_packed(tmp_path / "short", "int8", tmp_path / "packed")
    for backend in ("native", "torch"):
        assert load(tmp_path / "packed", backend).labels == whole.model.config.head.labels


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("language-modeling", lambda h: h["card"].update(max_positions=10**9), "max_positions of the program"),
        ("language-modeling", lambda h: h["card"].update(hidden=31), "hidden of the program .* is 32, not 31"),
        ("language-modeling", lambda h: h["card"].update(causal=False), "causal"),
        ("language-modeling", lambda h: h.update(causal=1), "causal of the program .* is 1, not True"),
        ("language-modeling", lambda h: h["card"].update(labels=["O"]), "labels of config.json"),
        (
            "language-modeling",
            lambda h: h["head"].update(pooling="mean"),
            "pooling of the program .* is mean, not none",
        ),
        ("language-modeling", lambda h: h["head"].update(pooling=["none"]), "pooling"),
        ("language-modeling", lambda h: h["head"].update(normalize=True), "normalize"),
        ("language-modeling", lambda h: h["card"].update(kind="embedding"), "pooling"),
        ("language-modeling", lambda h: h["head"]["output"].update(outputs=64), "outputs of the program"),
        ("language-modeling", lambda h: [one.update(max_positions=10**9) for one in (h, h["card"])], "config.json"),
        ("language-modeling", lambda h: [one.update(hidden=16) for one in (h, h["card"])], "config.json"),
        ("token-classification", lambda h: h["card"].update(labels=["O"]), "outputs of the program .* is 3, not 1"),
        ("token-classification", lambda h: h["card"]["labels"].reverse(), "labels of config.json"),
        ("token-classification", lambda h: h["card"].update(kind="text-classification"), "pooling"),
        ("text-classification", lambda h: h["card"].update(kind="token-classification"), "pooling"),
        ("text-classification", lambda h: h["card"].update(kind="ranking"), "outputs of the program .* is 3, not 1"),
        ("text-classification", lambda h: h["head"].update(pooling="last"), "pooling"),
        ("ranking", lambda h: h["card"].update(labels=[]), "labels of config.json"),
        ("embedding", lambda h: h["head"].update(pooling="none"), "first or last or mean"),
        ("embedding", lambda h: h["head"].update(output=h["operations"][0]["second"]), "outputs of the program"),
    ],
)
def test_a_card_that_lies_is_refused(packed, kind, change, said):
    path = packed("f32", "llama-gqa" if kind == "language-modeling" else "bert", kind) / "program.bin"
    rewritten(path, change)
    for backend in ("native", "torch"):
        with pytest.raises(InputError, match=said) as refused:
            load(path.parent, backend)
        assert str(refused.value).endswith("run chinchilla pack again")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["operations"][0].update(name=5),
        lambda h: h["operations"][0].update(first=["f32"]),
        lambda h: h["operations"].append("norm"),
        lambda h: h["operations"].pop(),
        lambda h: h["head"].update(output={"outputs": h["card"]["vocabulary"]}),
        lambda h: h["embedding"]["tokens"].update(rows=2**70),
        lambda h: h["embedding"]["tokens"].update(offset=h["embedding"]["tokens"]["offset"] + 4),
        lambda h: _links(h)["first"].update(outputs=2.5),
    ],
)
def test_the_torch_twin_of_a_header_that_lies_is_refused(packed, change):
    path = packed() / "program.bin"
    rewritten(path, change)
    with pytest.raises(InputError, match=r"does not fit its config.*run chinchilla pack again"):
        load(path.parent, "torch")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"vocab_size": 7}, "vocabulary of config.json .* is 7, not"),
        ("config.json", {"architectures": ["BertModel"]}, "task of config.json"),
        ("config.json", {"id2label": {"0": "O", "1": "B-X"}}, "labels of config.json"),
        ("config.json", {"hidden_act": []}, "config.json"),
        ("chinchilla.json", {"version": 1, "window": 5}, "window 5"),
        ("chinchilla.json", {"version": 1, "window": {"max_tokens": "8"}}, "max_tokens"),
    ],
)
def test_files_beside_the_program_that_lie_are_refused(packed, name, change, said):
    folder = packed("f32", "bert", "token-classification")
    before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(before | change))
    for backend in ("native", "torch"):
        with pytest.raises(InputError, match=said):
            load(folder, backend)


def test_a_twin_that_would_pool_in_another_way_is_refused(packed):
    folder = packed("f32", "bert", "embedding")
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer", "path": ""}]))
    with pytest.raises(InputError, match="normalize True, not"):
        load(folder, "torch")


def test_a_program_is_the_same_in_memory_and_in_its_file(packed, model_folder):
    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.engine.compile import compile_model

    for form in ("f32", "bf16", "int8", "int4"):
        file = read_program(packed(form) / "program.bin")
        made = compile_model(checkpoints.load(model_folder()).model, form)
        assert (made.data == file.data).all()
        assert made.data.ctypes.data % 64 == 0
        assert file.header == file.header | made.header


def test_packing_holds_no_second_copy(model_folder, tmp_path, monkeypatch):
    """Beyond the model there is the program alone, and where it is written at once not even that."""
    import tracemalloc

    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.engine.compile import draft

    for module in ("pack.formats", "runtime.engine.compile"):
        monkeypatch.setattr(f"chinchilla_lm.{module}.PIECE", 1 << 8)
    laid = draft(checkpoints.load(model_folder()).model, "f32")
    peaks = []
    for make in (laid.program, lambda: write_program(laid, tmp_path / "program.bin")):
        tracemalloc.start()
        make()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1.5 * laid.size
    assert peaks[1] < 0.7 * laid.size


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
