"""Which flow a line of a log belongs to: whoever logs inside a handler, the line says it."""

from __future__ import annotations

import logging

from opentelemetry import trace

from microflow.context import current

NAMES = ("flow", "event", "handler", "attempt", "trace_id", "span_id")


class FlowFilter(logging.Filter):
    """Gives what is logged inside a handler `flow`, `event`, `handler` and `attempt`, and what is logged
    inside a span `trace_id` and `span_id` (32 and 16 hexadecimal digits).

    `microflow run` has it. A program that sets up logging by itself adds it to its handlers, those of the logging
    module (a logger's filters do not see what is logged further down): `handler.addFilter(FlowFilter())`. What a record
    says itself is left as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        fields = vars(record)
        if (context := current.get()) is not None:
            fields.setdefault("flow", context.correlation_id)
            fields.setdefault("event", context.event_id)
            fields.setdefault("handler", context.handler)
            fields.setdefault("attempt", context.attempt)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            fields.setdefault("trace_id", f"{span.trace_id:032x}")
            fields.setdefault("span_id", f"{span.span_id:016x}")
        return True
