"""Distillation of a packed model after its solver: on which text, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import Encoded, enough
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import sha256_text
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pipeline.calibrating import Material
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.results import Distillation
from chinchilla_lm.train.distil import RATES, READINGS, Student, distil

# Tokens a step, and of the text that is held out, at most an eighth of all.
STEP_TOKENS, HELD_OUT = 2048, 4096


def distilled(
    of: Material, original: Transformer, rounded: Mapping[str, Quantized], formats: Mixed, tokens: int
) -> tuple[dict[str, Quantized], Distillation]:
    """The matrices after about so many tokens of calibration text; the model's norms and biases have changed too.

    original: the model before it was rounded, prepared to run. Raises InputError for calibration data of one window.
    """
    model, job = of.checkpoint.model, of.job
    assert job is not None
    batches, held_out = _text(job, of.windows, tokens)
    evenly = [name for name, how in _roundings(model, formats).items() if isinstance(how, Codebook) and how.even]
    student = Student(model, rounded, evenly, job.dtype)
    decides = (of.solved(formats).identity, tokens, sorted(RATES.items()), READINGS, STEP_TOKENS, HELD_OUT)
    found = distil(
        student,
        original,
        batches,
        held_out,
        job.console,
        state=of.training,
        identity=sha256_text(" ".join(map(str, decides))),
    )
    job.console.say(
        f"distil: KL to the original on held-out text {found.before:.4f} → {found.after:.4f} nats"
        + ("" if found.best_step else ", no better: the solver's matrices are kept")
    )
    seen = sum(one.batch.tokens for one in batches)
    return student.finish(), {"tokens": seen, "kl_before": found.before, "kl_after": found.after}


def _text(job: Job, windows: Sequence[Encoded], tokens: int) -> tuple[list[EncodedBatch], list[EncodedBatch]]:
    """What is learnt from, in order, and what it is held against: the last windows in the order of calibration."""
    everything = sum(len(one.ids) for one in windows)
    held_out = enough(windows[::-1], min(HELD_OUT, everything // 8))
    taught = enough(windows[: len(windows) - len(held_out)], tokens)
    if not taught:
        raise InputError("calibration data of one window leave nothing to learn from; pass more, or --distil 0")
    found: list[EncodedBatch] = []
    epoch = total = 0
    while total < tokens:
        for batch in job.batches(taught, STEP_TOKENS, seed=job.recipe.seed + epoch):
            if total < tokens:
                found.append(batch)
                total += batch.batch.tokens
        epoch += 1
    return found, job.batches(held_out, STEP_TOKENS)


def _roundings(model: Transformer, formats: Mixed) -> dict[str, object]:
    """How each large matrix is rounded, by the name of its parameter."""
    names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
    return {names[id(linear.weight)]: formats.of(matrix).rounding for matrix, linear in model.matrices().items()}
