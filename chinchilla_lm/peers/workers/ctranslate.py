"""CTranslate2 on language models."""

import itertools
import os
import time

import ctranslate2
import numpy as np
from protocol import log_likelihood, serve
from tokenizers import Tokenizer


class Worker:
    def convert(self, source, target, form, sample, task):
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(source, copy_files=["tokenizer.json"]).convert(target, quantization=form)

    def load(self, path, form, threads, task, room, cache):
        begun = time.perf_counter()
        self.model = ctranslate2.Generator(path, compute_type=form, intra_threads=threads, inter_threads=1)
        seconds = time.perf_counter() - begun
        self.tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        return seconds

    def cache(self):
        """Keys and values are what activations are: of int8_float32, float32."""
        return self.model.compute_type.partition("_")[2] or "float32"

    def write(self, prompts, new):
        words = [[self.tokenizer.id_to_token(token) for token in prompt] for prompt in prompts]
        times = []
        options = {"include_prompt_in_result": False, "sampling_topk": 1, "end_token": [], "cache_static_prompt": False}
        begun = time.perf_counter()
        self.model.generate_batch(
            words,
            max_length=new,
            min_length=new,
            callback=lambda step: times.append(time.perf_counter()) and False,
            **options,
        )
        # Called back for each prompt of each step; what comes behind the last step is the last step's.
        ends = [begun, *times[len(prompts) - 1 :: len(prompts)][: new - 1], time.perf_counter()]
        return [after - before for before, after in itertools.pairwise(ends)]

    def nats(self, windows):
        found = []
        for window in windows:
            logits = self.model.forward_batch([window])
            found.append(log_likelihood(np, np.array(logits.to(ctranslate2.DataType.float32))[0], window))
        return found


serve(Worker())
