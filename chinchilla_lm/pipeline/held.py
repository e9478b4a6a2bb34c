"""The certificate that a model has already, as verbs show it: only where it is about the files that are there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.runtime.artifact import local_folder
from chinchilla_lm.runtime.certified import CertificateWarning, IssuedCertificate, valid_certificate


def certificate_in(folder: Path | None, console: Console) -> IssuedCertificate | None:
    """That of a model's folder, None where there is no valid one; a warning says why one is not. folder: also a GGUF
    file, or none."""
    if folder is None or not folder.is_dir():
        return None
    with console.warned(CertificateWarning):
        return valid_certificate(folder)


def certificate_of(model: str, console: Console) -> IssuedCertificate | None:
    """The same of a model as a person names it, if it is a folder here. Raises InputError where it holds no model."""
    return certificate_in(local_folder(model), console)


def lines_of(certificate: Mapping[str, Any] | None) -> list[str]:
    """What is shown of one that is there, from its values."""
    return [] if certificate is None else IssuedCertificate.model_validate_json(json.dumps(certificate)).lines()


def how_to_certify(model: str, original: str, task: str) -> str:
    """What a person types to issue a certificate."""
    words = ["chinchilla", "evaluate", model, "--against", original, "--task", task]
    return f"{shlex.join(words)} --data DATA --margin M"
