"""llama.cpp, by the Python binding's low-level calls."""

import ctypes
import os
import time

import llama_cpp as lib
import numpy as np
from protocol import log_likelihood, phases, serve

FILE = "model.gguf"
SEQUENCES = 8


class Worker:
    context = None

    def convert(self, source, target, form, sample, task):
        """source: a GGUF file in float32."""
        os.makedirs(target)
        options = lib.llama_model_quantize_default_params()
        options.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{form}")
        options.pure = form != "BF16"
        if lib.llama_model_quantize(source.encode(), os.path.join(target, FILE).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp cannot write {form}")

    def load(self, path, form, threads, task, room):
        lib.llama_backend_init()
        begun = time.perf_counter()
        self.model = lib.llama_model_load_from_file(os.path.join(path, FILE).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp cannot load its file")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = room, room, min(room, 512)
        options.n_seq_max = SEQUENCES
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        return time.perf_counter() - begun

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
        self._forget()
        length, count = len(prompts[0]), len(prompts)
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
        found = []
        for window in windows:
            self._forget()
            self._decode([(token, i, 0, True) for i, token in enumerate(window)])
            found.append(log_likelihood(np, np.stack([self._logits(i) for i in range(len(window))]), window))
        return found


serve(Worker())
