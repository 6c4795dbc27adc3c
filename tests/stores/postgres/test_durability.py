"""What waits for the disk: everything that is promised, and nothing else."""

from __future__ import annotations

from microflow.conformance.stores.examples import NOW, a_claim, an_outbox_row
from microflow.ports import Changes
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

NOTE_HOW = """
create table noted (what text, synchronous text);
create function note() returns trigger language plpgsql as $$
begin insert into public.noted values (tg_op, current_setting('synchronous_commit')); return null; end $$;
create constraint trigger note after insert or delete on microflow.outbox deferrable initially deferred
    for each row execute function note();
"""


@asynchronous
async def test_commits_wait_for_the_disk_and_the_deletion_of_what_was_published_does_not(postgres_url: str) -> None:
    """A row that a power cut brings back is published once more, and known by its claim."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute(NOTE_HOW)
        for number in range(2):
            async with store.transaction() as transaction:
                await transaction.claim([a_claim(number)], now=NOW)
                (row,) = await transaction.write(Changes(outbox=[an_outbox_row(number)]))
            await store.outbox.delete([row.position])

        noted = [tuple(row) for row in await other.fetch("select what, synchronous from noted")]
        assert noted == [("INSERT", "on"), ("DELETE", "off")] * 2
        assert (await store.outbox.status()).pending == 0
