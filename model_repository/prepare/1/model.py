"""Triton stage `prepare`: query and jobs -> token ids. Thin over slmrank.serving.prepare."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.errors import ControlError, InvalidRequest
from slmrank.serving.depth import open_depth
from slmrank.serving.prepare import open_preparer
from slmrank.triton.status import Status


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        max_items = int(parameters["max_items"]["string_value"])
        served = parameters["served"]["string_value"].encode()
        self._served = np.array([[served]], dtype=np.object_)
        self._preparer = open_preparer(folder, max_items)
        self._depth = open_depth(parameters)
        self._counted = _Counters(self._preparer.traffic(), self._depth)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def finalize(self):
        if self._depth is not None:
            self._depth.close()

    def _answer(self, request):
        started = time.perf_counter()
        try:
            job_ids = _strings(request, "job_id")
            prepared = self._preparer.prepare(
                _strings(request, "query")[0],
                job_ids,
                _strings(request, "job"),
                _strings(request, "job_text"),
                depth=None if self._depth is None else self._depth.of(len(job_ids)),
            )
        except ControlError as error:
            text = f"{type(error).__name__}: {error.message}. Fix: {error.hint}"
            failure = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        self._counted.add(prepared)
        self._counted.state(self._preparer.traffic(), self._depth)
        outputs = [
            pb_utils.Tensor(name, getattr(prepared, name)[np.newaxis])
            for name in ("prefix_ids", "item_ids", "item_lengths", "status")
        ]
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        outputs += [
            pb_utils.Tensor("served", self._served),
            pb_utils.Tensor("prepare_us", micros),
        ]
        if self._depth is not None:
            outputs.append(pb_utils.Tensor("prepared_at", np.array([[self._depth.sent()]])))
        return pb_utils.InferenceResponse(outputs)


class _Counters:
    """Offered work, for autoscaling and alerts: Triton itself counts requests, not jobs; and how
    the shared summary store answers, where there is one."""

    def __init__(self, traffic, depth):
        # Triton forgets a family that nobody holds.
        self._families = []
        items = self._family("items_total", "Jobs asked for, by status")
        tokens = self._family("item_tokens_total", "Tokens of the jobs that are scored")
        self._items = {one: items.Metric(labels={"status": one.name.lower()}) for one in Status}
        self._tokens = tokens.Metric(labels={})
        self._traffic = traffic
        gauge = pb_utils.MetricFamily.GAUGE
        if depth is not None:
            share = self._family("depth_share", "Share of a request's jobs that is ranked", gauge)
            self._share = share.Metric(labels={})
        if traffic is None:
            return
        up = self._family("store_up", "1: the last look-up in the summary store succeeded", gauge)
        held = self._family("store_memory_bytes", "Summaries held in the process", gauge)
        failures = self._family("store_failures_total", "Look-ups that the summary store failed")
        found = self._family("store_lookups_total", "Jobs looked up, by where from")
        self._up, self._held = up.Metric(labels={}), held.Metric(labels={})
        self._failures = failures.Metric(labels={})
        self._from_memory = found.Metric(labels={"from": "memory"})
        self._from_store = found.Metric(labels={"from": "store"})

    def add(self, prepared):
        values, counts = np.unique(prepared.status, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._items[Status(value)].increment(count)
        self._tokens.increment(int(prepared.item_lengths.sum()))

    def state(self, traffic, depth):
        if depth is not None:
            self._share.set(depth.share)
        if traffic is None:
            return
        before, self._traffic = self._traffic, traffic
        self._up.set(int(traffic.up))
        self._held.set(traffic.memory_bytes)
        self._failures.increment(traffic.failures - before.failures)
        self._from_memory.increment(traffic.from_memory - before.from_memory)
        self._from_store.increment(traffic.from_store - before.from_store)

    def _family(self, name, text, kind=None):
        kind = pb_utils.MetricFamily.COUNTER if kind is None else kind
        family = pb_utils.MetricFamily(name=f"slmrank_{name}", description=text, kind=kind)
        self._families.append(family)
        return family


def _strings(request, name):
    """The bytes of a request's tensor [1, N], or None for an optional tensor not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy()
    if values.shape[0] != 1:
        raise InvalidRequest(
            f"{name} has shape {list(values.shape)}, one request holds one query",
            "send the tensors with shape [1, N]",
        )
    return [bytes(value) for value in values[0]]
