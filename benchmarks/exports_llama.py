"""What llama.cpp makes of a GGUF file; run by exports.py, in an environment that has llama-cpp-python.

A JSON object on standard input: model, texts, windows, prompts, new, threads. One on standard output: `ids` of each
text, `nats` of each window's tokens after the first, `tokens` that follow each prompt, the most probable each time, and
the `logits` behind the first window.
"""

import ctypes
import json
import sys

import llama_cpp as lib
import numpy as np

F32 = 0  # ggml's number of float32, for keys and values: nothing but the weights is rounded


class Model:
    def __init__(self, path, room, threads):
        options = lib.llama_model_default_params()
        options.use_extra_bufts = False  # repacked weights multiply in other orders
        self.model = lib.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.width = lib.llama_vocab_n_tokens(self.vocabulary)
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = -(-room // 256) * 256
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = F32
        context.flash_attn_type = 0
        self.context = lib.llama_init_from_model(self.model, context)

    def ids(self, text):
        raw = text.encode()
        room = (lib.llama_token * (len(raw) + 16))()
        count = lib.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), True, True)
        return list(room[:count])

    def logits(self, ids, begin=0):
        """float32 [T, V] of tokens from position `begin` on."""
        if begin == 0:
            lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, begin + i, 1, True
            batch.seq_id[i][0] = 0
        if lib.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp cannot decode")
        lib.llama_batch_free(batch)
        rows = [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, i), (self.width,)) for i in range(len(ids))
        ]
        return np.stack(rows).astype(np.float64)

    def nats(self, ids):
        rows = self.logits(ids)[:-1]
        top = rows.max(1)
        totals = top + np.log(np.exp(rows - top[:, None]).sum(1))
        return float((totals - rows[np.arange(len(ids) - 1), ids[1:]]).sum())

    def greedy(self, prompt, new):
        found = [int(self.logits(prompt)[-1].argmax())]
        while len(found) < new:
            found.append(int(self.logits(found[-1:], len(prompt) + len(found) - 1)[-1].argmax()))
        return found


@lib.llama_log_callback
def quiet(level, text, data):
    if level >= 4:
        sys.stderr.write(ctypes.string_at(text).decode(errors="replace"))


def main():
    asked = json.load(sys.stdin)
    lib.llama_log_set(quiet, ctypes.c_void_p())
    lib.llama_backend_init()
    room = max([len(one) for one in asked["windows"]] + [len(one) + asked["new"] for one in asked["prompts"]])
    model = Model(asked["model"], room, asked["threads"])
    answer = {
        "ids": [model.ids(text) for text in asked["texts"]],
        "nats": [model.nats(one) for one in asked["windows"]],
        "tokens": [model.greedy(one, asked["new"]) for one in asked["prompts"]],
        "logits": model.logits(asked["windows"][0])[-1].tolist() if asked["windows"] else [],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
