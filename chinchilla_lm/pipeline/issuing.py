"""What a certificate has to say beside the verdict: which files were judged by what and read how, against which model,
on which data, and how many answers changed; and which models get one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.agreement import Agreement
from chinchilla_lm.files import user_path
from chinchilla_lm.models.checkpoint import sha256_of_model
from chinchilla_lm.models.meta import learnt_more, meta_of
from chinchilla_lm.models.source import Located, locate
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.judgement import Comparison
from chinchilla_lm.runtime.artifact import Snapshot, hashes, local_folder
from chinchilla_lm.runtime.certified import (
    CERTIFICATE,
    Agreed,
    Also,
    Artifact,
    Data,
    Original,
    ReadAs,
    issue,
    printable,
    speaks_of_more,
)
from chinchilla_lm.runtime.engine.packed import PROGRAM, is_packed


@dataclass(frozen=True, slots=True)
class Files:
    """A model's deciding files at a certain time: hashes, and sizes and times, which also show what was swapped and put
    back."""

    hashes: dict[str, str]
    snapshot: Snapshot

    @classmethod
    def of(cls, source: Path) -> Files:
        """Those of a folder or a GGUF file, as they are now. Raises InputError or OSError where there are none."""
        snapshot = Snapshot.of(source)
        return cls(hashes(source), snapshot)


class Issuing:
    """A certificate that `evaluate` is to issue for a model's folder, against an original, a folder or a GGUF file.

    It is made before either is read for the comparison: what it names is what was judged, or none is issued.
    """

    def __init__(self, folder: Path, original: Path) -> None:
        self.folder, self.original = folder, original
        self.before = {source: Files.of(source) for source in (folder, original)}
        self.original_sha256 = sha256_of_model(original)

    def issue(self, comparison: Comparison, job: Job, original: Job) -> Path:
        """Write it beside the model, which is that of `job`. Raises InputError where it cannot be written, or a file of
        either model is not as it was."""
        for source, before in self.before.items():
            if Files.of(source) != before:
                raise InputError(f"the files in {source} changed while they were judged; evaluate it again")
        issue(
            self.folder,
            comparison.certificate.to_dict(),
            artifact=artifact_of(job, self.before[self.folder].hashes),
            read=read_as(job),
            original=original_of(original, self.original_sha256),
            data=data_of(job, comparison),
            agreement=agreed(comparison.agreement),
        )
        return self.folder / CERTIFICATE


def issuing(job: Job, against: str, split: str) -> Issuing:
    """What will issue a certificate for the job's model, no file of which has been read yet. Raises InputError where it
    can have none: a certificate is of test data, within a margin that somebody chose, against an original that learnt
    from the same answers, and lies in the model's own folder."""
    if "margin" not in job.recipe.model_fields_set:
        raise InputError("no margin was chosen; pass --margin to have one")
    if split != "test":
        raise InputError(f"split {split} is not test; leave --split away to have one")
    folder = local_folder(job.source)
    if folder is None:
        raise InputError(f"{job.source} is no folder here that it could lie in; pass one to have one")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written to; pass a copy of it to have one")
    located = original_for(locate(folder), against)
    issuer = Issuing(folder, located.gguf or located.folder)
    mine, its = (issuer.before[source].hashes for source in (folder, issuer.original))
    if mine == its:
        raise InputError("a model is not certified against itself or its copy; pass --against ORIGINAL")
    if speaks_of_more(folder, mine):
        raise InputError(f"{folder} has one that speaks of more than this data; delete it to have another")
    return issuer


def original_for(model: Located, against: str) -> Located:
    """What a model is certified against. Raises InputError for a packed one, and for one that learnt less."""
    if is_packed(user_path(against)):
        raise InputError(f"{against} is packed, no original; pass --against the model that it came from")
    located = locate(against)
    if learnt_more(meta_of(model), meta_of(located)):
        raise InputError(
            f"it learnt from the answers of data that {against} did not learn from, or more often, which a comparison "
            "counts as quality; pass --against a model that was trained on the same data, such as compress's control"
        )
    return located


def also_of(job: Job, comparison: Comparison) -> Also:
    """The verdict on the job's guard data."""
    guard = job.guard_data
    assert guard is not None, comparison.data
    data = Data(
        name=printable(guard.name),
        sha256=records_sha256(guard.records),
        split=guard.split,
        examples=comparison.certificate.n,
        documents=comparison.documents,
    )
    what = f"{comparison.data}, against the {comparison.against}"
    verdict = comparison.certificate.to_dict()
    return Also.model_validate({"what": what, "data": data, "agreement": agreed(comparison.agreement), **verdict})


def agreed(agreement: Agreement | None) -> Agreed | None:
    """How many answers changed, as a certificate has it."""
    return None if agreement is None else Agreed.model_validate(agreement.to_dict())


def read_as(job: Job) -> ReadAs:
    """How the job's model reads its data."""
    return ReadAs(window=job.window, context=job.context if job.task.sentences else None)


def artifact_of(job: Job, files: dict[str, str], form: str | None = None) -> Artifact:
    """The model's deciding files, by their hashes, as the job serves them. form: of a program that the job made."""
    return Artifact(
        kind="program" if PROGRAM in files else "weights",
        files=files,
        format=form or job.format,
        backend=job.backend,
        device=job.device.type,
    )


def original_of(job: Job, sha256: str) -> Original:
    """The job's own model as what others are compared with. sha256: of its files before they were read for that."""
    return Original(
        name=printable(job.source),
        sha256=sha256,
        dropped=len(job.card.meta.get("dropped", {})),
        read=read_as(job),
    )


def data_of(job: Job, comparison: Comparison) -> Data:
    """The split of the job's data that was judged on."""
    return Data(
        name=printable(str(job.recipe.data)),
        sha256=job.split_sha256(comparison.data),
        split=comparison.data,
        examples=comparison.certificate.n,
        documents=comparison.documents,
    )
