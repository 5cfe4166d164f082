"""Triton stage `ranker` on an engine in this process: token ids -> P(relevant). The parameter
`runtime` is the module of slmrank.engine that opens it."""

import importlib
import json
import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.fan_out import only_rows, split_items
from slmrank.errors import EngineError
from slmrank.model.probability import probability
from slmrank.serving.admission import open_meter
from slmrank.serving.depth import first_items, open_depth
from slmrank.serving.score_cache import open_cache


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        given = json.loads(args["model_config"])["parameters"]
        value = {
            name: int(given[name]["string_value"])
            for name in ("vocab_size", "max_tokens", "threads")
        }
        # One process of several takes its own of a machine's GPUs, as under a launcher.
        os.environ.setdefault("LOCAL_RANK", args["model_instance_name"].rpartition("_")[2])
        runtime = importlib.import_module(given["runtime"]["string_value"])
        self._engine = runtime.open_engine(folder / "engine", value.pop("threads"))
        self._limits = value
        self._cache = open_cache(given, pb_utils, args["model_instance_name"])
        self._depth = open_depth(given, pb_utils, args["model_instance_name"])
        self._meter = open_meter(given, args["model_instance_name"], pb_utils)

    def execute(self, requests):
        """Requests that the batcher joined are scored together; a bad one fails alone."""
        with self._meter.passing(requests):
            return self._answers(requests)

    def _answers(self, requests):
        started = time.perf_counter()
        depths = self._depth.begin(requests)
        asked = [self._read(*one) for one in zip(requests, depths, strict=True)]
        good = [one for one in asked if not isinstance(one, EngineError)]
        planned = self._cache.plan(good)
        self._meter.scored(planned.missing)
        logits = self._engine.logits_of(planned.missing)
        scored = iter(planned.finish([probability(one).astype(np.float32) for one in logits]))
        self._cache.publish()
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        return [
            _refused(one)
            if isinstance(one, EngineError)
            else self._answer(*at, next(scored), micros)
            for one, *at in zip(asked, requests, depths, strict=True)
        ]

    def _read(self, request, depth):
        """The prefix and the items of one request, or what is wrong with them."""
        tensors = [
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("prefix_ids", "item_ids", "item_lengths")
        ]
        try:
            prefix, ids, lengths = only_rows(tensors)
            items = split_items(prefix, ids, lengths, **self._limits)
        except EngineError as error:
            return error
        return prefix, first_items(items, depth)

    def _answer(self, request, depth, score, micros):
        lengths = pb_utils.get_input_tensor_by_name(request, "item_lengths").as_numpy()[0]
        tensors = [
            pb_utils.Tensor("score", score[np.newaxis]),
            pb_utils.Tensor("ranker_us", micros),
        ]
        return pb_utils.InferenceResponse(tensors + self._depth.answer(request, depth, lengths))


def _refused(error):
    text = f"{error.message}. Fix: {error.hint}"
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
    )
