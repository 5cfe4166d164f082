"""Triton stage `ranker` on OpenVINO: token ids -> P(relevant). Thin over slmrank.engine."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.fan_out import split_items
from slmrank.engine.openvino.runtime import OpenVinoEngine
from slmrank.errors import EngineError
from slmrank.model.probability import probability
from slmrank.serving.depth import open_board
from slmrank.serving.score_cache import open_cache


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        given = config["parameters"]
        value = {
            name: int(given[name]["string_value"])
            for name in ("vocab_size", "max_tokens", "threads")
        }
        self._engine = OpenVinoEngine(folder / "engine", value.pop("threads"))
        self._limits = value
        self._cache = open_cache(given, pb_utils)
        self._board = open_board(config)

    def execute(self, requests):
        """Requests that the batcher joined are scored together; a bad one fails alone."""
        started = time.perf_counter()
        if self._board is not None:
            self._board.note_all(requests, pb_utils)
        asked = [self._read(request) for request in requests]
        good = [one for one in asked if not isinstance(one, EngineError)]
        planned = self._cache.plan(good)
        logits = self._engine.logits_of(planned.missing)
        scored = iter(planned.finish([probability(one).astype(np.float32) for one in logits]))
        self._cache.publish()
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        return [
            _refused(one) if isinstance(one, EngineError) else _answered(next(scored), micros)
            for one in asked
        ]

    def _read(self, request):
        """The prefix and the items of one request, or what is wrong with them."""
        tensors = [
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("prefix_ids", "item_ids", "item_lengths")
        ]
        if any(len(tensor) != 1 for tensor in tensors):
            return EngineError("one request holds one query", "send tensors of shape [1, N]")
        prefix, ids, lengths = (tensor[0] for tensor in tensors)
        try:
            return prefix, split_items(prefix, ids, lengths, **self._limits)
        except EngineError as error:
            return error


def _answered(score, micros):
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("score", score[np.newaxis]), pb_utils.Tensor("ranker_us", micros)]
    )


def _refused(error):
    text = f"{error.message}. Fix: {error.hint}"
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
    )
