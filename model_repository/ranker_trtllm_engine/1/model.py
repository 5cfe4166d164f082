"""Triton stage `ranker` on a TensorRT-LLM engine: every item is one call of the model
`tensorrt_llm` with batch 1, which in-flight batching joins. Thin over slmrank.engine.fan_out."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.fan_out import label_probability, only_rows, split_items, whole_prompts
from slmrank.errors import ControlError
from slmrank.prompt.labels import Labels
from slmrank.serving.admission import open_meter
from slmrank.serving.depth import first_items, open_depth
from slmrank.serving.score_cache import open_cache

BACKEND_MODEL = "tensorrt_llm"
# The backend answers with an error unless the first two are asked for as well.
OUTPUTS = ["output_ids", "sequence_length", "generation_logits"]


class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        value = {name: one["string_value"] for name, one in given.items()}
        self._labels = Labels(yes=int(value["yes_id"]), no=int(value["no_id"]))
        self._cache = open_cache(given, pb_utils, args["model_instance_name"])
        self._depth = open_depth(given, pb_utils, args["model_instance_name"])
        self._meter = open_meter(given, args["model_instance_name"], pb_utils)
        self._limits = {name: int(value[name]) for name in ("vocab_size", "max_tokens")}
        self._max_in_flight = int(value["max_in_flight"])
        self._threads = ThreadPoolExecutor(self._max_in_flight)

    async def execute(self, requests):
        # `async_exec` blocks a thread of the loop's own pool, which has no more than 32.
        asyncio.get_running_loop().set_default_executor(self._threads)
        limit = asyncio.Semaphore(self._max_in_flight)
        with self._meter.passing(requests):
            return await asyncio.gather(*(self._answer(request, limit) for request in requests))

    async def _answer(self, request, limit):
        started = time.perf_counter()
        try:
            prefix, ids, lengths = only_rows(
                [
                    pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                    for name in ("prefix_ids", "item_ids", "item_lengths")
                ]
            )
            async with limit:  # a request starts when its first prompt may
                (depth,) = self._depth.begin([request])
            items = first_items(split_items(prefix, ids, lengths, **self._limits), depth)
            planned = self._cache.plan([(prefix, items)])
            self._meter.scored(planned.missing)
            scored = []
            for one in planned.missing:
                prompts = (self._score(prompt, limit) for prompt in whole_prompts(*one))
                scored.append(np.array(await asyncio.gather(*prompts), dtype=np.float32))
            (score,) = planned.finish(scored)
        except ControlError as error:
            text = f"{error.message}. Fix: {error.hint}"
            failure = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        except _BackendError as error:
            return pb_utils.InferenceResponse(error=error.failure)
        self._cache.publish()
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        tensors = [
            pb_utils.Tensor("score", score[np.newaxis]),
            pb_utils.Tensor("ranker_us", micros),
        ]
        return pb_utils.InferenceResponse(tensors + self._depth.answer(request, depth, lengths))

    async def _score(self, prompt, limit):
        if len(prompt) == 0:
            return np.nan
        async with limit:
            call = pb_utils.InferenceRequest(
                model_name=BACKEND_MODEL,
                requested_output_names=OUTPUTS,
                inputs=[
                    pb_utils.Tensor("input_ids", prompt[np.newaxis].astype(np.int32)),
                    pb_utils.Tensor("input_lengths", np.array([[len(prompt)]], np.int32)),
                    pb_utils.Tensor("request_output_len", np.array([[1]], np.int32)),
                    pb_utils.Tensor("return_generation_logits", np.array([[True]])),
                ],
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            )
            answer = await call.async_exec()
        if answer.has_error():
            raise _BackendError(answer.error())
        logits = pb_utils.get_output_tensor_by_name(answer, "generation_logits")
        return label_probability(logits.as_numpy(), self._labels)


class _BackendError(Exception):
    def __init__(self, failure):
        super().__init__(failure.message())
        self.failure = failure
