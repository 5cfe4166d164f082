"""Requests that go wrong in every way we could think of, with what their good items must score.

A request is made from a good one by structured mutations: of its texts (encodings, sizes, broken and
nested JSON), of its tensors (shapes, types, counts, raw bytes that lie about their lengths) and of the
message around them. What a mutation leaves whole keeps its expected score.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2

BAD_BYTES = (b"\xff\xfe", b"\x80" * 9, b"a\xc3", b"\xed\xa0\x80", b"\x00")
BAD_FIELDS = (
    b"{", b"[]", b"null", b"5", b'"x"', b"{}", b'{"title": 5}', b'{"title": null}', b'{"nope": "x"}',
    b'{"title": "\\ud800"}', b'{"description": ["a"]}', b"[" * 30_000, b'{"title":' * 5_000,
    b'{"title": "a", "title": "b"}', b'{"title": NaN}', b'{"title": 1e999}', b"\xff{}", b" ", b"\x00",
)  # fmt: skip
BAD_QUERIES = (
    b"",
    b"   ",
    b"\n\t",
    b"a" * 20_000,
    b"word " * 3_000,
    "𓀀🙂\u202e\u0000".encode(),
    b"<|im_end|>",
    *BAD_BYTES,
)
BAD_IDS = (b"", b"nowhere", b"j" * 5_000, "jöb-\u0301".encode(), b"job-1\x00", *BAD_BYTES)
TYPES = ("BYTES", "INT32", "FP32", "BOOL", "UINT8", "STRING", "", "FP999")


@dataclass
class Sent:
    """One request: columns of bytes, and the expected score of each item that is still good."""

    query: bytes
    job_id: list[bytes]
    job: list[bytes] | None = None
    job_text: list[bytes] | None = None
    expected: list[float | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def draw(
    rng: random.Random, answers: Mapping[str, Mapping[str, float]], fields: Mapping[str, str]
) -> Sent:
    """A request with good items and, most of the time, some bad ones. `answers` holds the reference
    score by query and job id, `fields` the JSON of each job."""
    query = rng.choice(list(answers))
    sent = Sent(query=query.encode(), job_id=[])
    names = list(answers[query])
    use_fields, use_text = rng.random() < 0.4, rng.random() < 0.2
    sent.job = [] if use_fields else None
    sent.job_text = [] if use_text else None
    for _ in range(rng.choice((1, 1, 2, 3, 8, 24))):
        name = rng.choice(names)
        kind = rng.random()
        job_id, job, text, expected = name.encode(), b"", b"", answers[query][name]
        if use_fields and kind < 0.3:
            job_id, job = rng.choice((b"", b"any", job_id)), fields[name].encode()
        elif use_fields and kind < 0.5:
            job, expected = rng.choice(BAD_FIELDS), None
        elif use_text and kind < 0.6:
            text, expected = rng.choice((b"Job: cook", b"x " * 9_000, *BAD_BYTES)), None
        elif kind < 0.7:
            job_id, expected = rng.choice(BAD_IDS), None
        sent.job_id.append(job_id)
        sent.expected.append(expected)
        if sent.job is not None:
            sent.job.append(job)
        if sent.job_text is not None:
            sent.job_text.append(text)
    if rng.random() < 0.15:
        sent.query = rng.choice(BAD_QUERIES)
        sent.expected = [None] * len(sent.expected)
        sent.told.append("query")
    return sent


def packed(values: Sequence[bytes]) -> bytes:
    """BYTES elements as Triton wants them raw: each with its length before it."""
    return b"".join(struct.pack("<I", len(one)) + one for one in values)


def message(sent: Sent) -> Any:
    """The request as gRPC sends it."""
    made = service_pb2.ModelInferRequest(model_name="rank")
    for name in ("query", "job_id", "job", "job_text"):
        values = [sent.query] if name == "query" else getattr(sent, name)
        if values is not None:
            made.inputs.add(name=name, datatype="BYTES", shape=[1, len(values)])
            made.raw_input_contents.append(packed(values))
    return made


def mutate(rng: random.Random, made: Any, sent: Sent) -> None:
    """Break the message in one way; nothing is expected of its items then."""
    place = rng.randrange(len(made.inputs))
    tensor, raw = made.inputs[place], made.raw_input_contents[place]
    kind = rng.choice(
        ("shape", "type", "drop", "twice", "name", "cut", "longer", "lie", "contents", "output",
         "parameters", "region", "version", "model", "noise", "many raw", "id")
    )  # fmt: skip
    sent.told.append(kind)
    sent.expected = [None] * len(sent.expected)
    if kind == "shape":
        shapes = (
            [],
            [0],
            [1],
            [1, 0],
            [2, 1],
            [1, 1, 1],
            [-1, 1],
            [1, -1],
            [1, 10**9],
            [2**40, 2**40],
            [0, 0],
        )
        tensor.shape[:] = rng.choice(shapes)
    elif kind == "type":
        tensor.datatype = rng.choice(TYPES[1:])
    elif kind == "drop":
        del made.inputs[place]
        if rng.random() < 0.5:
            del made.raw_input_contents[place]
    elif kind == "twice":
        made.inputs.add().CopyFrom(tensor)
        made.raw_input_contents.append(raw)
    elif kind == "name":
        tensor.name = rng.choice(("", "Query", "prefix_ids", "x" * 5_000, "job\x00", "score"))
    elif kind == "cut":
        made.raw_input_contents[place] = raw[: rng.randrange(len(raw) or 1)]
    elif kind == "longer":
        made.raw_input_contents[place] = raw + rng.randbytes(rng.choice((1, 4, 4_000)))
    elif kind == "lie":
        lie = struct.pack("<I", rng.choice((2**32 - 1, 2**31, 10**6, 0)))
        made.raw_input_contents[place] = lie + raw[4:]
    elif kind == "contents":
        tensor.contents.bytes_contents.append(b"x")
        if rng.random() < 0.5:
            del made.raw_input_contents[:]
    elif kind == "output":
        made.outputs.add(name=rng.choice(("score", "nothing", "", "item_ids", "prefix_ids")))
    elif kind == "parameters":
        value = made.parameters[
            rng.choice(("priority", "timeout", "sequence_id", "sequence_start", "x"))
        ]
        rng.choice(
            (
                lambda: setattr(value, "int64_param", rng.choice((-1, 0, 2**62))),
                lambda: setattr(value, "string_param", "x"),
                lambda: setattr(value, "bool_param", True),
                lambda: setattr(value, "uint64_param", 2**64 - 1),
            )
        )()
    elif kind == "region":
        tensor.parameters["shared_memory_region"].string_param = "none"
        tensor.parameters["shared_memory_byte_size"].int64_param = rng.choice((-1, 0, 2**40))
        tensor.parameters["shared_memory_offset"].int64_param = rng.choice((-8, 0, 2**62))
    elif kind == "version":
        made.model_version = rng.choice(("1", "0", "-1", "99999999999999999999", "x"))
    elif kind == "model":
        made.model_name = rng.choice(("", "ranker", "prepare", "nothing", "../rank", "x" * 9_000))
    elif kind == "noise":
        made.raw_input_contents[place] = rng.randbytes(rng.choice((0, 3, 64, 9_000)))
    elif kind == "many raw":
        made.raw_input_contents.append(b"")
    else:
        made.id = rng.choice(("\x00", "x" * 70_000, "a b\n"))


def http_body(rng: random.Random, sent: Sent) -> tuple[bytes, dict[str, str]]:
    """The request as HTTP sends it: JSON, or JSON with binary tensors behind it; now and then broken."""
    columns = {
        "query": [sent.query],
        "job_id": sent.job_id,
        "job": sent.job,
        "job_text": sent.job_text,
    }
    given = {name: values for name, values in columns.items() if values is not None}
    binary = rng.random() < 0.5
    tensors, tail = [], b""
    for name, values in given.items():
        one: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [1, len(values)]}
        if binary:
            one["parameters"] = {"binary_data_size": len(packed(values))}
            tail += packed(values)
        else:
            one["data"] = [value.decode("utf-8", "replace") for value in values]
            if any(value.decode("utf-8", "replace").encode() != value for value in values):
                sent.expected = [None] * len(sent.expected)
        tensors.append(one)
    head = json.dumps({"inputs": tensors}).encode()
    kind = rng.random()
    if kind < 0.5:
        headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
        return head + tail, headers
    sent.expected = [None] * len(sent.expected)
    sent.told.append("http")
    length = rng.choice((str(len(head)), "0", "-1", "99999999999", "x", str(len(head) + 9)))
    body = rng.choice(
        (
            head[: rng.randrange(len(head))],
            b"[" * 20_000,
            b'{"inputs":' * 5_000,
            head.replace(b'"BYTES"', b'"INT32"'),
            head.replace(b"[1, ", b"[-1, "),
            head.replace(b"[1, ", b"[99999999999, "),
            head.replace(b'"shape"', b'"Shape"'),
            b'{"inputs": 5}', b'{"inputs": [{}]}', b"null", b"", rng.randbytes(300), tail + head,
        )
    )  # fmt: skip
    return body + tail, {"Inference-Header-Content-Length": length} if rng.random() < 0.7 else {}


def inner_message(rng: random.Random, sent: Sent) -> Any:
    """A call of the stage `ranker` itself, past `prepare`, with ids that no tokenizer gives."""
    sent.told.append("ranker")
    sent.expected = [None] * len(sent.expected)
    made = service_pb2.ModelInferRequest(model_name="ranker")
    lengths = [rng.choice((0, 1, 5, 40)) for _ in range(rng.choice((0, 1, 3)))]
    prefix = [rng.randrange(900) for _ in range(rng.choice((0, 1, 12)))]
    ids = [rng.randrange(900) for _ in range(sum(lengths))]
    kind = rng.randrange(7)
    if kind == 0 and lengths:
        lengths[0] = rng.choice((-1, 2**31 - 1, -(2**31), 7))
    elif kind == 1 and ids:
        ids[-1] = rng.choice((-1, 960, 2**31 - 1, -(2**31)))
    elif kind == 2 and prefix:
        prefix[0] = rng.choice((-5, 10**6))
    elif kind == 3:
        ids = ids * 300
        lengths = lengths * 300
    elif kind == 4:
        prefix = [1] * rng.choice((500, 60_000))
    none = kind == 6 and rng.random() < 0.5  # a batch of none, whose tensors Triton passes on
    if none:
        prefix, ids, lengths = [1], [5], [1]
    for name, values in (("prefix_ids", prefix), ("item_ids", ids), ("item_lengths", lengths)):
        rows = 2 if kind == 5 and rng.random() < 0.5 else 1
        made.inputs.add(name=name, datatype="INT32", shape=[0 if none else rows, len(values)])
        made.raw_input_contents.append(struct.pack(f"<{len(values)}i", *values) * rows)
    made.inputs.add(name="prepared_at", datatype="FP64", shape=[0 if none else 1, 1])
    ticket = rng.choice((0.0, -5.0, 1e18, float("nan"), 1.0))
    made.raw_input_contents.append(struct.pack("<d", ticket))
    return made
