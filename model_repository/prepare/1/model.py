"""Triton stage `prepare`: query and jobs -> token ids. Thin over slmrank.serving.prepare."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.errors import ControlError, InvalidQuery, InvalidRequest, Overloaded, Unreachable
from slmrank.serving.admission import open_admission
from slmrank.serving.item_counters import ItemCounters
from slmrank.serving.prepare import open_preparer
from slmrank.triton.config import DEPTH, PREPARED_AT


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        self._max_items = int(parameters["max_items"]["string_value"])
        served = parameters["served"]["string_value"].encode()
        self._served = np.array([[served]], dtype=np.object_)
        try:
            self._preparer = open_preparer(folder, self._max_items)
        except ControlError as error:  # Triton prints the message alone
            raise RuntimeError(f"{error.message}. Fix: {error.hint}") from error
        # With depth control `ranker` has the last word on each job, and counts.
        self._to_depth = DEPTH in parameters
        self._items = ItemCounters(pb_utils)
        self._admission = open_admission(parameters)
        self._store = _StoreMetrics(self._preparer.traffic())

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def finalize(self):
        self._admission.close()

    def _answer(self, request):
        started = time.perf_counter()
        job_ids = ()
        try:
            query, job_ids = (_needed(request, name) for name in ("query", "job_id"))
            with self._admission.entered():
                prepared = self._preparer.prepare(
                    query[0],
                    job_ids,
                    _strings(request, "job"),
                    _strings(request, "job_text"),
                )
                lengths = prepared.item_lengths
                ticket = self._admission.take(len(prepared.prefix_ids) + int(lengths.sum()))
        except ControlError as error:
            text = f"{type(error).__name__}: {error.message}. Fix: {error.hint}"
            kind = pb_utils.TritonError.INVALID_ARG
            if isinstance(error, (InvalidQuery, InvalidRequest)):
                self._items.invalid()
            elif isinstance(error, Unreachable):
                kind = pb_utils.TritonError.UNAVAILABLE
            elif isinstance(error, Overloaded):
                # Of a request that was not read yet: more than the limit is refused for that.
                self._items.refuse(min(len(job_ids), self._max_items))
                kind = pb_utils.TritonError.UNAVAILABLE
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, kind))
        if not self._to_depth:
            self._items.add(prepared.status, prepared.item_lengths)
        self._store.publish(self._preparer.traffic())
        outputs = [
            pb_utils.Tensor(name, getattr(prepared, name)[np.newaxis])
            for name in ("prefix_ids", "item_ids", "item_lengths", "status")
        ]
        micros = np.array([[round((time.perf_counter() - started) * 1e6)]], dtype=np.int32)
        outputs += [
            pb_utils.Tensor("served", self._served),
            pb_utils.Tensor("prepare_us", micros),
            pb_utils.Tensor(PREPARED_AT.name, np.array([[ticket]])),
        ]
        return pb_utils.InferenceResponse(outputs)


class _StoreMetrics:
    """How the shared summary store answers, where there is one."""

    def __init__(self, traffic):
        # Triton forgets a family that nobody holds.
        self._families = []
        self._traffic = traffic
        if traffic is None:
            return
        gauge = pb_utils.MetricFamily.GAUGE
        up = self._family("store_up", "0: the last look-up in the summary store failed", gauge)
        held = self._family("store_memory_bytes", "Summaries held in the process", gauge)
        failures = self._family("store_failures_total", "Look-ups that the summary store failed")
        found = self._family("store_lookups_total", "Jobs looked up, by where from")
        self._up, self._held = up.Metric(labels={}), held.Metric(labels={})
        self._up.set(1)
        self._failures = failures.Metric(labels={})
        self._from_memory = found.Metric(labels={"from": "memory"})
        self._from_store = found.Metric(labels={"from": "store"})

    def publish(self, traffic):
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


def _needed(request, name):
    """Triton counts inputs, and takes two optional ones for those that it needs."""
    values = _strings(request, name)
    if values is None:
        raise InvalidRequest(f"{name} is missing", "send query [1, 1] and job_id [1, N]")
    return values


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
