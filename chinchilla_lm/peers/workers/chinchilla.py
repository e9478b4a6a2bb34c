"""Our own engine."""

import time
from pathlib import Path

import numpy as np
from protocol import by_length, each, labelled, log_likelihood, phases, serve

from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.packed import read_packed

BATCH = 512  # texts at a time


class Worker:
    def convert(self, source, target, form, sample, task):
        from chinchilla_lm.runtime.packing import write_packed

        write_packed(source, form, Path(target), task)

    def load(self, path, form, threads, task, room, cache):
        begun = time.perf_counter()
        program = read_packed(path)[0].with_cache(cache or "auto")
        self.model = NativeModel(program, threads)
        return time.perf_counter() - begun

    def cache(self):
        return self.model.program.header["cache"]

    def write(self, prompts, new):
        caches = []

        def begin():
            ids = [np.array(prompt, np.int32) for prompt in prompts]
            caches.extend(self.model.cache(len(one) + new) for one in ids)
            return self.model.best(ids, caches)[0]

        def step(tokens):
            rows = [tokens[row : row + 1] for row in range(len(caches))]
            return self.model.best(rows, caches)[0]

        return phases(begin, step, new)

    def nats(self, windows):
        arrays = [np.array(window, np.int32) for window in windows]
        return [log_likelihood(np, self.model.run([one], everywhere=True), one) for one in arrays]

    def label(self, texts):
        found = [None] * len(texts)
        begun = time.perf_counter()
        for rows in by_length(texts, BATCH):
            outputs = self.model.run([np.array(texts[row], np.int32) for row in rows], everywhere=True)
            ends = np.cumsum([len(texts[row]) for row in rows])[:-1]
            for row, output in zip(rows, np.split(outputs, ends), strict=True):
                found[row] = output
        return labelled(time.perf_counter() - begun, found)

    def single(self, texts):
        return each(texts, lambda some: self.model.run([np.array(one, np.int32) for one in some], everywhere=True))


serve(Worker())
