"""The graph in the README is the graph of the services."""

import re
from pathlib import Path

from examples.order_saga import customers, inventory, orders, payments, shipping
from microflow.events import options_of
from microflow.service import build

SERVICES = (orders, payments, inventory, shipping, customers)
EDGE = re.compile(r"^ +(\w+)(?:\(\[.*?\]\))? (?:--|-\.|==) (\w+) (?:-->|\.->|==>) (\w+)$", re.MULTILINE)


def test_the_readme_draws_every_event_from_its_service_to_those_who_handle_it() -> None:
    readme = (Path(orders.__file__).parent / "README.md").read_text()
    drawn = set(EDGE.findall(readme))

    definitions = [build(module.service) for module in SERVICES]
    emitters = {options_of(event).type: each.name for each in definitions for event in each.emitted}
    edges = {
        (emitters.get(event_type, "shop"), event_type, each.name)
        for each in definitions
        for event_types in each.topics.values()
        for event_type in event_types
    }
    assert drawn == edges
