"""Chat templates: Jinja programs that write a conversation as the model was trained to read it.

Published templates rely on what transformers gives them besides Jinja's own: `raise_exception`, `strftime_now`, a
`tojson` that escapes no HTML, `break` and `continue`, and `{% generation %}`, which marks what the model itself says
and is of interest to training alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line


def default_template(template: object) -> str | None:
    """The template of a chat without tools: the only one, or of several the one named `default`; None without any."""
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None


def render(
    template: str, turns: Sequence[Mapping[str, Any]], specials: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """A conversation as text. specials: role → token, which templates call by the role (`bos_token`).

    Raises InputError where the template is broken, or refuses these turns.
    """
    names = dict(specials) | {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    # transformers leaves what is None away, for many templates would print it.
    messages = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    try:
        return str(_environment().from_string(template).render(messages=messages, **names))
    except Exception as error:  # a template is a stranger's program, and raises what it likes
        raise InputError(f"the chat template refuses the prompt ({in_one_line(error)}); leave --chat away") from error


def _environment() -> Any:
    """The sandbox that a template runs in."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` is what stands between, with variables of its own."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> str:
            return str(caller())

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = to_json
    return environment
