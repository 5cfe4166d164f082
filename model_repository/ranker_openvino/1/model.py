"""Triton stage `ranker` on OpenVINO: token ids -> P(relevant). Thin over slmrank.engine."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.openvino.runtime import OpenVinoEngine
from slmrank.model.probability import probability


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        self._engine = OpenVinoEngine(folder / "engine", threads)

    def execute(self, requests):
        """Requests that the batcher joined are scored together."""
        started = time.perf_counter()
        scored = self._engine.logits_of([self._read(request) for request in requests])
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("score", probability(logits).astype(np.float32)[np.newaxis]),
                    pb_utils.Tensor("ranker_us", micros),
                ]
            )
            for logits in scored
        ]

    def _read(self, request):
        """The prefix and the items of one request."""
        prefix, ids, lengths = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
            for name in ("prefix_ids", "item_ids", "item_lengths")
        )
        return prefix, np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
