"""The tokenizer that models run with: a backend of the `tokenizers` library, and what its caller must know besides.

What a folder's tokenizer files mean is for transformers to say: its classes have special tokens of their own,
lower-case or do not, add what `added_tokens.json` names, and put together their backends anew, each by rules that
change from release to release. So transformers reads a folder once, and what came of it is taken over: the backend with
all that was done to it, the special tokens, the chat template. `save` writes that out in full, and `load` reads such a
folder without transformers, which would import torch, and 220 MB with it. There is no second set of rules that could
differ.

One tokenizer serves many threads. The library keeps truncation and padding as state of the tokenizer, which a call
would set for all others, so that state is cleared once and never set again: what is too long is cut here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.files import json_text, read_json, read_text
from chinchilla_lm.models.chat_template import default_template, render

SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Texts = str | Sequence[str]
Strategy = Literal["longest_first", "do_not_truncate"]

# The key in tokenizer_config.json that says that the files are `save`'s, and need no rules.
MARK = "chinchilla_tokenizer"
VERSION = 1
FILE, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# What transformers should know of a saved tokenizer, and we need not.
_FOR_OTHERS = ("model_max_length", "model_input_names", "padding_side", "clean_up_tokenization_spaces")
MORE_SPECIALS = "extra_special_tokens"  # transformers' key for those with a role of the model's own: `image_token`


@dataclass(frozen=True)
class PlainTokenizer:
    """Text to token ids and back, for any number of threads.

    specials: role → token. chat_template: that of a chat without tools. cut_left: texts that are too long lose their
    beginnings. split_specials: a special token that stands in a text is read as text. others: settings that programs
    which read the saved files may want. ends: ids that end a text, where its file alone names them (GGUF).
    """

    backend_tokenizer: Any
    specials: Mapping[str, str]
    chat_template: str | None = None
    cut_left: bool = False
    split_specials: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)
    ends: frozenset[int] | None = None

    def __post_init__(self) -> None:
        backend = self.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.split_specials

    @classmethod
    def load(cls, source: Path) -> PlainTokenizer:
        """From a folder, or a GGUF file. Raises InputError where there is no tokenizer, or a damaged one."""
        if source.is_file():
            from chinchilla_lm.models.gguf_tokenizer import read_plain_tokenizer

            return read_plain_tokenizer(source)
        path = source / CONFIG
        config = read_json(path, "tokenizer config") if path.is_file() else {}
        if not isinstance(config, dict):
            raise InputError(f"{path} is not a dictionary; copy it again")
        if MARK not in config:
            from chinchilla_lm.models.tokenizer import load_tokenizer

            return cls.of(load_tokenizer(source), copy=False)
        if config[MARK] != VERSION:
            raise InputError(f"{path}: {MARK} {config[MARK]!r} is not {VERSION}; run chinchilla pack again")
        template = read_text(source / TEMPLATE, "chat template", "") if (source / TEMPLATE).is_file() else None
        return cls(
            _backend(source / FILE),
            _specials(config),
            template,
            config.get("truncation_side") == "left",
            config.get("split_special_tokens") is True,
            {name: config[name] for name in _FOR_OTHERS if name in config},
        )

    @classmethod
    def of(cls, tokenizer: Any, copy: bool = True) -> PlainTokenizer:
        """What a fast tokenizer of transformers does. copy: it stays in use, with its own truncation and padding."""
        if isinstance(tokenizer, cls):
            return tokenizer
        backend = tokenizer.backend_tokenizer
        return cls(
            type(backend).from_str(backend.to_str()) if copy else backend,
            dict(tokenizer.special_tokens_map),
            default_template(tokenizer.chat_template),
            tokenizer.truncation_side == "left",
            bool(tokenizer.split_special_tokens),
            {name: getattr(tokenizer, name) for name in _FOR_OTHERS},
        )

    def save(self, folder: Path) -> None:
        """Write it, so that `load` and transformers read the same without a rule of any class of tokenizer."""
        # Not by the library itself, which raises nothing narrower than Exception where the disk is full.
        (folder / FILE).write_text(self.backend_tokenizer.to_str(), encoding="utf-8", newline="")
        config = {
            MARK: VERSION,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "truncation_side": "left" if self.cut_left else "right",
            "split_special_tokens": self.split_specials,
            **self.others,
            **{role: token for role, token in self.specials.items() if role in SPECIALS},
        }
        if more := {role: token for role, token in self.specials.items() if role not in SPECIALS}:
            config[MORE_SPECIALS] = more
        (folder / CONFIG).write_text(json_text(config, indent=2) + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (folder / TEMPLATE).write_text(self.chat_template, encoding="utf-8", newline="")

    def __getattr__(self, name: str) -> Any:
        """`eos_token`, `eos_token_id` and the other roles: None where there is no such token."""
        role = name.removesuffix("_id")
        if role not in SPECIALS:
            raise AttributeError(name)
        token = self.specials.get(role)
        return token if role == name or token is None else self.backend_tokenizer.token_to_id(token)

    def __len__(self) -> int:
        """How many tokens there are, added ones too."""
        return int(self.backend_tokenizer.get_vocab_size())

    def __call__(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | Strategy = False,
        max_length: int | None = None,
        padding: Literal[False] = False,
        return_token_type_ids: bool = True,
        return_attention_mask: bool = True,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        verbose: bool = False,
    ) -> dict[str, Any]:
        """`input_ids` and what else is asked for, as transformers names it: lists for one text, lists of lists for a
        list. truncation: True is longest_first. There is no padding, and nothing to be verbose about.

        Raises InputError for padding, for truncation without a max_length, and where a text cannot be cut so far.
        """
        if padding is not False:
            raise InputError(f"padding {padding!r} is not False; pad the ids with pad_token_id")
        one = isinstance(text, str)
        columns = [[text] if isinstance(text, str) else list(text)]
        if text_pair is not None:
            columns.append([text_pair] if isinstance(text_pair, str) else list(text_pair))
            if isinstance(text_pair, str) != one or len(columns[0]) != len(columns[1]):
                raise InputError(
                    f"{len(columns[0])} texts have {len(columns[1])} second texts; pass one for each, as two texts or "
                    "as two lists"
                )
        if truncation in (False, "do_not_truncate"):
            found = self._whole(columns, add_special_tokens)
        elif truncation in (True, "longest_first"):
            found = self._cut(columns, add_special_tokens, max_length)
        else:
            raise InputError(f"truncation {truncation!r} is not True, False or longest_first; pass one of them")
        wanted = {
            "input_ids": ("ids", True),
            "token_type_ids": ("type_ids", return_token_type_ids),
            "attention_mask": ("attention_mask", return_attention_mask),
            "special_tokens_mask": ("special_tokens_mask", return_special_tokens_mask),
            "offset_mapping": ("offsets", return_offsets_mapping),
        }
        given = {name: [getattr(row, key) for row in found] for name, (key, asked) in wanted.items() if asked}
        return {name: values[0] for name, values in given.items()} if one else given

    def _whole(self, columns: list[list[str]], specials: bool) -> list[Any]:
        """Encodings of texts or pairs; one alone without the library's threads, which take longer to wake."""
        rows = list(zip(*columns, strict=True))
        try:
            if len(rows) == 1:
                return [self.backend_tokenizer.encode(*rows[0], add_special_tokens=specials)]
            batch = columns[0] if len(columns) == 1 else rows
            return list(self.backend_tokenizer.encode_batch(batch, add_special_tokens=specials))
        except Exception as error:  # the library raises nothing narrower, as for an unknown token that it does not know
            raise InputError(
                f"the tokenizer cannot read the text ({in_one_line(error)}); use the model's own tokenizer files"
            ) from error

    def _cut(self, columns: list[list[str]], specials: bool, max_length: int | None) -> list[Any]:
        """Encodings of at most `max_length` tokens. The library's encodings can be cut one by one, and framed then."""
        if max_length is None:
            raise InputError("truncation needs a max_length; pass max_length=512")
        if not isinstance(max_length, int):
            raise InputError(f"max_length {max_length!r:.60} is not a whole number; pass max_length=512")
        backend = self.backend_tokenizer
        around = self.num_special_tokens_to_add(pair=len(columns) > 1) if specials else 0
        room = max_length - around
        if room < 0:
            raise InputError(f"max_length {max_length} leaves no room beside {around} special tokens; pass more")
        sides = [self._whole([column], specials=False) for column in columns]
        found = []
        for row in zip(*sides, strict=True):
            lengths = kept_lengths([len(side.ids) for side in row], room)
            for side, length in zip(row, lengths, strict=True):
                side.truncate(length, direction="left" if self.cut_left else "right")
            found.append(backend.post_process(*row, add_special_tokens=specials))
        return found

    def encode(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of one text or pair."""
        return list(self(text, text_pair, add_special_tokens=add_special_tokens)["input_ids"])

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: Literal[False] = False,
    ) -> str:
        """The text that ids spell, as it is. Raises InputError where spaces are to be cleaned up."""
        if clean_up_tokenization_spaces is not False:
            raise InputError("clean_up_tokenization_spaces is not False, and the text is given as it is; leave it away")
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary has them."""
        return [str(self.backend_tokenizer.id_to_token(one)) for one in ids]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token; where there is no such token, that of the unknown one, or None."""
        found: int | None = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if found is None else found

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Tokens that are put around one text, or two."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    def apply_chat_template(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        tokenize: Literal[False] = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """Turns, each with role and content, as the model was trained to read them.

        Raises InputError where there is no template, where it refuses them, and for `tokenize`.
        """
        if tokenize is not False:
            raise InputError("tokenize is not False, and the template gives text; pass the text to the tokenizer")
        if self.chat_template is None:
            raise InputError("the tokenizer has no chat template; write the prompt out")
        return render(self.chat_template, turns, self.specials, add_generation_prompt)


def kept_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of one text or a pair are kept, `room` in all, as the `tokenizers` library cuts longest_first.

    The longer one is cut down to the length of the other, then both: where they end up alike, it has the odd token.
    """
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    shorter, longer = sorted(lengths)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


def _specials(config: Mapping[str, Any]) -> dict[str, str]:
    """Role → token, out of a config that `save` wrote."""
    more = config.get(MORE_SPECIALS)
    found = {role: config.get(role) for role in SPECIALS} | (more if isinstance(more, dict) else {})
    return {role: token for role, token in found.items() if isinstance(token, str)}


def _backend(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path.parent} holds no {FILE}; run chinchilla pack again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"the tokenizer in {path.parent} cannot be loaded ({in_one_line(error)}); copy it again"
        ) from error
