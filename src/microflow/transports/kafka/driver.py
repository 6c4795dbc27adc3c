"""What aiokafka keeps to itself and has to be touched all the same, in one place, with the reason for each."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka

LONGEST_END = 100


class Abandoned(kafka.KafkaError):
    """The producer that had this batch was thrown away; nobody knows whether the log has it."""


async def stop_producer(producer: AIOKafkaProducer, *, within: float) -> None:
    """Stop a producer; what it has not sent by then it never sends.

    `AIOKafkaProducer.stop` waits for every batch, and a batch of an idempotent producer never expires: with the broker
    away it would wait for ever, and deliver long after its records were sent anew.
    """
    if within > 0:
        stopping = asyncio.ensure_future(producer.stop())
        await asyncio.wait([stopping], timeout=within)
        if stopping.done():
            stopping.exception()
            return
        stopping.cancel()
    producer._closed = True
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    # The sender ends when its requests do, and these end with their connections; one that is to be tried again waits
    # for metadata that nobody fetches any more.
    for _ in range(LONGEST_END):
        await producer.client.close()
        _release_metadata(producer.client)
        if sender is None or sender.done():
            break
        await asyncio.wait([sender], timeout=0.02)
    await producer.client.close()  # what the sender did last may have opened another connection
    accumulator = producer._message_accumulator
    for batches in accumulator._batches.values():
        # One that was to be tried again is not among the pending ones, and its end takes it out of them all the same.
        accumulator._pending_batches.update(batches)
    accumulator.fail_all(Abandoned("the producer failed with another batch and was thrown away"))
    for batch in accumulator._pending_batches:
        for ended in (batch.future, batch._drain_waiter):
            if ended.done() and not ended.cancelled():
                ended.exception()  # whoever still waits is told; whoever does not, was told before


async def stop_consumer(consumer: AIOKafkaConsumer, *, within: float) -> None:
    """Leave the group and stop; a consumer that does not manage, or not in time, is cut off.

    `AIOKafkaConsumer.stop` waits for a rebalance under way, and for a coordinator that does not answer.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=within)
    if not stopping.done() or stopping.cancelled() or stopping.exception() is not None:
        # Its connections are what it closes last: it never comes to that if one of its tasks ends in another way.
        tasks = [*_tasks_of(consumer), stopping]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1)
        with contextlib.suppress(Exception):
            await consumer._client.close()
    for task in _tasks_of(consumer):
        if task.done() and not task.cancelled():
            task.exception()  # it was told where it happened


def is_alive(consumer: AIOKafkaConsumer) -> bool:
    """Whether its coordination and its fetching still run: aiokafka goes on without one of them, silently."""
    return not any(task.done() for task in _vital_tasks(consumer))


def check_coordination(consumer: AIOKafkaConsumer) -> None:
    """Raise what keeps the consumer from its group, which then tries again. `getmany` does this too, but waits for an
    assignment first, and without a permission there never is one."""
    consumer._coordinator.check_errors()


def membership(consumer: AIOKafkaConsumer) -> tuple[int, str]:
    """Generation and member id as they are now. aiokafka stamps a commit with those of the moment it is sent, so an
    offset of an assignment that is over would be taken under the next one."""
    coordinator = consumer._coordinator
    return coordinator.generation, coordinator.member_id


def is_joined(consumer: AIOKafkaConsumer) -> bool:
    """Whether it takes itself for a member that has nothing to join."""
    coordinator = consumer._coordinator
    return coordinator.generation > 0 and not coordinator._rejoin_needed_fut.done()


def position(consumer: AIOKafkaConsumer, partition: tuple[str, int]) -> int | None:
    """The offset aiokafka fetches next: beyond what it returned if it has passed over something, such as the end of a
    transaction. Its public way waits where there is none."""
    assignment = consumer._subscription.subscription and consumer._subscription.subscription.assignment
    state = assignment.state_value(partition) if assignment else None
    return state.position if state is not None and state.has_valid_position else None


def _release_metadata(client: Any) -> None:
    waited_for, client._md_update_fut = client._md_update_fut, None
    if waited_for is not None and not waited_for.done():
        waited_for.set_result(False)


def _vital_tasks(consumer: AIOKafkaConsumer) -> list[asyncio.Task[Any]]:
    tasks = [consumer._fetcher._fetch_task] if consumer._fetcher is not None else []
    coordination = getattr(consumer._coordinator, "_coordination_task", None)
    return [*tasks, coordination] if coordination is not None else tasks


def _tasks_of(consumer: AIOKafkaConsumer) -> list[asyncio.Task[Any]]:
    coordinator = consumer._coordinator
    others = [getattr(coordinator, name, None) for name in ("_heartbeat_task", "_commit_refresh_task")]
    return [*_vital_tasks(consumer), *(task for task in others if task is not None)]
