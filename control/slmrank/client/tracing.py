"""Spans of OpenTelemetry around a call, where its package is installed; nothing where it is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from slmrank.client.answer import Answer

try:
    from opentelemetry import context, propagate, trace

    TRACING = True
except ImportError:
    TRACING = False


class CallSpan:
    """What a call tells its span: headers that carry it on, and how the call was answered."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        if TRACING:
            given: dict[str, str] = {}
            propagate.inject(given)
            # gRPC refuses names with capitals, which some propagators write.
            self.headers = {name.lower(): value for name, value in given.items()}

    def answered(self, answer: Answer) -> None:
        """Who scored each part, and the stages' times. No text of a query or job is told."""
        if not TRACING:
            return
        span = trace.get_current_span()
        for part in answer.parts:
            said = {f"slmrank.{key}_ms": value for key, value in part.times_ms.items()}
            who = {f"slmrank.{key}": part.served.get(key, "") for key in ("bundle", "engine")}
            span.add_event("part", {"slmrank.items": part.items, **who, **said})


@contextlib.contextmanager
def call_span(url: str, items: int) -> Iterator[CallSpan]:
    """The span `slmrank.score` of one call; an error ends it as failed."""
    if not TRACING:
        yield CallSpan()
        return
    tracer = trace.get_tracer("slmrank")
    attributes = {"server.address": url, "slmrank.items": items}
    kind = trace.SpanKind.CLIENT
    with tracer.start_as_current_span("slmrank.score", kind=kind, attributes=attributes):
        yield CallSpan()


@contextlib.contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans inside belong to the trace that a caller's headers name, or to the server's own span
    where it has made one of them."""
    if not TRACING or trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)
