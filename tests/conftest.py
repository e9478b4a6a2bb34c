"""Tiny random models and tokenizers, built on the spot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from chinchilla_lm.models.config import HeadConfig, ModelConfig, RopeConfig
from chinchilla_lm.models.transformer import Transformer

# Triton, which runs kernels on the CPU where there is no GPU, reads it when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Time limits of single examples say how busy the machine is, not whether the code is right.
settings.register_profile("chinchilla", deadline=None)
settings.load_profile("chinchilla")
# For fixtures of the session, which are made before `one_thread`; stage hashes hold the number of threads.
torch.set_num_threads(1)
# A shell that starts the tests in the background has SIGINT ignored, and what ignores it passes that on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from a second thread and wait long for it where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache gets no copies of models that exist for one test; nor do tests find those of others."""
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")


@pytest.fixture
def tiny_config() -> Callable[..., ModelConfig]:
    """A maker of three-block causal pre-norm models with rotary positions; keyword arguments change fields."""

    def make(**changes: Any) -> ModelConfig:
        config = ModelConfig(
            family="test",
            vocab_size=97,
            hidden_size=32,
            num_blocks=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_positions=64,
            causal=True,
            norm="rmsnorm",
            norm_eps=1e-5,
            placement="pre",
            activation="silu",
            gated=True,
            head=HeadConfig("language-modeling", bias=False, tied=True),
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            positions="rope",
            ropes=(RopeConfig(),) * 3,
        )
        changes = {"ropes": ()} | changes if changes.get("positions") == "learned" else changes
        return replace(config, **changes)

    return make


@pytest.fixture
def tiny_model() -> Callable[..., Transformer]:
    """A maker of models with every weight random: norms, their biases and all others too."""

    def make(
        config: ModelConfig,
        dropped: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Transformer:
        model = Transformer(config, dropped).to(dtype).eval()
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                spread = 0.3 if "norm" in name else weight.shape[-1] ** -0.5
                centre = 1.0 if name.endswith("norm.weight") and not config.norm_unit_offset else 0.0
                weight.copy_(centre + spread * torch.randn(weight.shape, generator=random, dtype=torch.float64))
        return model

    return make


WORDS = (
    "Once upon a time the quick brown fox met Angela Merkel and Siemens in Munich , where the lazy dog slept . "
    "naïve façade – 日本語 🙂 is it good or bad ? The answer is : very good , U.S. prices rose 3.5 % ."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_tokenizer() -> Any:
    """Byte-level BPE without merges across words, as GPT-2 and Llama 3 have it; every text can be spelt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, unk_token=end)


def word_piece_tokenizer() -> Any:
    """WordPiece with [CLS] and [SEP], as BERT has it, lower-cased: every word of WORDS, and what others are spelt with.

    Not trained: the trainer of WordPiece gives another vocabulary in every process.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(WORDS))]
    letters = sorted(set("".join(words)))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of Hugging Face folders with a random model and its tokenizer: `llama-gqa` or `bert`, with a head.

    The same arguments give the same folder: do not write into it.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(name: str = "llama-gqa", kind: str = "language-modeling") -> Path:
        if (name, kind) not in made:
            from tests.models.tiny import DECODERS, build

            tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
            tokenizer.chat_template = CHAT_TEMPLATE if name in DECODERS else None
            folder = tmp_path_factory.mktemp(f"{name}-{kind}")
            build(name, kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name, kind] = folder
        return made[name, kind]

    return make
