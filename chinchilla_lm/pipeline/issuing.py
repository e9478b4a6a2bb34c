"""What a certificate has to say beside the verdict: which files were judged by what and read how, against which model,
on which data, and how many answers changed; and which models get one."""

from __future__ import annotations

import os
from pathlib import Path

from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.agreement import Agreement
from chinchilla_lm.models.checkpoint import sha256_of_model
from chinchilla_lm.models.meta import ADAPTED
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.judgement import Comparison
from chinchilla_lm.runtime.artifact import hashes, local_folder
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
    read_certificate,
)
from chinchilla_lm.runtime.engine.packed import PROGRAM, is_packed


class Issuing:
    """A certificate that `evaluate` is to issue: the model's files are hashed before it is loaded, and once more when
    it has been judged."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.files = hashes(folder)

    def issue(self, comparison: Comparison, original: Job) -> Path:
        """Write it beside the model. Raises InputError where there is none to give, or it cannot be written."""
        if is_packed(original.source):
            raise InputError(f"{original.source} is packed, no original; pass --against the model that it came from")
        other = local_folder(original.source)
        if other is not None and hashes(other) == self.files:
            raise InputError("a model is not certified against itself or its copy; pass --against ORIGINAL")
        if hashes(self.folder) != self.files:
            raise InputError(f"the files in {self.folder} changed while they were judged; evaluate it again")
        issue(
            self.folder,
            comparison.certificate.to_dict(),
            artifact=artifact_of(self.job, self.files),
            read=read_as(self.job),
            original=original_of(original),
            data=data_of(self.job, comparison),
            agreement=agreed(comparison.agreement),
        )
        return self.folder / CERTIFICATE


def issuing(job: Job, split: str) -> Issuing:
    """What will issue a certificate for the job's model. Raises InputError where it can have none: a certificate is
    of test data, within a margin that somebody chose, and lies in the model's own folder."""
    if "margin" not in job.recipe.model_fields_set:
        raise InputError("no margin was chosen; pass --margin to have one")
    if job.card.meta.get(ADAPTED):
        raise InputError(
            "it learnt from the answers of data, which a comparison with the original as it was counts as quality; "
            "compress certifies it against a control"
        )
    if split != "test":
        raise InputError(f"split {split} is not test; leave --split away to have one")
    folder = local_folder(job.source)
    if folder is None:
        raise InputError(f"{job.source} is no folder here that it could lie in; pass one to have one")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written to; pass a copy of it to have one")
    try:
        known = read_certificate(folder)
    except InputError:  # what cannot be read may be replaced
        known = None
    if known is not None and known.also:
        raise InputError(f"{folder} has one that speaks of more than this data; delete it to have another")
    return Issuing(job, folder)


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


def artifact_of(job: Job, files: dict[str, str]) -> Artifact:
    """The model's deciding files, by their hashes, as the job serves them."""
    return Artifact(
        kind="program" if PROGRAM in files else "weights",
        files=files,
        format=job.format,
        backend=job.backend,
        device=job.device.type,
    )


def original_of(job: Job) -> Original:
    """The job's own model as what others are compared with."""
    source = job.card.source
    if source is None:
        raise InputError(f"{job.source} lies in no files; pass a folder or a file")
    return Original(
        name=printable(job.source),
        sha256=sha256_of_model(source),
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
