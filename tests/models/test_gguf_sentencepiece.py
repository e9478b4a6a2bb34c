"""SentencePiece vocabularies out of GGUF metadata, against transformers' reading of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from transformers import AutoTokenizer

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import gguf_sentencepiece
from chinchilla_lm.models.gguf_sentencepiece import find_merges
from chinchilla_lm.models.gguf_tokenizer import read_plain_tokenizer, read_tokenizer
from chinchilla_lm.runtime.engine.native import engine_module

LETTERS = [*"abcdeint", "\u00e9", "\u2581", "\n"]
TEXTS = [
    "",
    "a  bee  in",
    " tea\n\ninn <think>e<turn>a",
    "na\u00efve \u4f60\u597d \U0001f642 \u2581x",
    "a   e" + " " * 9 + "d\n\n\n",
    "<0x41>\u00e9<unk><s>",
]


def vocabulary(seed: int, spaces: str) -> tuple[list[str], list[float], list[int]]:
    """Tokens of up to eight letters, many of them with the same score, not in the order of their scores."""
    random = np.random.default_rng(seed)
    named = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    named += [("<turn>", 3), ("<think>", 4), ("\n\n", 4), (spaces, 4)]
    made = list(LETTERS)
    while len(made) < 150:
        token = made[random.integers(len(made))] + made[random.integers(len(made))]
        if len(token) <= 8 and token not in made and token != spaces:
            made.append(token)
    tokens = [token for token, _ in named] + [made[place] for place in random.permutation(len(made))]
    scores = [0.0] * len(named) + [float(-random.integers(1, 60)) for _ in made]
    return tokens, scores, [kind for _, kind in named] + [1] * len(made)


def write(path: Path, arch: str, parts: tuple[list[str], list[float], list[int]], **more: Any) -> Path:
    writer = GGUFWriter(path, arch)
    for add in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{add}")(8)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(parts[0]))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(parts[0])
    writer.add_token_scores(parts[1])
    writer.add_token_types(parts[2])
    for role, index in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{role}_token_id")(index)
    for add, value in more.items():
        getattr(writer, add)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def texts(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    letters = [*LETTERS, " ", "x", "<think>", "\n\n"]
    return TEXTS + ["".join(random.choice(letters, size)) for size in random.integers(1, 40, 60)]


@pytest.mark.parametrize(("arch", "spaces"), [("gemma3", "  "), ("llama", "\u2581\u2581"), ("phi3", "  ")])
@pytest.mark.parametrize("engine", [True, False])
def test_ids_are_those_of_transformers(
    arch: str, spaces: str, engine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine:
        monkeypatch.setattr(gguf_sentencepiece, "engine_module", lambda: None)
    elif engine_module() is None:
        pytest.skip("the engine is not built")
    for seed in range(4):
        more = [{}, {"add_add_bos_token": False}, {"add_add_eos_token": True}, {}][seed]
        path = write(tmp_path / f"{seed}.gguf", arch, vocabulary(seed, spaces), **more)
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
        for ours in (read_tokenizer(path), read_plain_tokenizer(path)):
            for text in texts(seed):
                wanted = theirs(text)["input_ids"]
                assert list(ours(text)["input_ids"]) == wanted, text
                assert ours.decode(wanted, skip_special_tokens=True) == theirs.decode(wanted, skip_special_tokens=True)
            assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")


def test_a_token_is_made_by_one_merge_at_the_most() -> None:
    if engine_module() is None:
        pytest.skip("the engine is not built")
    tokens, scores, _ = vocabulary(7, "  ")
    merges = find_merges(tokens, np.array(scores, np.float32), "<unk>")
    whole = [left + right for left, right in merges]
    assert len(whole) == len(set(whole)) > 100
    # "aa" before "aaa": of "aaa" the longer left part comes first, and "a" + "aa" is never the last to be merged.
    assert find_merges(["a", "aa", "aaa"], np.array([0, -1, -2], np.float32), None) == [("a", "a"), ("aa", "a")]


def test_offsets_and_saved_files_are_right(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf", "gemma3", vocabulary(1, "  ")))
    found = tokenizer("a tea\n\n", return_offsets_mapping=True, add_special_tokens=False)
    assert found["offset_mapping"][0][0] == 0
    assert found["offset_mapping"][-1] == (5, 7)
    tokenizer.save_pretrained(tmp_path / "saved")
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in texts(1):
        assert stock(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert stock.eos_token == "</s>"


@pytest.mark.parametrize(("scores", "named"), [([0.0] * 3, "3 scores"), ([], "0 scores")])
def test_a_vocabulary_without_scores_is_refused(scores: list[float], named: str, tmp_path: Path) -> None:
    tokens, _, types = vocabulary(1, "  ")
    with pytest.raises(InputError, match=named):
        read_tokenizer(write(tmp_path / "t.gguf", "llama", (tokens, scores, types)))
