"""Our own engine."""

import time
from pathlib import Path

import numpy as np
from protocol import each, labelled, log_likelihood, phases, serve

from chinchilla_lm.runtime.native import NativeModel
from chinchilla_lm.runtime.packed import read_packed


class Worker:
    def convert(self, source, target, form, sample, task):
        from chinchilla_lm.runtime.packing import write_packed

        write_packed(source, form, Path(target), task)

    def load(self, path, form, threads, task):
        begun = time.perf_counter()
        self.model = NativeModel(read_packed(path)[0], threads)
        return time.perf_counter() - begun

    def write(self, prompts, new):
        ids = [np.array(prompt, np.int32) for prompt in prompts]
        caches = [self.model.cache(len(one) + new) for one in ids]

        def step(tokens):
            return self.model.run([tokens[row : row + 1] for row in range(len(ids))], caches).argmax(1).astype(np.int32)

        return phases(lambda: self.model.run(ids, caches).argmax(1).astype(np.int32), step, new)

    def nats(self, windows):
        arrays = [np.array(window, np.int32) for window in windows]
        return [log_likelihood(np, self.model.run([one], everywhere=True), one) for one in arrays]

    def label(self, texts):
        ids = [np.array(text, np.int32) for text in texts]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        found = [None] * len(ids)
        begun = time.perf_counter()
        for start in range(0, len(order), 512):
            rows = order[start : start + 512]
            outputs = self.model.run([ids[row] for row in rows], everywhere=True)
            ends = np.cumsum([len(ids[row]) for row in rows])[:-1]
            for row, output in zip(rows, np.split(outputs, ends), strict=True):
                found[row] = output
        return labelled(time.perf_counter() - begun, found)

    def single(self, texts):
        return each([np.array(text, np.int32) for text in texts], lambda one: self.model.run(one, everywhere=True))


serve(Worker())
