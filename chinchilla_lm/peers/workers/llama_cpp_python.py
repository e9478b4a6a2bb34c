"""llama.cpp, by the Python binding's low-level calls."""

import ctypes
import os
import time

import llama_cpp as lib
import numpy as np
from protocol import log_likelihood, phases, serve

FILE = "model.gguf"
STEP = 256  # positions of a sequence's cache come in whole steps
TYPES = {"f16": 1, "q8_0": 8, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}  # ggml's numbers, which files depend on
FLASH = 1  # LLAMA_FLASH_ATTN_TYPE_ENABLED


class Worker:
    context = None
    sequences = room = 0

    def convert(self, source, target, form, sample, task):
        """source: a GGUF file in float32. form: a file type, as llama.cpp's quantiser makes it by itself, which keeps a
        tied head at more bits; or with " pure" behind it, every matrix of that type."""
        kind, _, how = form.partition(" ")
        os.makedirs(target)
        options = lib.llama_model_quantize_default_params()
        _set(options, ftype=getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}"))
        if how == "pure":
            _set(options, pure=True, token_embedding_type=TYPES[kind], output_tensor_type=TYPES[kind])
        if lib.llama_model_quantize(source.encode(), os.path.join(target, FILE).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp cannot write {form}")

    def load(self, path, form, threads, task, room, cache):
        lib.llama_backend_init()
        begun = time.perf_counter()
        self.model = lib.llama_model_load_from_file(os.path.join(path, FILE).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp cannot load its file")
        self.threads, self.form_of_cache, self.most = threads, cache or "f16", room
        self._open(1, room)
        seconds = time.perf_counter() - begun
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        return seconds

    def cache(self):
        return self.form_of_cache

    def _open(self, sequences, room):
        """A context for so many sequences of at most `room` positions each. llama.h: a unified buffer of keys and
        values slows down several sequences that share no large prefix, so they get one each."""
        room = -(-room // STEP) * STEP
        if self.sequences == sequences and self.room >= room:
            return
        if self.context:
            lib.llama_free(self.context)
        options = lib.llama_context_default_params()
        most = room * sequences
        _set(options, n_ctx=most, n_batch=most, n_ubatch=min(most, 512), n_seq_max=sequences)
        _set(options, kv_unified=sequences == 1, n_threads=self.threads, n_threads_batch=self.threads)
        _set(options, type_k=TYPES[self.form_of_cache], type_v=TYPES[self.form_of_cache])
        if self.form_of_cache != "f16":  # rounded values need flash attention; else llama.cpp chooses
            _set(options, flash_attn_type=FLASH)
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context with keys and values in {self.form_of_cache}")
        self.sequences, self.room = sequences, room

    def _decode(self, rows, everywhere=False):
        """rows: (token, position, sequence, whether its logits are wanted)."""
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted or everywhere
        status = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _logits(self, row):
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.vocabulary,))

    def _forget(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)

    def write(self, prompts, new):
        length, count = len(prompts[0]), len(prompts)
        self._open(count, self.most if count == 1 else length + new)
        self._forget()
        place = [length]

        def begin():
            tokens = []
            for sequence, prompt in enumerate(prompts):
                self._decode([(token, i, sequence, i == length - 1) for i, token in enumerate(prompt)])
                tokens.append(int(self._logits(length - 1).argmax()))
            return tokens

        def step(tokens):
            self._decode([(token, place[0], sequence, True) for sequence, token in enumerate(tokens)])
            place[0] += 1
            return [int(self._logits(row).argmax()) for row in range(count)]

        return phases(begin, step, new)

    def nats(self, windows):
        self._open(1, self.most)
        found = []
        for window in windows:
            self._forget()
            self._decode([(token, i, 0, True) for i, token in enumerate(window)])
            found.append(log_likelihood(np, np.stack([self._logits(i) for i in range(len(window))]), window))
        return found


def _set(options, **values):
    """Python would take a field that this version does not have, and llama.cpp would never see it."""
    known = {field[0] for field in options._fields_}
    for name, value in values.items():
        if name not in known:
            raise RuntimeError(f"this llama.cpp has no option {name}")
        setattr(options, name, value)


if __name__ == "__main__":
    serve(Worker())
