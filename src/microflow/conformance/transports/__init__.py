"""The conformance suite for transports: an adapter, ours or a user's, is right when its scenarios pass.

class MyHarness:                       # implements microflow.conformance.transports.Harness
    abilities = Abilities(persistent=True)
    ...

@pytest.mark.parametrize("scenario", scenarios(MyHarness.abilities), ids=str)
def test_the_adapter_keeps_its_promises(scenario: Scenario) -> None:
    asyncio.run(scenario(MyHarness()))
"""

from __future__ import annotations

from collections.abc import Sequence

from microflow.conformance.transports.administration import administration
from microflow.conformance.transports.groups import groups
from microflow.conformance.transports.harness import Abilities, Harness, Scenario
from microflow.conformance.transports.publishing import publishing
from microflow.conformance.transports.reading import reading
from microflow.conformance.transports.topics import topics

__all__ = ["Abilities", "Harness", "Scenario", "scenarios"]


def scenarios(abilities: Abilities) -> Sequence[Scenario]:
    """Everything that a transport with these abilities has to pass."""
    everything = [*publishing.all, *reading.all, *groups.all, *topics.all, *administration.all]
    return [scenario for scenario in everything if scenario.suits(abilities)]
