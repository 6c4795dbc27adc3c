"""The conformance suite for stores: an adapter, ours or a user's, is right when its scenarios pass.

class MyHarness:                       # implements microflow.conformance.stores.Harness
    abilities = Abilities(several_services=False)
    ...

@pytest.mark.parametrize("scenario", scenarios(MyHarness.abilities), ids=str)
def test_the_adapter_keeps_its_promises(scenario: Scenario) -> None:
    asyncio.run(scenario(MyHarness()))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from microflow.conformance import scenarios as suites
from microflow.conformance.stores.claims import claims
from microflow.conformance.stores.connections import connections
from microflow.conformance.stores.dead_letters import dead_letters
from microflow.conformance.stores.harness import Abilities, Harness
from microflow.conformance.stores.outbox import outbox
from microflow.conformance.stores.own_tables import own_tables
from microflow.conformance.stores.ownership import ownership
from microflow.conformance.stores.parking import parking
from microflow.conformance.stores.registry import registry
from microflow.conformance.stores.transactions import transactions
from microflow.conformance.stores.values import values

__all__ = ["Abilities", "Harness", "Scenario", "scenarios"]

Scenario: TypeAlias = suites.Scenario[Harness]


def scenarios(abilities: Abilities) -> Sequence[Scenario]:
    """Everything that a store with these abilities has to pass."""
    subjects = [
        transactions,
        ownership,
        registry,
        claims,
        parking,
        dead_letters,
        outbox,
        connections,
        values,
        own_tables,
    ]
    if abilities.sessions:
        from microflow.conformance.stores.sessions import sessions  # SQLAlchemy is an extra

        subjects.append(sessions)
    return [scenario for subject in subjects for scenario in subject.all if scenario.suits(abilities)]
