"""`microflow emit`: an event, or a file of them, straight to the log."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import log_option


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE…]")
@click.option("--file", metavar="PATH", help="One JSON object a line, each an event; - is stdin.")
@click.option("--key", metavar="FIELD", help="The field whose value is the key: what keeps events in order.")
@click.option("--flow", metavar="ID", help="The flow (correlation id) it belongs to.  [default: the event's own id]")
@click.option("--app", metavar="TARGET", help="The service that knows TYPE: its fields, its key and its topic.")
@click.option("--follow", is_flag=True, help="Then print the flow's events until it is quiet for 5 s.")
@log_option
@look_options
@pass_look
def emit(
    look: Look,
    event_type: str,
    fields: tuple[str, ...],
    file: str | None,
    key: str | None,
    flow: str | None,
    app: str | None,
    follow: bool,
    kafka: str | None,
) -> int:
    """Publish an event, or a file of them, to the log.

    FIELD=VALUE is text, FIELD:=JSON anything else: items:='["a", "b"]' or total:=12.5. With --app they are validated
    and typed by the class of the handler of TYPE; fields that it does not know are sent as they are. With --file, what
    is given here is set on every event, and nothing is published unless every line is right.
    """
    from microflow.cli.emitting import Order, emit_events

    order = Order(event_type=event_type, fields=fields, file=file, key=key, flow=flow, app=app, follow=follow)
    return emit_events(order, kafka=kafka, look=look)
