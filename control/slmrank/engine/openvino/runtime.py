"""Score items with an OpenVINO engine: each query once, behind the instruction that all prompts
begin with, then items against its keys and values, bucketed by length so that padding stays small.
Queries that come together share passes; a query with few items needs none of its own.

Needs only openvino and numpy; this is what runs inside the server.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from slmrank.errors import EngineError, needs
from slmrank.machine.facts import usable_cores
from slmrank.tokens import Ids

ENGINE_FILE, HEAD_FILE = "engine.json", "head.npz"
LENGTH_STEP = 2  # against 8: 1.03 to 1.09 times the rate; a new shape's first pass takes 1.05
HALVED_ROWS = 16  # fewer are one pass on all cores: 8 in halves gained 0.97 [0.84, 1.58]
CACHED_PREFIXES = 32
NO_LIMIT = 1e30
PREFIXES_AT_ONCE = 16
Floats = npt.NDArray[np.float32]


class OpenVinoEngine:
    """A loaded engine. Not thread-safe: one per server instance. `engine.json` says the precision
    of the item passes and the largest batch. Raises EngineError when the directory holds none."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("openvino does not import", "local"):
            import openvino as ov
        try:
            info = json.loads((path / ENGINE_FILE).read_text())
            precision, self._most_items = info["precision"], int(info["max_batch_items"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} holds no engine: {error}", "run `control build`") from error
        core = ov.Core()
        cores = len(os.sched_getaffinity(0))
        threads = min(threads or usable_cores(), cores)
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_HYPER_THREADING": True,
            # With fewer, every process would take the same first cores, and others stand still.
            # Threads on cores of their own are 1.00 to 1.02 times as fast.
            "ENABLE_CPU_PINNING": threads == cores,
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
        }
        if precision == "int8-weights":
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 64
        fuses = precision in ("bfloat16", "int8-weights")
        halved = threads % 2 == 0 and self._most_items >= HALVED_ROWS
        try:
            prefix, items = (core.read_model(path / name) for name in ("prefix.xml", "items.xml"))
            if fuses and threads == 1:
                keep_mlp_apart(prefix)
                keep_mlp_apart(items)
            # Cores that meet behind every kernel wait for one another: two halves of a batch of 32
            # at once are 1.02 to 1.09 times as fast, for 0.2 GB. A stream has whole cores.
            graphs = [(prefix, 1), (items, 1), *([(items, 2)] if halved and not fuses else ())]
            with ThreadPoolExecutor(len(graphs)) as pool:  # 4.4 s instead of 6.5 on two cores
                self._prefix, *compiled = pool.map(
                    lambda one: core.compile_model(
                        one[0], "CPU", settings | {"NUM_STREAMS": one[1]}
                    ),
                    graphs,
                )
            self._whole, *halves = [
                [one.create_infer_request() for _ in range(streams)]
                for one, (_, streams) in zip(compiled, graphs[1:], strict=True)
            ]
            self._halves = halves[0] if halves else self._whole
            with np.load(path / HEAD_FILE) as head:
                self._head, self._head_past = head["ids"], head["past"]
        except (RuntimeError, OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise EngineError(f"cannot load the engine at {path}: {error}", "rebuild it") from error
        self._no_past = no_past(self._prefix)
        self._prefixes: OrderedDict[bytes, Floats] = OrderedDict()

    def logits(self, prefix: Ids, items: Sequence[Ids]) -> Floats:
        """Log-odds of "yes" [N] for items after one prefix; NaN for an item without ids."""
        return self.logits_of([(prefix, items)])[0]

    def logits_of(self, asked: Sequence[tuple[Ids, Sequence[Ids]]]) -> list[Floats]:
        """The same for several prefixes with their items: 16 queries of one item each take one
        pass, not 32."""
        asked = [unshared(self._head, prefix, items) for prefix, items in asked]
        found = [np.full(len(items), np.nan, dtype=np.float32) for _, items in asked]
        present = [
            (query, place)
            for query, (_, items) in enumerate(asked)
            for place, item in enumerate(items)
            if len(item)
        ]
        if not present:
            return found
        pasts = self._pasts([asked[query][0] for query in dict(present)])
        rows = [asked[query][1][place] for query, place in present]
        keys = [asked[query][0].tobytes() for query, _ in present]
        for bucket in buckets([len(row) for row in rows], self._most_items):
            requests, parts = self._whole, [bucket]
            if len(bucket) >= HALVED_ROWS and len(self._halves) > 1:
                requests, parts = self._halves, halves(bucket, [len(rows[one]) for one in bucket])
            inputs = [
                item_inputs([rows[one] for one in part], [keys[one] for one in part], pasts)
                for part in parts
            ]
            for part, logits in zip(parts, run(requests, inputs), strict=True):
                for index, logit in zip(part, logits, strict=True):
                    query, place = present[index]
                    found[query][place] = logit
        return found

    def _pasts(self, prefixes: Sequence[Ids]) -> dict[bytes, Floats]:
        """Keys and values [L, 2, K, P, D] by prefix, from a small cache: clients split long
        listings. What is not in it is computed in one pass."""
        wanted = {prefix.tobytes(): prefix for prefix in prefixes}
        missing = [prefix for key, prefix in wanted.items() if key not in self._prefixes]
        behind = [prefix for prefix in missing if begins(prefix, self._head)]
        others = [prefix for prefix in missing if not begins(prefix, self._head)]
        for past, size, group in (
            (self._head_past, len(self._head), behind),
            (self._no_past, 0, others),
        ):
            for start in range(0, len(group), PREFIXES_AT_ONCE):
                self._compute(past, size, group[start : start + PREFIXES_AT_ONCE])
        for key in wanted:
            self._prefixes.move_to_end(key)
        found = {key: self._prefixes[key] for key in wanted}
        while len(self._prefixes) > CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
        return found

    def _compute(self, past: Floats, size: int, prefixes: Sequence[Ids]) -> None:
        """Put the keys and values of prefixes whose first `size` ids have `past` into the cache."""
        rest = [prefix[size:] for prefix in prefixes if len(prefix) > size]
        made: Floats = past[:, :, :, :, :0]
        if rest:
            made = self._prefix(prefix_inputs(pad(rest, step=1)[0], past))[0]
        rows = iter(made)
        for prefix in prefixes:
            parts = [past[0]]
            if len(prefix) > size:
                parts.append(next(rows)[:, :, :, : len(prefix) - size])
            # A copy: what OpenVINO returns is its own memory, and holds the padding.
            self._prefixes[prefix.tobytes()] = np.concatenate(parts, axis=3)


def open_engine(path: Path, threads: int) -> OpenVinoEngine:
    """What the stage `ranker` opens."""
    return OpenVinoEngine(path, threads)


def keep_mlp_apart(graph: Any) -> None:
    """Clamps that change nothing, before the down projections. On processors with AMX, OpenVINO
    2026.4 runs an MLP of half weights as one kernel, which divides by half the number of threads:
    with one thread the process ended with a division by zero."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and "down_proj" in node.get_friendly_name():
            keep_apart([node.input(0)])
    graph.validate_nodes_and_infer_types()


def keep_apart(readers: Sequence[Any]) -> None:
    """A clamp that changes nothing between an output of a graph and those inputs that read it."""
    from openvino import opset13 as opset

    apart = opset.clamp(readers[0].get_source_output(), -NO_LIMIT, NO_LIMIT)
    for reader in readers:
        reader.replace_source_output(apart.output(0))


def begins(prefix: Ids, head: Ids) -> bool:
    return len(prefix) >= len(head) and np.array_equal(prefix[: len(head)], head)


def unshared(head: Ids, prefix: Ids, items: Sequence[Ids]) -> tuple[Ids, Sequence[Ids]]:
    """A query with so few items that its own pass has more tokens than they have together if each
    takes the query's along: as the head with longer items, and one pass less. That is one item, and
    two under the shipped wording. It depends on the request alone, not on what else comes."""
    rest = prefix[len(head) :]
    repeats = sum(1 for item in items if len(item)) - 1
    if not len(head) or repeats * len(rest) > len(prefix) or not begins(prefix, head):
        return prefix, items
    return head, [np.concatenate([rest, item]) if len(item) else item for item in items]


def no_past(compiled: Any) -> Floats:
    """The keys and values [1, L, 2, K, 0, D] of no token."""
    past = next(one for one in compiled.inputs if "past" in one.get_names()).get_partial_shape()
    sizes = [one.get_length() if one.is_static else 0 for one in past]
    return np.zeros([1, *sizes[1:]], dtype=np.float32)


def prefix_inputs(ids: npt.NDArray[Any], past: Floats) -> dict[str, Any]:
    """The inputs of the prefix graph for rows of ids [Q, S] that all follow `past`."""
    return {
        "ids": ids.astype(np.int64),
        "past": past,
        "prefix_lengths": np.array([past.shape[4]], dtype=np.int64),
        "prefix_of": np.zeros(len(ids), dtype=np.int64),
    }


def run(requests: Sequence[Any], inputs: Sequence[Mapping[str, Any]]) -> list[Floats]:
    """Logits of one pass for each request, all at once; none is left running if one fails."""
    with contextlib.ExitStack() as waiting:  # for all of them, whichever fails
        for request, given in zip(requests, inputs, strict=True):
            request.start_async(given, share_inputs=True)
            waiting.callback(request.wait)
    return [request.get_output_tensor(0).data for request in requests]


def item_inputs(
    rows: Sequence[Ids], keys: Sequence[bytes], pasts: Mapping[bytes, Floats]
) -> dict[str, Any]:
    """The inputs of the items' graph: rows, each after the prefix of its key."""
    ids, lengths = pad(rows)
    shared = list(dict.fromkeys(keys))
    past, prefix_lengths = stack([pasts[key] for key in shared])
    return {
        "ids": ids,
        "lengths": lengths,
        "past": past,
        "prefix_lengths": prefix_lengths,
        "prefix_of": np.array([shared.index(key) for key in keys], dtype=np.int64),
    }


def buckets(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in batches of at most `limit`, neighbours in length together.

    The count is the smallest that the limit allows, and batches are of even size: 33 items make
    17 + 16, not 32 + 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = -(-len(order) // limit)
    return [part.tolist() for part in np.array_split(np.array(order, dtype=int), count)]


def halves(bucket: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """A bucket, sorted by length, in two parts of as equal padded size as can be."""
    cut = min(
        range(1, len(bucket)),
        key=lambda rows: max(rows * lengths[rows - 1], (len(bucket) - rows) * lengths[-1]),
    )
    return [bucket[:cut], bucket[cut:]]


def pad(
    items: Sequence[Ids], step: int = LENGTH_STEP
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids [B, S] padded with 0 to a multiple of `step` (fewer graph shapes), lengths [B]."""
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    size = -(-int(lengths.max()) // step) * step
    ids = np.zeros((len(items), size), dtype=np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)] = item
    return ids, lengths


def stack(pasts: Sequence[Floats]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Keys and values of several prefixes [Q, L, 2, K, P, D], zero behind each, lengths [Q]."""
    lengths = np.array([past.shape[3] for past in pasts], dtype=np.int64)
    if len(pasts) == 1:
        return pasts[0][None], lengths
    layers, two, heads, _, size = pasts[0].shape
    stacked = np.zeros((len(pasts), layers, two, heads, lengths.max(), size), dtype=np.float32)
    for row, past in enumerate(pasts):
        stacked[row, :, :, :, : lengths[row]] = past
    return stacked, lengths
