"""`chinchilla generate`: continue a text, piece by piece on standard output; or several, together."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from chinchilla_lm.commands.inspect import add_cache_argument, add_device_arguments
from chinchilla_lm.console import Console

if TYPE_CHECKING:
    from chinchilla_lm.runtime.generate import Generation
    from chinchilla_lm.runtime.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompts, and how to choose tokens."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="the text to continue; may be repeated: several are written together",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens to write (default 64)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that add up to P")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="choose among those P times as likely as the likeliest"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 shuns repetition")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end of the text, for timing")
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="native, torch or (default) auto: native on the CPU"
    )
    add_cache_argument(parser)
    add_device_arguments(parser)
    parser.epilog = (
        "A packed copy of a GGUF file is kept in the user's cache (4 GiB at most), so that the next use begins sooner; "
        "the environment variable CHINCHILLA_KEEP=0 turns that off."
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the texts. Raises InputError for a model that writes none, and for settings out of range."""
    session = _load(args, console)
    begun = time.perf_counter()
    generations = [_start(session, prompt, args) for prompt in args.prompt]
    texts = [""] * len(generations)
    alone = len(generations) == 1
    for index, piece in session.write(generations):
        texts[index] += piece
        if alone and not console.json_mode:
            _write(piece)
    seconds = time.perf_counter() - begun
    results = [_result(text, generation) for text, generation in zip(texts, generations, strict=True)]
    if alone:
        if not console.json_mode:
            _write("\n")
        console.result(results[0] | {"seconds": seconds})
        return 0
    for prompt, text in zip(args.prompt, texts, strict=True):
        console.show(f"--- {prompt}")
        console.show(text)
    console.result({"results": results, "seconds": seconds})
    return 0


def _load(args: argparse.Namespace, console: Console) -> Session:
    from chinchilla_lm.runtime.loading import EngineWarning, load

    with console.warned(EngineWarning):
        return load(args.model, args.backend, args.device, args.dtype, args.threads, cache=args.cache)


def _start(session: Session, prompt: str, args: argparse.Namespace) -> Generation:
    return session.start(
        prompt,
        args.max_new_tokens,
        ignore_eos=args.ignore_eos,
        chat=args.chat,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=args.stop,
        seed=args.seed,
    )


def _result(text: str, generation: Generation) -> dict[str, Any]:
    return {"text": text, "tokens": len(generation.tokens), "prompt_tokens": generation.prompt_tokens}


def _write(text: str) -> None:
    """At once and without a line end; a letter that the terminal's encoding lacks becomes an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
