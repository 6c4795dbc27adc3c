"""The order saga's own tests, played by processes on Kafka and PostgreSQL: the same functions on another stage.

Left out are those that hold the time still, or look into a carrier of their own. The card company loses every first
answer here, so that every card is charged by a retry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from examples.order_saga.shipping import Carrier
from examples.order_saga.tests import test_cancellations as cancellations
from examples.order_saga.tests import test_crashes as crashes
from examples.order_saga.tests import test_money as money
from examples.order_saga.tests import test_roads as roads
from examples.order_saga.tests.conftest import Start
from examples.order_saga.tests.saga import Saga
from microflow.testing import Worlds
from tests.faults.saga_processes import SagaProcesses, a_saga
from tests.faults.saga_stage import RealStage

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SagaProcesses]:
    with a_saga(tmp_path_factory.mktemp("saga"), lost_answers=1.0) as processes:
        processes.start()
        yield processes


@pytest.fixture
def start(processes: SagaProcesses, world: Worlds) -> Start:
    """As in the saga's own tests; `world` is asked for because with it a test may be `async`."""

    async def start_saga(
        *,
        seed: int = 1,
        lost_answers: float = 0.0,
        carrier: Carrier | None = None,
        shelf: Mapping[str, int] | None = None,
    ) -> Saga:
        assert carrier is None, "the processes have one of their own"
        processes.come_to_rest()
        return RealStage(processes).begin(shelf or {})

    return start_saga


TESTS = (
    roads.test_a_good_order_is_paid_reserved_shipped_and_completed,
    roads.test_an_order_whose_card_is_declined_is_rejected_and_costs_nothing,
    roads.test_what_is_paid_for_and_out_of_stock_is_refunded_before_the_order_is_cancelled,
    roads.test_of_five_orders_for_the_last_three_teapots_three_are_completed,
    roads.test_what_the_carrier_refuses_is_refunded_and_put_back_on_the_shelf,
    roads.test_the_same_order_placed_twice_is_charged_once_and_ends_once,
    roads.test_the_card_company_s_lost_answer_costs_the_customer_nothing,
    roads.test_an_order_for_nothing_is_a_dead_letter_and_no_order,
    cancellations.test_a_cancellation_that_overtakes_its_order_cancels_it_before_anything_is_paid,
    cancellations.test_an_order_cancelled_before_it_came_stays_cancelled_when_it_comes_again,
    cancellations.test_a_cancellation_after_the_parcel_has_left_is_refused_and_explained,
    cancellations.test_who_cancels_an_order_that_was_not_delivered_anyway_changes_nothing,
    crashes.test_all_services_killed_at_once_go_on_where_they_were,
)


async def test_every_road_is_taken_on_real_servers_as_in_a_world(start: Start) -> None:
    """One test of them all: their ten processes take longer to start than all of them to play."""
    for test in TESTS:
        await test(start)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("service", crashes.SERVICES)
async def test_killed_at_whatever_moment(start: Start, service: str) -> None:
    """A service is killed in the middle of every order."""
    await crashes.test_at_whatever_moment_a_service_is_killed_every_order_ends_once(start, service)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_thousands_of_orders_on_a_bad_day(start: Start) -> None:
    """A service is killed between any forty orders or so."""
    await money.test_every_order_ends_once_and_the_money_taken_is_kept_or_refunded(start)
