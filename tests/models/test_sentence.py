"""What sentence-transformers writes beside an embedding model, in its forms before and since 5.4."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.checkpoint import load as load_checkpoint
from chinchilla_lm.models.checkpoint import save
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.runtime.session import Session
from tests.conftest import byte_level_tokenizer, word_piece_tokenizer
from tests.models.tiny import DECODERS, build

TEXTS = ["the quick brown fox met Angela", "good"]
LONG = "the quick brown fox met Angela Merkel and Siemens in Munich . very good prices rose in the lazy answer time"
OLD = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
NEW_CLASSES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
}


def model(root: Path, name: str = "bert", inner: str = "") -> Path:
    """A random model with its tokenizer, in the folder itself or in one inside it."""
    tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
    folder = root / inner
    build(name, "embedding", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return root


def describe(
    root: Path, pooling: dict[str, Any], new: bool = False, normalize: bool = True, inner: str = "", more: str = ""
) -> None:
    """modules.json and the pooling's config."""
    kinds = ["Transformer", "Pooling", *([more] if more else []), *(["Normalize"] if normalize else [])]
    names = NEW_CLASSES if new else {}
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else inner, "type": names.get(kind, f"{OLD_ROOM}.{kind}")}
        for i, kind in enumerate(kinds)
    ]
    write(root / "modules.json", modules)
    write(root / "1_Pooling" / "config.json", pooling)


OLD_ROOM = "sentence_transformers.models"


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def old(*modes: str) -> dict[str, Any]:
    return {"word_embedding_dimension": 32} | {key: mode in modes for mode, key in OLD.items()}


def new(*modes: str, **more: Any) -> dict[str, Any]:
    mode = modes[0] if len(modes) == 1 else list(modes)
    return {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True} | more


def wanted(folder: Path, texts: list[str], how: str, normalize: bool, most: int | None = None) -> np.ndarray:
    """What sentence-transformers defines, on transformers' hidden states."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hidden_of = transformers.AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        cut = {} if most is None else {"truncation": True, "max_length": most}
        ids = tokenizer(text, return_tensors="pt", **cut)["input_ids"]
        with torch.no_grad():
            h = hidden_of(ids).last_hidden_state[0].double()
        pooled = {"cls": h[0], "mean": h.mean(0), "mean_sqrt_len_tokens": h.sum(0) / len(h) ** 0.5, "lasttoken": h[-1]}
        vectors.append(pooled[how] / pooled[how].norm() if normalize else pooled[how])
    return torch.stack(vectors).numpy()


def session(folder: Path, backend: str = "native") -> Session:
    return load(folder, backend=backend, dtype="float32", threads=1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("how", ["cls", "mean", "lasttoken", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("form", [old, new])
def test_both_forms_give_the_defined_vectors(form, how: str, normalize: bool, tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, form(how), form is new, normalize)
    if how == "mean_sqrt_len_tokens" and not normalize:
        with pytest.raises(InputError, match=r"pooling mean_sqrt_len_tokens is not one of cls, mean, lasttoken; use"):
            session(root)
        return
    expected = wanted(root, TEXTS, how, normalize)
    write_packed(root, "f32", tmp_path / "packed")
    save(load_checkpoint(root), tmp_path / "saved")
    export_hf(load_checkpoint(root), tmp_path / "exported")
    for folder in (root, tmp_path / "saved", tmp_path / "exported"):
        for backend in ("native", "torch"):
            np.testing.assert_allclose(session(folder, backend).embed(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(load(tmp_path / "packed", threads=1).embed(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(session(tmp_path / "packed", "torch").embed(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"),
    [("bert", "BertForMaskedLM"), ("electra", "ElectraForPreTraining"), ("llama-gqa", "LlamaForCausalLM")],
)
def test_the_class_that_a_model_was_trained_with_first_is_not_what_it_is(name: str, first: str, tmp_path: Path):
    """all-mpnet-base-v2's config names a masked language model, of whose head its file holds nothing."""
    root = model(tmp_path / "m", name)
    describe(root, old("mean"))
    expected = wanted(root, TEXTS, "mean", normalize=True)
    config = json.loads((root / "config.json").read_text())
    write(root / "config.json", config | {"architectures": [first]})
    for backend in ("native", "torch"):
        np.testing.assert_allclose(session(root, backend).embed(TEXTS), expected, atol=1e-5)
    write_packed(root, "f32", tmp_path / "packed")
    np.testing.assert_allclose(load(tmp_path / "packed", threads=1).embed(TEXTS), expected, atol=1e-5)
    if name == "bert":  # who asks for another head gets it
        assert load_checkpoint(root, task="token-classification", labels=["O"]).model.config.head.labels == ("O",)


def test_a_sparse_model_keeps_the_head_that_it_needs(tmp_path: Path):
    """SPLADE pools a masked language model's logits, and says so under a name of its own."""
    build("bert").save_pretrained(tmp_path)
    kinds = ("sparse_encoder.models.MLMTransformer", "sparse_encoder.models.SpladePooling")
    write(tmp_path / "modules.json", [{"type": f"sentence_transformers.{kind}"} for kind in kinds])
    assert load_checkpoint(tmp_path).model.config.head.kind == "language-modeling"


def test_a_folder_is_written_in_the_form_that_every_version_reads(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, new("lasttoken"), new=True)
    save(load_checkpoint(root), tmp_path / "saved")
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [one["type"] for one in modules] == [
        f"{OLD_ROOM}.{kind}" for kind in ("Transformer", "Pooling", "Normalize")
    ]
    assert [one["path"] for one in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((tmp_path / "saved" / "1_Pooling" / "config.json").read_text())
    assert pooling == old("lasttoken") | {"include_prompt": True}


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (old("max"), "pooling max is not one of cls, mean, lasttoken; use another model"),
        (new("max"), "pooling max is not one of"),
        (old("weightedmean"), "pooling weightedmean is not one of"),
        (old("cls", "mean"), "pooling cls and mean is not one of"),
        (new("cls", "mean"), "pooling cls and mean is not one of"),
        (old(), "pooling none is not one of"),
        (new("attention"), "pooling attention is not one of"),
        (new("mean") | {"pooling_mode": 7}, "pooling_mode 7 is not a name or a list"),
        (new("mean") | {"pooling_mode": [None]}, r"pooling_mode \[None\] is not a name or a list"),
        (old("mean") | {"pooling_mode_mean_tokens": "yes"}, "pooling_mode_mean_tokens 'yes' is not true or false"),
        (new("mean", include_prompt="no"), "include_prompt 'no' is not true or false"),
        ([1], "is not a dictionary"),
    ],
)
def test_poolings_that_we_do_not_have_are_refused_by_name(pooling, message: str, tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, pooling)
    with pytest.raises(InputError, match=rf"1_Pooling/config\.json:? {message}"):
        session(root)


def test_one_mode_in_a_list_and_a_silent_config_are_what_they_mean(tmp_path: Path):
    root = model(tmp_path / "m")
    for config in ({"embedding_dimension": 32, "pooling_mode": ["mean"]}, {"word_embedding_dimension": 32}):
        describe(root, config)
        np.testing.assert_allclose(session(root).embed(TEXTS), wanted(root, TEXTS, "mean", True), atol=1e-5)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "WeightedLayerPooling"])
def test_modules_that_we_do_not_have_are_refused_by_name(kind: str, tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, old("mean"), more=kind)
    with pytest.raises(
        InputError, match=rf"has a module '{OLD_ROOM}\.{kind}', not Transformer, Pooling, Normalize; use"
    ):
        session(root)


def test_modules_of_other_packages_and_orders_are_refused(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, old("mean"))
    plain = json.loads((root / "modules.json").read_text())
    write(root / "modules.json", [plain[0] | {"type": "custom_st.Transformer"}, *plain[1:]])
    with pytest.raises(InputError, match=r"has a module 'custom_st\.Transformer', not"):
        session(root)
    for wrong in ([plain[0], plain[2], plain[1]], [plain[0], plain[1], plain[1]]):
        write(root / "modules.json", wrong)
        with pytest.raises(InputError, match=r"has a module Pooling in another order than Transformer, Pooling"):
            session(root)
    write(root / "modules.json", plain[1:])
    with pytest.raises(InputError, match="has no module Transformer; download"):
        session(root)


def test_dropout_does_nothing_here(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, old("mean"), more="Dropout")
    np.testing.assert_allclose(session(root).embed(TEXTS), wanted(root, TEXTS, "mean", True), atol=1e-5)


def limited(root: Path, where: str) -> Path:
    """A model that says of itself, in one of the places, that it takes 9 tokens."""
    inner = "0_Transformer" if where == "inner" else ""
    model(root, inner=inner)
    describe(root, old("mean"), inner=inner)
    if where == "tokenizer":
        path = root / "tokenizer_config.json"
        write(path, json.loads(path.read_text()) | {"model_max_length": 9})
        write(root / "sentence_bert_config.json", {"max_seq_length": None})
    elif where == "roberta":
        write(root / "sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": False})
    else:
        write(root / inner / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    return root


@pytest.mark.parametrize("where", ["folder", "inner", "tokenizer", "roberta"])
def test_a_text_is_cut_where_the_model_says_wherever_it_says_it(where: str, tmp_path: Path):
    root = limited(tmp_path / "m", where)
    inner = root / "0_Transformer" if where == "inner" else root
    expected = wanted(inner, [LONG], "mean", True, most=9)
    save(load_checkpoint(root), tmp_path / "saved")
    write_packed(root, "f32", tmp_path / "packed")
    write_packed(tmp_path / "saved", "f32", tmp_path / "packed again")
    for folder in ("m", "saved", "packed", "packed again"):
        dtype = "auto" if "packed" in folder else "float32"
        with pytest.warns(UserWarning, match="1 of 1 texts are over 9 tokens"):
            found = load(tmp_path / folder, backend="native", dtype=dtype, threads=1).embed([LONG])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_a_limit_it_is_the_positions(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, old("mean"))
    write(root / "sentence_bert_config.json", {"max_seq_length": 4096})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = session(root).embed([LONG])
    np.testing.assert_allclose(found, wanted(root, [LONG], "mean", True), atol=1e-5)


@pytest.mark.parametrize("value", [0, -1, "16", True, 1.5])
def test_a_limit_that_is_none_is_refused(value: object, tmp_path: Path):
    root = model(tmp_path / "m")
    write(root / "sentence_bert_config.json", {"max_seq_length": value})
    with pytest.raises(InputError, match=rf"max_seq_length {value!r} is not a number of tokens from 1"):
        load(root, task="embedding")


def test_the_default_prompt_stands_before_every_text(tmp_path: Path):
    root = model(tmp_path / "m", "llama-gqa")
    describe(root, new("lasttoken"), new=True)
    prompts = {"prompts": {"query": "Question: ", "document": ""}, "default_prompt_name": "query"}
    write(root / "config_sentence_transformers.json", prompts)
    expected = wanted(root, [f"Question: {text}" for text in TEXTS], "lasttoken", True)
    np.testing.assert_allclose(session(root).embed(TEXTS), expected, atol=1e-5)
    write_packed(root, "f32", tmp_path / "packed")
    np.testing.assert_allclose(load(tmp_path / "packed", threads=1).embed(TEXTS), expected, atol=1e-5)
    write(root / "config_sentence_transformers.json", prompts | {"default_prompt_name": None})
    np.testing.assert_allclose(session(root).embed(TEXTS), wanted(root, TEXTS, "lasttoken", True), atol=1e-5)
    write(root / "config_sentence_transformers.json", prompts | {"default_prompt_name": "passage"})
    with pytest.raises(InputError, match="default_prompt_name 'passage' is not one of its prompts"):
        session(root)


def test_a_prompt_that_its_pooling_leaves_out_is_refused(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, new("mean", include_prompt=False))
    assert session(root).embed(TEXTS).shape == (2, 32)  # no prompt, nothing to leave out
    prompts = {"prompts": {"query": "Question: "}, "default_prompt_name": "query"}
    write(root / "config_sentence_transformers.json", prompts)
    with pytest.raises(InputError, match=r"has the prompt 'Question: ', which its pooling leaves out"):
        session(root)


def test_texts_are_lower_cased_where_the_model_says_so(tmp_path: Path):
    root = model(tmp_path / "m", "llama-gqa")
    describe(root, old("mean"))
    write(root / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": True})
    found = session(root).embed(["The Quick FOX"])
    np.testing.assert_allclose(found, wanted(root, ["the quick fox"], "mean", True), atol=1e-5)


def test_modules_do_not_matter_to_another_head(tmp_path: Path):
    root = model(tmp_path / "m")
    describe(root, old("max"), more="Dense")
    assert load_checkpoint(root, task="token-classification", labels=["O", "B-X"]).fresh


def test_a_head_that_the_config_still_names_is_not_asked_for(tmp_path: Path) -> None:
    """all-mpnet-base-v2 says MPNetForMaskedLM, and has the weights of the encoder alone."""
    root = model(tmp_path / "m")
    describe(root, {OLD["mean"]: True})
    expected = load(root, backend="torch", dtype="float32").embed(TEXTS)
    config = json.loads((root / "config.json").read_text())
    write(root / "config.json", config | {"architectures": ["BertForMaskedLM"]})
    assert load_checkpoint(root).model.config.head.kind == "embedding"
    assert np.array_equal(load(root, backend="torch", dtype="float32").embed(TEXTS), expected)
    (root / "modules.json").unlink()
    with pytest.raises(InputError, match="missing from the checkpoint"):
        load_checkpoint(root)
