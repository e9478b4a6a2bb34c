"""certificate.json: the verdict on one model, kept beside its files, and the check that it is about them.

It names the files that were judged by their SHA-256, what ran and read them how, the original, and the data, those of a
guard too; beside each verdict stands how many answers changed. Where one of the files is another, the folder has no
certificate: `valid_certificate` warns and gives None. The digest over its own content shows an edit. It is no
signature, as anybody can compute it; who does not trust whom the model came from can run the evaluation again, for
which the certificate names everything.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from chinchilla_lm import __version__
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, read_json, sha256_text, write_atomic
from chinchilla_lm.models.meta import META
from chinchilla_lm.runtime.artifact import Snapshot, deciding_files
from chinchilla_lm.runtime.engine.packed import PROGRAM
from chinchilla_lm.runtime.engine.verified import has_sha256

CERTIFICATE = "certificate.json"
VERSION = 2  # of its layout; 1 did not say how the model was read
MOST_BYTES = 1 << 18  # 1,000 shards take 110 KB
REMEDY = "chinchilla evaluate MODEL --against ORIGINAL --margin M issues another"


class CertificateWarning(UserWarning):
    """There is a certificate, and it is not about the files that lie beside it."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Verdict(_Strict):
    """What `evaluate.certificate.Certificate.to_dict` says: a difference with its interval, held against a margin."""

    metric: Name
    difference: float | None
    low: float | None
    high: float | None
    margin: Annotated[float, Field(gt=0)]
    n: Annotated[Count, Field(ge=1)]
    unit: Literal["points", "percent"]
    passed: bool
    more_examples: Count | None

    def words(self) -> str:
        """In one line."""
        unit = "%" if self.unit == "percent" else " points"
        difference, low, high = (
            "?" if one is None else f"{one:+.2f}" for one in (self.difference, self.low, self.high)
        )
        verdict = "passed" if self.passed else "failed" if self.more_examples is None else "undecided"
        return f"{verdict}: {self.metric} {difference}{unit} [{low}, {high}], margin {self.margin:g}"


class Interval95(_Strict):
    """A value with its 95 % interval, whose bounds one document does not give."""

    value: float
    low: float | None
    high: float | None


class Share(Interval95):
    """The same of a share."""

    value: Annotated[float, Field(ge=0, le=1)]


class Agreed(_Strict):
    """How many answers changed: what `evaluate.agreement.Agreement.to_dict` says."""

    answers: Annotated[Count, Field(ge=1)]
    same: Share
    flipped: Share
    """from right to wrong, or from wrong to right"""
    kl: Interval95
    """nats, of the model's probabilities from the original's"""

    def words(self) -> str:
        """In one line."""
        return (
            f"{self.same.value:.2%} of {self.answers:,} answers are the same, {self.flipped.value:.2%} flipped, "
            f"mean KL {self.kl.value:.4f} nats"
        )


class ReadAs(_Strict):
    """How a model read the data."""

    window: Annotated[Count, Field(ge=1)]
    """most tokens at a time"""
    context: Literal["sentence", "document"] | None
    """what a tagger saw of a document at a time; None for other tasks"""

    def words(self) -> str:
        """In a few words."""
        return f"windows of {self.window} tokens" + (f" (context {self.context})" if self.context else "")


class Data(_Strict):
    """What both were judged on."""

    name: Name
    """as it was passed"""
    sha256: Sha256
    """of the records"""
    split: Name
    """`all` where the splits were taken together, without what lies between splits that were made of running text"""
    examples: Count
    documents: Count


class Also(Verdict):
    """Another verdict on the same model: that on a guard's data, of another kind."""

    what: Name
    data: Data
    """a guard's records less those that stand in the data of the certificate too: its hash is of what is left"""
    agreement: Agreed | None


class Artifact(_Strict):
    """What was judged: a folder's deciding files, and what ran them."""

    kind: Literal["weights", "program"]
    files: Annotated[dict[Name, Sha256], Field(min_length=1, max_length=2000)]
    """name in the folder → SHA-256"""
    format: Name
    """of the weights as they ran: float32, bfloat16, or the program's"""
    backend: Literal["native", "torch"]
    device: Name

    @model_validator(mode="after")
    def _of_its_kind(self) -> Artifact:
        if (self.kind == "program") != (PROGRAM in self.files):
            raise ValueError(f"kind {self.kind} does not go with its files")
        return self


class Original(_Strict):
    """What it was compared with."""

    name: Name
    sha256: Sha256
    """of its weights, config and tokenizer, as `Checkpoint.sha256` has it"""
    dropped: Count
    """links that it lacked itself"""
    read: ReadAs


class Speed(_Strict):
    """How many times as fast as the original, and on what."""

    batch: Count
    tokens: Count
    new_tokens: Count
    """that are written behind the prompt; 0 where a pass was timed"""
    value: float
    low: float | None
    high: float | None
    threads: Count
    cpu: Name


class IssuedCertificate(Verdict):
    """What certificate.json holds."""

    version: Literal[2]
    artifact: Artifact
    read: ReadAs
    original: Original
    data: Data
    agreement: Agreed | None
    """None where a number is no answer to agree on, the two do not read the same tokens, or they do not choose among
    the same: labels in another order, vocabularies of another size"""
    speed: Speed | None
    control: bool
    """whether it was compared with the original trained on the same data by the same schedule, not as it was"""
    also: Annotated[list[Also], Field(max_length=100)]
    created: Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}\+00:00$")]
    software: Name
    digest: Sha256
    """SHA-256 of all the rest as JSON in ASCII, keys sorted, no spaces"""

    @property
    def holds(self) -> bool:
        """Whether every verdict in it is passed."""
        return self.passed and all(other.passed for other in self.also)

    def lines(self) -> list[str]:
        """For a person: the verdict and what it rests on, how many answers changed, then what else was judged."""
        artifact, data, original = self.artifact, self.data, self.original
        failed = ", ".join(other.what for other in self.also if not other.passed)
        verdict = f"failed by {failed}; {data.split}: {self.words().partition(': ')[2]}" if failed else self.words()
        trained = ", trained on the same data," if self.control else ""
        lacking = f", which itself lacks {original.dropped} links" if original.dropped else ""
        read = f", read in {original.read.words()}" if original.read != self.read else ""
        first = (
            f"certificate {verdict}; {data.examples:,} examples in {data.documents:,} documents of {data.split}; "
            f"judged as {artifact.kind} in {artifact.format} on {artifact.backend} ({artifact.device}) "
            f"in {self.read.words()}, against {original.name}{trained}{lacking}{read}, {self.created[:10]}"
        )
        changed = [] if self.agreement is None else [self.agreement.words()]
        return [first, *changed, *(_also_line(other) for other in self.also)]


def _also_line(other: Also) -> str:
    changed = "" if other.agreement is None else f"; {other.agreement.words()}"
    data = other.data
    return f"also {other.what} ({data.name}, {data.examples:,} examples), {other.words()}{changed}"


def digest_of(content: Mapping[str, Any]) -> str:
    """What the digest of a certificate with this content has to be."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return sha256_text(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False))


def issue(
    folder: Path,
    verdict: Mapping[str, Any],
    *,
    artifact: Artifact,
    read: ReadAs,
    original: Original,
    data: Data,
    agreement: Agreed | None,
    speed: Speed | None = None,
    control: bool = False,
    also: Sequence[Also] = (),
) -> IssuedCertificate:
    """Write a folder's certificate, in place of any that it had. Raises InputError where it cannot be written."""
    plain = json.loads(json_text(dict(verdict)))
    content = {
        **{key: plain[key] for key in Verdict.model_fields},
        "version": VERSION,
        "artifact": artifact.model_dump(),
        "read": read.model_dump(),
        "original": original.model_dump(),
        "data": data.model_dump(),
        "agreement": None if agreement is None else agreement.model_dump(),
        "speed": None if speed is None else speed.model_dump(),
        "control": control,
        "also": [one.model_dump() for one in also],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": f"chinchilla-lm {__version__}",
        "digest": "0" * 64,
    }
    # Through the model first: the digest is of numbers as they are read back, 1.0 and not 1.
    content = IssuedCertificate.model_validate_json(json.dumps(content)).model_dump()
    issued = IssuedCertificate.model_validate_json(json.dumps(content | {"digest": digest_of(content)}))
    write_atomic(folder / CERTIFICATE, issued.model_dump_json(indent=1) + "\n")
    return issued


def printable(name: str) -> str:
    """A name as a certificate may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:4096] or "?"


def valid_certificate(folder: Path, loaded: Snapshot | None = None) -> IssuedCertificate | None:
    """The certificate of the files in a folder; None where there is none.

    loaded: the files as they were read; they must not have changed. A certificate that is edited, of another version or
    about other files is none: a CertificateWarning says why.
    """
    try:
        found = read_certificate(folder)
        if found is None:
            return None
        why = _unlike(folder, found.artifact.files)
        if loaded is not None and loaded != Snapshot.of(folder):
            why = "files beside it changed since they were loaded"
        if why is None:
            return found
        raise _refused(folder, why)
    except (InputError, OSError) as error:
        warnings.warn(str(error), CertificateWarning, stacklevel=2)
        return None


def read_certificate(folder: Path) -> IssuedCertificate | None:
    """What certificate.json says, whole and not edited, of whatever files; None where there is none.

    Raises InputError for anything else.
    """
    path = folder / CERTIFICATE
    if not path.exists():
        _refuse_earlier_layout(folder)
        return None
    text = _text(path, folder)
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _refused(folder, f"it is not valid JSON ({' '.join(str(error).split())[:100]})") from error
    version = values.get("version") if isinstance(values, dict) else None
    if type(version) is not int or version != VERSION:
        raise _refused(folder, f"it has version {version!r:.60}, not {VERSION}")
    try:
        found = IssuedCertificate.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])[:100]
        raise _refused(folder, f"its {place!r} is refused ({problem['msg']:.100})") from error
    if found.digest != digest_of(found.model_dump()):
        raise _refused(folder, "its digest is not that of its text, which was edited")
    return found


def speaks_of_more(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether certificate.json, be it edited or of another version, holds a guard's verdict on these very files."""
    try:
        values = json.loads(_text(folder / CERTIFICATE, folder))
    except (InputError, ValueError, RecursionError):  # what cannot be read may be replaced
        return False
    artifact = values.get("artifact") if isinstance(values, dict) else None
    return isinstance(artifact, dict) and bool(artifact.get("files") == files and values.get("also"))


def _refuse_earlier_layout(folder: Path) -> None:
    """Before it had a file of its own, a certificate stood in chinchilla.json and went wherever that was copied."""
    meta = read_json(folder / META, "model description") if (folder / META).is_file() else None
    if isinstance(meta, dict) and "certificate" in meta:
        raise InputError(
            f"the certificate in {folder / META} is not shown: it is of a layout before version 1; {REMEDY}"
        )


def _text(path: Path, folder: Path) -> str:
    if not path.is_file():
        raise _refused(folder, "it is not a file")
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise _refused(folder, f"it has more than {MOST_BYTES} bytes")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(folder, f"it is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise _refused(folder, f"it cannot be read: {error.strerror or error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice in one object")
    return found


def _unlike(folder: Path, judged: Mapping[str, str]) -> str | None:
    """How a folder's files differ from those that were judged."""
    try:
        there = deciding_files(folder)
    except InputError:
        return "the weights or the program that were judged are not there"
    for name in reversed(there):  # a program or weights first: where they are others, so is much else
        if name not in judged:
            return f"{name} was not there when the model was judged"
    for name in judged:
        if name not in there:
            return f"{name}, which was judged, is not there"
    for name in there:
        if not has_sha256(folder / name, judged[name]):
            return f"{name} has another SHA-256 than the file that was judged"
    return None


def _refused(folder: Path, why: str) -> InputError:
    return InputError(f"the certificate {folder / CERTIFICATE} is not shown: {why}; {REMEDY}")
