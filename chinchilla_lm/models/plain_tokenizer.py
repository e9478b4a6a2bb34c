"""The fast tokenizer of a packed model, without transformers: that would import torch, and 220 MB with it.

It is `tokenizer.json` in the hands of the library that transformers itself calls, and the few names and settings that
`tokenizer_config.json` adds; the calls are those of transformers that this package makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.files import read_json, read_text

SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Texts = str | Sequence[str]


class PlainTokenizer:
    """Text to token ids and back."""

    def __init__(self, backend: Any, specials: Mapping[str, str], chat_template: str | None = None) -> None:
        """backend: a `tokenizers.Tokenizer`; specials: role → token."""
        self.backend_tokenizer = backend
        self._specials = {role: token for role, token in specials.items() if backend.token_to_id(token) is not None}
        self.chat_template = chat_template
        backend.no_padding()

    @classmethod
    def load(cls, folder: Path) -> PlainTokenizer:
        """From a folder's files. Raises InputError where they are missing or damaged."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{folder} holds no tokenizer.json; run chinchilla pack again")
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(
                f"the tokenizer in {folder} cannot be loaded ({in_one_line(error)}); copy it again"
            ) from error
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path, "tokenizer config") if config_path.is_file() else {}
        if not isinstance(config, dict):
            raise InputError(f"{config_path} is not a dictionary; copy it again")
        specials = {role: _token(config[role]) for role in SPECIALS if config.get(role)}
        template_path = folder / "chat_template.jinja"
        template = config.get("chat_template")
        if template_path.is_file():
            template = read_text(template_path, "chat template")
        return cls(backend, specials, template if isinstance(template, str) else None)

    def __getattr__(self, name: str) -> Any:
        """`eos_token`, `eos_token_id` and the other roles: None where there is no such token."""
        role = name.removesuffix("_id")
        if role not in SPECIALS:
            raise AttributeError(name)
        token = self._specials.get(role)
        return token if role == name or token is None else self.backend_tokenizer.token_to_id(token)

    def __call__(
        self,
        text: Texts,
        pair: Texts | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """`input_ids`, `token_type_ids` and `special_tokens_mask`: lists of integers for one text, lists of those for
        a list. truncation: False, or `longest_first` with a max_length."""
        backend = self.backend_tokenizer
        if truncation:
            backend.enable_truncation(max_length, strategy=str(truncation))
        else:
            backend.no_truncation()
        if isinstance(text, str):
            found = [backend.encode(text, pair, add_special_tokens=add_special_tokens)]
        else:
            rows = list(text) if pair is None else list(zip(text, pair, strict=True))
            found = backend.encode_batch(rows, add_special_tokens=add_special_tokens)
        columns = {
            "input_ids": [one.ids for one in found],
            "token_type_ids": [one.type_ids for one in found],
            "special_tokens_mask": [one.special_tokens_mask for one in found],
        }
        return {name: values[0] for name, values in columns.items()} if isinstance(text, str) else columns

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """The text that ids spell."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary has them."""
        return [str(self.backend_tokenizer.id_to_token(one)) for one in ids]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Tokens that are put around one text, or two."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    def apply_chat_template(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **_: Any) -> str:
        """Turns, each with role and content, as the model was trained to read them."""
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        assert self.chat_template is not None
        # What transformers gives its templates: those of published models rely on it.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)

        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = to_json
        known = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=turns, **known, **self._specials)
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses the prompt ({error}); leave --chat away") from error


def _token(value: Any) -> str:
    """A special token as a config names it: a string, or a dictionary with its content."""
    return str(value["content"]) if isinstance(value, dict) and "content" in value else str(value)
