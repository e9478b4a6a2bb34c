"""ONNX Runtime on token classifiers, fused by its optimiser for transformers: float32, or int8 by its dynamic
quantisation."""

import os
import time

import numpy as np
import onnxruntime as ort
from protocol import by_length, each, labelled, padded, serve

FILE = "model.onnx"
BATCHES = (1, 4, 16, 32)


class Worker:
    batch = None

    def convert(self, source, target, form, sample, task):
        from onnx_export import export, optimise

        os.makedirs(target)
        path, plain, floats = (os.path.join(target, name) for name in (FILE, "plain.onnx", "floats.onnx"))
        export(source, plain)
        said = optimise(source, plain, path, sample)
        os.remove(plain)
        if form == "int8":
            from onnx import TensorProto
            from onnxruntime.quantization import QuantType, quantize_dynamic

            os.rename(path, floats)
            # Of what comes out of a fused operation ONNX knows no type, so it has to be told.
            kinds = {"DefaultTensorType": TensorProto.FLOAT}
            quantize_dynamic(floats, path, weight_type=QuantType.QInt8, extra_options=kinds)
            os.remove(floats)
        return said

    def load(self, path, form, threads, task, room, cache):
        begun = time.perf_counter()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(os.path.join(path, FILE), options, providers=["CPUExecutionProvider"])
        self.names = {one.name for one in self.session.get_inputs()}
        return time.perf_counter() - begun

    def _run(self, texts):
        ids, mask = padded(np, texts)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        logits = self.session.run(None, {name: values[name] for name in self.names})[0]
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
