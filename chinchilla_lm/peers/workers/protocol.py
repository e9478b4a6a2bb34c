"""What every worker shares: a JSON object a line in, one out. Standard library only: peers have packages of their own.

A worker is an object with some of the CALLS. Token ids are lists of lists of integers; times are in seconds, taken in
the worker, so that the way there and back costs nobody.
"""

import base64
import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import sys
import time
import traceback

# convert(source, target, form, sample, task)   the model's Hugging Face folder → what this program reads, once
#                                        → what is to be said of it, or nothing
# load(path, form, threads, task, room, cache)  → seconds, imports apart; room: positions of all that is read together,
#                                        at most; cache: the format of keys and values, "" for the program's own
# cache()                                → the format of keys and values, by its name there
# weights()                              → bytes of the weights as they are run, where the file has another dtype
# write(prompts, new)                    → seconds until the first new token of all, then those of each step after it
# nats(windows)                          → negative log-likelihood of each window's tokens after the first, summed
# label(texts)                           → seconds of a pass over all, and the logits of every token
# single(texts)                          → seconds of each text alone
# memory()                               → highest resident memory so far, MB
CALLS = ("convert", "load", "cache", "weights", "write", "nats", "label", "single", "memory")


def serve(worker):
    """Answer calls until the input ends. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent()
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("call")
        try:
            if name not in CALLS:
                raise ValueError(f"call {name!r} is not one of {', '.join(CALLS)}")
            answer = {"result": peak_mb() if name == "memory" else getattr(worker, name)(**call)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _die_with_parent():
    """A worker does not outlive the program that asked for it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def peak_mb():
    """Highest resident memory of this process in MB (1e6 bytes), None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            found = re.search(r"^VmHWM:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 / 1e6 if found else None


def phases(begin, step, new):
    """Seconds of begin(), which gives the first tokens, then of each of the new - 1 calls step(tokens) after it."""
    looks = [time.perf_counter()]
    tokens = begin()
    looks.append(time.perf_counter())
    for _ in range(new - 1):
        tokens = step(tokens)
        looks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(looks)]


def each(texts, run):
    """Seconds of run([text]) for each text."""
    taken = []
    for text in texts:
        begun = time.perf_counter()
        run([text])
        taken.append(time.perf_counter() - begun)
    return taken


def labelled(seconds, logits):
    """The answer to `label`: float32 arrays [T, C], one a text, as base64 of all their bytes."""
    raw = b"".join(one.astype("float32").tobytes() for one in logits)
    return {"seconds": seconds, "labels": int(logits[0].shape[1]), "logits": base64.b64encode(raw).decode("ascii")}


def by_length(texts, size):
    """Indices of texts in groups of `size` of like length, longest first."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(np, texts):
    """ids and mask, int64 [B, T]."""
    width = max(map(len, texts))
    ids, mask = np.zeros((len(texts), width), np.int64), np.zeros((len(texts), width), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask


def log_likelihood(np, logits, ids):
    """Nats of ids[1:] under float logits [T, V]."""
    rows = logits[:-1].astype(np.float32)
    top = rows.max(1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(rows - top).sum(1))
    return float((total - rows[np.arange(len(ids) - 1), ids[1:]]).sum())
