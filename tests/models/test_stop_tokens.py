"""Tokens that end a text: by every key of GGUF, by name, and through a folder and a packed model made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from gguf import GGUFWriter

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from chinchilla_lm.models.stop_tokens import ENDS_OF_ANY_TYPE, ends_by_name, ends_of_gguf
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.runtime.text import stop_ids
from tests.conftest import byte_level_tokenizer
from tests.models.test_gguf import NAMES, add_config, permuted
from tests.models.test_gguf_tokenizer import BYTES
from tests.models.tiny import build

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
FIRST = len(BYTES) + 1  # the id of a file's first token of its own


def write(path: Path, whole: dict[str, int], keys: dict[str, int], model: Any = None) -> Path:
    """A GGUF file with byte-level tokens, then those of `whole` (token → type), and token ids under `keys`."""
    tokens = [*BYTES, "ab", *whole]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL] * FIRST + list(whole.values()))
    writer.add_token_merges(["a b"])
    for key, index in keys.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", index)
    if model is not None:
        add_config(writer, model.config)
        for name, tensor in model.state_dict().items():
            values = tensor.float().numpy()
            module, part = name.rsplit(".", 1)
            if module.endswith(("q_proj", "k_proj")):
                values = permuted(values, 4 if "q_proj" in name else 2)
            ours = NAMES | {"post_attention_layernorm": "ffn_norm"}
            block, _, rest = module.removeprefix("model.layers.").partition(".")
            place = f"blk.{block}.{ours[rest]}" if module.startswith("model.layers.") else ours[module]
            writer.add_tensor(f"{place}.{part}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("key", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_every_key_of_a_file_counts(tmp_path: Path, key: str) -> None:
    assert ends_of_gguf(write(tmp_path / "m.gguf", {"<a>": CONTROL, "<b>": CONTROL}, {key: FIRST + 1})) == [FIRST + 1]


def test_keys_that_end_nothing(tmp_path: Path) -> None:
    keys = {"bos": FIRST, "padding": FIRST, "fim_pre": FIRST, "fim_suf": FIRST, "fim_mid": FIRST, "unknown": FIRST}
    assert ends_of_gguf(write(tmp_path / "m.gguf", {"<a>": CONTROL}, keys)) == []


# What llama.cpp takes for the end of a generation, out of its sources in 2026.
LLAMA_CPP = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <|fim_pad|> <fim-pad> "
    "<fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>"
)


@pytest.mark.parametrize("name", LLAMA_CPP.split())
def test_names_count_where_no_key_does(tmp_path: Path, name: str) -> None:
    ordinary = [FIRST + 1] if name in ENDS_OF_ANY_TYPE else []
    for kind, wanted in [(CONTROL, [FIRST + 1]), (USER_DEFINED, [FIRST + 1]), (NORMAL, ordinary)]:
        assert ends_of_gguf(write(tmp_path / f"{kind}.gguf", {"<a>": CONTROL, name: kind}, {})) == wanted


def test_an_end_that_the_file_has_among_ordinary_tokens_is_one_token_and_ends(tmp_path: Path) -> None:
    whole = {"<|endoftext|>": CONTROL, "<|im_end|>": NORMAL, "</s>": NORMAL}
    path = write(tmp_path / "m.gguf", whole, {"eos": FIRST}, build("llama-gqa", vocab_size=FIRST + len(whole)))
    write_packed(path, "f32", tmp_path / "packed")
    for card in (Card.of(load(path)), read_packed(tmp_path / "packed")[1]):
        assert stop_ids(card.hf_config, card.tokenizer, card.source) == {FIRST, FIRST + 1}
        assert card.tokenizer.encode("ab<|im_end|>", add_special_tokens=False) == [FIRST - 1, FIRST + 1]
        assert len(card.tokenizer.encode("</s>", add_special_tokens=False)) == 4


def test_a_key_of_filling_in_stands_for_its_names(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"<|fim_pad|>": CONTROL, "<other>": CONTROL}, {"fim_pad": FIRST + 1})
    assert ends_of_gguf(path) == [FIRST + 1]


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        ("<|return|> <|call|> <|end|>", {0, 1}),
        ("<|flush|> <|calls|> <|end|>", {0, 1}),
        ("<|return|> <|end|>", {0, 1}),
        ("<|tool_response> </s> <eos>", {0, 2}),
        ("<|user|> </s>", {1}),
        ("<|user|>", set()),
    ],
)
def test_names_that_mean_something_else_beside_others(names: str, ends: set[int]) -> None:
    assert ends_by_name({name: index for index, name in enumerate(names.split())}) == ends


def test_an_id_that_is_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"eot_token_id {FIRST + 9} is not below {FIRST + 1}; download it again"):
        ends_of_gguf(write(tmp_path / "m.gguf", {"<a>": CONTROL}, {"eot": FIRST + 9}))


def test_an_id_that_says_that_there_is_none_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"<a>": CONTROL, "<|eot_id|>": CONTROL}, {"eos": FIRST, "eot": 2**32 - 1})
    assert ends_of_gguf(path) == [FIRST, FIRST + 1]


def test_a_file_a_folder_of_it_and_a_packed_model_stop_alike(tmp_path: Path) -> None:
    whole = {"<bos>": CONTROL, "<doc>": CONTROL, "<end>": CONTROL, "<|eot_id|>": CONTROL, "<|file_sep|>": CONTROL}
    keys = {"bos": FIRST, "eos": FIRST + 1, "eot": FIRST + 2}
    path = write(tmp_path / "m.gguf", whole, keys, build("llama-gqa", vocab_size=FIRST + len(whole)))
    ends = {FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 4}
    checkpoint = load(path)
    save(checkpoint, tmp_path / "folder")
    write_packed(path, "f32", tmp_path / "packed")
    cards = [Card.of(checkpoint), Card.of(load(tmp_path / "folder")), read_packed(tmp_path / "packed")[1]]
    assert [stop_ids(card.hf_config, card.tokenizer, card.source) for card in cards] == [ends] * 3
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "folder")
    assert set(generation.eos_token_id) == ends
    assert generation.bos_token_id == FIRST


def test_a_folders_tokens_count_by_name_too(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8, True]}))
    wanted = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), 5, 7, 8}
    for one in (tokenizer, PlainTokenizer.of(tokenizer)):
        assert stop_ids({"eos_token_id": 5}, one, tmp_path) == wanted
