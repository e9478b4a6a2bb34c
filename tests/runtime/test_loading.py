import json
import shutil
import warnings

import pytest
import torch

import chinchilla_lm
from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import EngineWarning, load


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tpu"}, "backend 'tpu' is not one of auto, native, torch;"),
        ({"device": "abacus"}, "device 'abacus' is not one of"),
        ({"dtype": "int3"}, "dtype 'int3' is not one of auto, float32, bfloat16"),
        ({"threads": 0}, "threads 0 is not 1 or more"),
        ({"threads": 2.5}, "threads 2.5 is not a whole number; leave --threads away"),
        ({"task": "text-classification"}, "no head for text-classification|no trained head"),
    ],
)
def test_settings_that_do_not_exist_are_refused(model_folder, options, message):
    with pytest.raises(InputError, match=message):
        load(model_folder(), **{"backend": "torch"} | options)


@pytest.fixture
def no_engine(monkeypatch):
    for module in ("loading", "engine.native"):
        monkeypatch.setattr(f"chinchilla_lm.runtime.{module}.engine_module", lambda: None)


def test_without_the_engine_auto_is_torch_and_says_so(model_folder, no_engine):
    with pytest.warns(EngineWarning, match=r"no native engine, .* slower; install a C\+\+ compiler") as told:
        session = load(model_folder(), "auto", device="cpu", dtype="float32")
    assert session.backend == "torch"
    assert session.generate("good", 4, ignore_eos=True)
    assert len(told) == 1
    with pytest.raises(InputError, match=r"no native engine; install a C\+\+ compiler .* or pass --backend torch"):
        load(model_folder(), "native")


def test_without_the_engine_nothing_is_said_where_it_would_not_run(model_folder, no_engine, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(model_folder(), "torch").backend == "torch"
        monkeypatch.setattr("chinchilla_lm.runtime.device.resolve_device", lambda name: torch.device("cuda"))
        assert not loading.engine_serves("auto")
        assert not loading.engine_serves("cuda")


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_an_instruction_set_that_is_none_is_not_the_programs_fault(model_folder, monkeypatch):
    monkeypatch.setenv("CHINCHILLA_ISA", "abacus")
    with pytest.raises(InputError, match=r"^CHINCHILLA_ISA=abacus is not one of .*, or leave it away$"):
        load(model_folder(), "native", dtype="float32")


def test_threads_are_set_for_the_process(model_folder):
    chinchilla_lm.load(model_folder(), "torch", threads=2)
    assert torch.get_num_threads() == 2
    load(model_folder(), "torch")
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(engine_module() is None, reason="needs the engine")
def test_a_config_of_a_far_larger_model_is_refused_before_memory_runs_out(model_folder, tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "large")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**31}))
    with pytest.raises(InputError, match="use the config"):  # where the system grants any memory, the tensor's shape
        load(folder, "native", dtype="float32")
