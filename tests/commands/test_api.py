"""Each function of the API returns the object that its verb prints with --json, with the keys of its type."""

import inspect as python
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from chinchilla_lm import api, results
from chinchilla_lm.cli import VERBS, main
from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine.native import engine_module
from tests.commands.conftest import SHORTENING, TAGGING

Answer = Callable[..., Any]
NOT_FUNCTIONS = {"demo", "generate", "launch"}


def test_every_verb_has_its_function():
    functions = {name for name, one in vars(api).items() if python.isfunction(one) and one.__module__ == api.__name__}
    assert {name for name in functions if not name.startswith("_")} == set(VERBS) - NOT_FUNCTIONS


@pytest.mark.parametrize("verb", sorted(set(VERBS) - NOT_FUNCTIONS))
def test_every_result_is_typed_and_every_function_described(verb: str):
    function = getattr(api, verb)
    assert is_typeddict(get_type_hints(function)["return"])
    assert "Raises InputError" in " ".join(function.__doc__.split())


def test_every_result_is_described():
    types_ = [one for one in vars(results).values() if is_typeddict(one)]
    assert len(types_) > 20
    assert not [one.__name__ for one in types_ if not one.__doc__]


@pytest.fixture
def plain(model_folder: Callable[..., Path]) -> Path:
    """A random tagger. Do not write into it."""
    return model_folder("bert", "token-classification")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Answer:
    """The object that a command prints with --json."""

    def call(*words: object) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), "--json", "--quiet"]) in (0, 3)  # 3: a certificate that failed
        return json.loads(capsys.readouterr().out)

    return call


def fits(value: Any, kind: Any, where: str = "result") -> None:
    """Fail where a value is not of its type, and where a typed dictionary has a key too many or lacks one."""
    if kind is Any:
        return
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        assert kind.__required_keys__ <= value.keys() <= hints.keys(), where
        for key, one in value.items():
            fits(one, hints[key], f"{where}.{key}")
        return
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        assert any(_is(value, part, where) for part in parts), (where, value)
    elif origin is dict:
        for key, one in value.items():
            assert type(key) is str
            fits(one, parts[1], f"{where}[{key}]")
    elif origin is list:
        assert type(value) is list, where
        for one in value:
            fits(one, parts[0], f"{where}[]")
    elif parts:  # Literal
        assert value in parts, where
    else:
        allowed = (int, float) if kind is float else (kind,)
        assert type(value) in allowed, (where, value, kind)


def _is(value: Any, kind: Any, where: str) -> bool:
    try:
        fits(value, kind, where)
    except (AssertionError, AttributeError, TypeError):
        return False
    return True


def same(found: Any, other: Any, *aside: str) -> None:
    """The object of the function is that of the verb, of its type, and what --json can say; `aside`: what is timed."""
    fits(found, _type_of(found), "result")
    for key in aside:
        assert key in found
    assert {key: value for key, value in found.items() if key not in aside} == {
        key: value for key, value in other.items() if key not in aside
    }
    assert found.keys() == other.keys()
    assert json.loads(json.dumps(found)).keys() == found.keys()


def _type_of(found: Any) -> Any:
    """The type of the one function whose result has all of these keys."""
    kinds = [get_type_hints(getattr(api, verb))["return"] for verb in set(VERBS) - NOT_FUNCTIONS]
    fitting = [kind for kind in kinds if kind.__required_keys__ <= found.keys() <= get_type_hints(kind).keys()]
    assert fitting, found.keys()
    return fitting[0]


def test_inspect(printed: Answer, plain: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chinchilla_lm.pipeline.inspect.SECONDS", 0.05)
    same(api.inspect(str(plain), time=False), printed("inspect", plain, "--no-time"))
    timed = api.inspect(str(plain), tokens=8, dtype="float32")
    same(timed, printed("inspect", plain, "--tokens", 8, "--dtype", "float32"), "time")
    assert timed["time"]["link_us"].keys() == {f"{block}.{kind}" for block in range(3) for kind in ("attn", "mlp")}


def test_pack_and_export(printed: Answer, plain: Path, tmp_path: Path):
    found = api.pack(str(plain), format="f32", out=str(tmp_path / "one"), quiet=True)
    same(found, printed("pack", plain, "--format", "f32", "-o", tmp_path / "two"), "seconds", "output")
    found_ = api.export(str(plain), out=str(tmp_path / "three"), quiet=True)
    same(found_, printed("export", plain, "--to", "hf", "-o", tmp_path / "four"), "output", "load")
    same(api.export(str(plain), out=str(tmp_path / "three"), force=True), found_)
    for call in (
        lambda: api.pack(str(plain), format="int5", out=str(tmp_path / "x")),
        lambda: api.pack(str(plain), format="f32", out=str(tmp_path / "one")),
        lambda: api.export(str(plain), out=str(tmp_path / "three")),
        lambda: api.export(str(plain), to="onnx", out=str(tmp_path / "x")),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_a_packed_model_is_inspected(printed: Answer, plain: Path, tmp_path: Path):
    api.pack(str(plain), format="int8", out=str(tmp_path / "packed"), quiet=True)
    same(api.inspect(str(tmp_path / "packed"), time=False), printed("inspect", tmp_path / "packed", "--no-time"))


def test_doctor(printed: Answer):
    aside = ("machine", "bandwidth_gb_s", "reads", "gemm_gflops", "checks", "formats")
    same(api.doctor(0.05, quiet=True), printed("doctor", "--seconds", 0.05), *aside)
    with pytest.raises(InputError, match="seconds 0"):
        api.doctor(0.0)


def test_bench(printed: Answer, plain: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_bandwidth", lambda size: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_products", lambda kind: 100.0)
    shape = {"batch": 2, "tokens": 8, "seconds": 0.05, "threads": 1}
    found = api.bench(str(plain), against=str(plain), memory=False, backend="torch", quiet=True, **shape)  # type: ignore[arg-type]
    words = [word for key, value in shape.items() for word in (f"--{key}", value)]
    other = printed("bench", plain, "--against", plain, "--no-memory", "--backend", "torch", *words)
    same(found, other, "rounds", "rows", "ratios", "machine", "roofline")
    assert [row.keys() for row in found["rows"]] == [row.keys() for row in other["rows"]]
    assert [ratio.keys() for ratio in found["ratios"]] == [ratio.keys() for ratio in other["ratios"]]


def test_finetune(printed: Answer, plain: Path, tags: Path, tmp_path: Path):
    asked: dict[str, Any] = {"task": "token-classification", "data": str(tags), "out": str(tmp_path / "run")}
    found = api.finetune(str(plain), **asked, finetune={"epochs": 1, "batch_tokens": 512}, quiet=True)
    flags = ["--finetune-epochs", 1, "--finetune-batch-tokens", 512]
    same(found, printed("finetune", plain, *TAGGING, "--data", tags, *flags, "-o", tmp_path / "run"), "seconds")
    assert found["splits"].keys() == {"dev", "test"}


def test_evaluate(printed: Answer, tagger: Path, tags: Path):
    model, words = str(tagger / "model"), [*TAGGING, "--data", tags, "--split", "dev"]
    asked: dict[str, Any] = {"task": "token-classification", "data": str(tags), "split": "dev", "quiet": True}
    same(api.evaluate(model, **asked), printed("evaluate", model, *words))
    found = api.evaluate(model, **asked, against=model, margin=5.0)
    same(found, printed("evaluate", model, *words, "--against", model, "--margin", 5))
    assert found["certificate"]["passed"]


def test_the_main_job_and_its_stages(printed: Answer, tagger: Path, tags: Path, run_folder: Path):
    asked: dict[str, Any] = {"task": "token-classification", "data": str(tags), "out": str(run_folder), "quiet": True}
    fields: dict[str, Any] = {"speedup": 1.2, "margin": 50.0, "method": "refine", "max_measures": 20, "batch": 4}
    fields |= {"tokens": 12, "recover": {"epochs": 2, "batch_tokens": 256, "learning_rate": 3e-3}}
    found = api.compress(str(tagger), **asked, **fields)
    other = printed("compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", run_folder)
    same(found, other, "seconds", "rows", "speedup", "verdict")
    assert [row.keys() for row in found["rows"]] == [row.keys() for row in other["rows"]]
    for verb in ("score", "search", "shorten", "recover"):
        same(getattr(api, verb)(str(run_folder), quiet=True), printed(verb, "-o", run_folder))


def test_what_is_wrong_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="task"):
        api.evaluate("m", task="nothing", data="d")
    with pytest.raises(InputError, match="no target is given"):
        api.search(str(tmp_path), model="m", task="language-modeling", data="d")
    with pytest.raises(InputError):
        api.bench(str(tmp_path / "none"), seconds=0.0)
