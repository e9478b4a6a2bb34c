"""OpenVINO's runtime: models as Optimum exports them, compressed or, for encoders, quantised by NNCF."""

import os
import time

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from protocol import by_length, each, labelled, log_likelihood, padded, phases, serve

FILE = "openvino_model.xml"
BATCHES = (1, 4, 16, 32)


class Worker:
    batch = None

    def convert(self, source, target, form, sample, task):
        if task == "language-modeling":
            from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

            bits = {"int8": {"bits": 8}, "int4": {"bits": 4, "group_size": 64, "ratio": 1.0}}[form]
            model = OVModelForCausalLM.from_pretrained(
                source, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(**bits)
            )
            model.save_pretrained(target)
            return
        import nncf
        from optimum.intel import OVModelForTokenClassification

        model = OVModelForTokenClassification.from_pretrained(source, export=True, compile=False).model
        if form == "int8":
            calibration = nncf.Dataset([_feed(model, [text]) for text in sample])
            model = nncf.quantize(model, calibration, model_type=nncf.ModelType.TRANSFORMER)
        os.makedirs(target)
        ov.save_model(model, os.path.join(target, FILE), compress_to_fp16=False)

    def load(self, path, form, threads, task, room, cache):
        begun = time.perf_counter()
        options = {"INFERENCE_NUM_THREADS": threads}
        core = ov.Core()
        model = core.read_model(os.path.join(path, FILE))
        if task == "language-modeling":
            self.whole = os.path.join(path, FILE), options
            _keep_last(model)
        self.latency = core.compile_model(model, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
        self.request = self.latency.create_infer_request()
        seconds = time.perf_counter() - begun
        if task != "language-modeling":
            self.throughput = core.compile_model(model, "CPU", options | {"PERFORMANCE_HINT": "THROUGHPUT"})
        return seconds

    def cache(self):
        return self.latency.get_property("KV_CACHE_PRECISION").get_type_name()

    def _step(self, request, ids, seen):
        """Logits of ids [B, T] behind `seen` positions."""
        rows, count = ids.shape
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, seen + count), np.int64),
            "position_ids": np.tile(np.arange(seen, seen + count), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        known = {name for port in self.latency.inputs for name in port.get_names()}
        request.infer({name: value for name, value in feed.items() if name in known}, share_inputs=True)
        return request.get_output_tensor(0).data

    def write(self, prompts, new):
        self.request.reset_state()
        seen = [0]

        def step(ids):
            logits = self._step(self.request, ids, seen[0])
            seen[0] += ids.shape[1]
            return logits[:, -1].argmax(-1)[:, None].astype(np.int64)

        return phases(lambda: step(np.array(prompts, np.int64)), step, new)

    def nats(self, windows):
        found = []
        path, options = self.whole
        request = ov.Core().compile_model(path, "CPU", options).create_infer_request()
        for window in windows:
            request.reset_state()
            found.append(log_likelihood(np, self._step(request, np.array([window], np.int64), 0)[0], window))
        return found

    def _run(self, texts):
        logits = self.request.infer(_feed(self.latency, texts))[0]
        return [one[: len(text)] for one, text in zip(logits, texts, strict=True)]

    def label(self, texts):
        if self.batch is None:  # the way that is fastest here
            some = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 128))]
            ways = [(size, model) for size in BATCHES for model in (self.latency, self.throughput)]
            self.batch = min(ways, key=lambda way: min(self._pass(some, *way)[0] for _ in range(2)))
        return labelled(*self._pass(texts, *self.batch))

    def _pass(self, texts, size, model):
        found = [None] * len(texts)
        queue = ov.AsyncInferQueue(model)

        def done(request, rows):
            logits = request.get_output_tensor(0).data
            for place, row in enumerate(rows):
                found[row] = logits[place, : len(texts[row])].copy()

        queue.set_callback(done)
        begun = time.perf_counter()
        for rows in by_length(texts, size):
            queue.start_async(_feed(model, [texts[row] for row in rows]), rows)
        queue.wait_all()
        return time.perf_counter() - begun, found

    def single(self, texts):
        return each(texts, self._run)


def _keep_last(model):
    """The decoder sees the last position alone, as in OpenVINO GenAI: of a prompt no other logits are asked for."""
    node = model.outputs[0].get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last = ops.slice(node.input_value(0), *(np.array([one]) for one in (-1, np.iinfo(np.int64).max, 1, 1)))
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def _feed(model, texts):
    ids, mask = padded(np, texts)
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: values[name] for port in model.inputs for name in port.get_names() if name in values}


if __name__ == "__main__":
    serve(Worker())
