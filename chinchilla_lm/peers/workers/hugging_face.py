"""Hugging Face transformers, as it is or through torch.compile (forms that end in "+compile")."""

import time

import numpy as np
import torch
import transformers
from protocol import by_length, each, labelled, log_likelihood, padded, phases, serve

CLASSES = {
    "language-modeling": transformers.AutoModelForCausalLM,
    "token-classification": transformers.AutoModelForTokenClassification,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES = (1, 8, 32)


class Worker:
    batch = None

    def load(self, path, form, threads, task, room, cache):
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        dtype, _, how = form.partition("+")
        begun = time.perf_counter()
        model = CLASSES[task].from_pretrained(path, dtype=DTYPES[dtype], local_files_only=True).eval()
        self.size = sum(one.numel() * one.element_size() for one in model.parameters())
        self.model = torch.compile(model, dynamic=True) if how == "compile" else model
        return time.perf_counter() - begun

    def cache(self):
        return str(self.model.dtype).removeprefix("torch.")

    def weights(self):
        return self.size

    def write(self, prompts, new):
        state = {"cache": None}

        def step(ids):
            output = self.model(input_ids=ids, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
            state["cache"] = output.past_key_values
            return output.logits[:, -1].argmax(-1, keepdim=True)

        return phases(lambda: step(torch.tensor(prompts)), step, new)

    def nats(self, windows):
        return [
            log_likelihood(np, self.model(input_ids=torch.tensor([window])).logits[0].float().numpy(), window)
            for window in windows
        ]

    def _run(self, texts):
        ids, mask = (torch.from_numpy(one) for one in padded(np, texts))
        if len({len(text) for text in texts}) == 1:
            mask = None
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float().numpy()
        return [one[: len(text)] for one, text in zip(logits, texts, strict=True)]

    def label(self, texts):
        if self.batch is None:  # the size that is fastest here
            some = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 128))]
            self.batch = min(BATCHES, key=lambda size: min(self._pass(some, size)[0] for _ in range(2)))
        return labelled(*self._pass(texts, self.batch))

    def _pass(self, texts, size):
        found = [None] * len(texts)
        begun = time.perf_counter()
        for rows in by_length(texts, size):
            for row, one in zip(rows, self._run([texts[row] for row in rows]), strict=True):
                found[row] = one
        return time.perf_counter() - begun, found

    def single(self, texts):
        return each(texts, self._run)


serve(Worker())
