-- Within (service, topic, key), a row waits for an earlier row if that one
--   has ordering 2 (key) and is of another event, or
--   has ordering 1 (handler) and is of the same handler.
-- `free` keeps the answer in the row, so that finding what is due costs what is found, however much waits. It is set
-- when a row is parked and when a row that others may wait for goes. Whoever does either locks the key first and asks
-- in a later statement: else one parks behind a row that another is about to take away, and waits for ever.
-- Rows without a key wait for nothing.

-- name: lock keys
select pg_advisory_xact_lock($1, number)
from (
    select distinct hashtextextended($2 || ' ' || topic || ' ' || encode(key, 'hex'), 0)::bit(32)::integer as number
    from unnest($3::text[], $4::bytea[]) as parked (topic, key) where key is not null
    order by 1
) as keys;

-- name: lock keys of parked
select pg_advisory_xact_lock($1, number)
from (
    select distinct
        hashtextextended($2 || ' ' || parked.topic || ' ' || encode(parked.key, 'hex'), 0)::bit(32)::integer as number
    from unnest($3::integer[], $4::bytea[]) as claim (handler, digest)
    join microflow.parked as parked on parked.handler = claim.handler and parked.digest = claim.digest
    where parked.key is not null
    order by 1
) as keys;

-- name: park
with before as (
    select parked.handler, parked.digest, parked.ordering
    from unnest($2::integer[], $3::bytea[]) as claim (handler, digest)
    join microflow.parked as parked on parked.handler = claim.handler and parked.digest = claim.digest
),
entered as (
    insert into microflow.parked (
        service, handler, digest, topic, key, partition, ordering, due, attempt, first_failed_at, content, "offset",
        "timestamp", error, headers, value, free
    )
    select $1, handler, digest, topic, key, partition, ordering, due, attempt, first_failed_at, content, "offset",
        "timestamp", error, headers, value, key is null
    from unnest(
        $2::integer[], $3::bytea[], $4::text[], $5::bytea[], $6::integer[], $7::smallint[], $8::timestamptz[],
        $9::integer[], $10::timestamptz[], $11::bytea[], $12::bigint[], $13::timestamptz[], $14::text[], $15::bytea[],
        $16::bytea[]
    ) with ordinality as event (
        handler, digest, topic, key, partition, ordering, due, attempt, first_failed_at, content, "offset",
        "timestamp", error, headers, value, place
    )
    order by place
    on conflict (handler, digest) do update set
        ordering = excluded.ordering,
        due = excluded.due,
        attempt = excluded.attempt,
        first_failed_at = excluded.first_failed_at,
        error = excluded.error
    returning handler, digest, topic, key, ordering
),
claimed as (
    update microflow.inbox as claim set status = 1, completed_at = null from entered
    where claim.handler = entered.handler and claim.digest = entered.digest
      and (claim.status <> 1 or claim.completed_at is not null)
)
select entered.topic, entered.key from entered join before using (handler, digest)
where entered.ordering <> before.ordering and entered.key is not null;

-- Of rows that were parked just now: what is parked later never makes an earlier one wait.
-- name: free parked
update microflow.parked as waiting set free = true
from unnest($2::integer[], $3::bytea[]) as entered (handler, digest)
where waiting.handler = entered.handler and waiting.digest = entered.digest and not waiting.free
  and not exists (
      select 1 from microflow.parked as earlier
      where earlier.service = $1 and earlier.topic = waiting.topic and earlier.key = waiting.key
        and earlier.key is not null and earlier.ordering = 2 and earlier.sequence < waiting.sequence
        and earlier.digest <> waiting.digest
  )
  and not exists (
      select 1 from microflow.parked as earlier
      where earlier.service = $1 and earlier.topic = waiting.topic and earlier.key = waiting.key
        and earlier.key is not null and earlier.ordering = 1 and earlier.sequence < waiting.sequence
        and earlier.handler = waiting.handler
  );

-- Up to the second event that holds the key: everything behind that one waits for it still.
-- name: free after key
update microflow.parked as waiting set free = true
from (
    select freed.topic, freed.key, coalesce(
        (
            select second.sequence from microflow.parked as second
            where second.service = $1 and second.topic = freed.topic and second.key = freed.key
              and second.key is not null and second.ordering = 2
              and second.digest <> (
                  select first.digest from microflow.parked as first
                  where first.service = $1 and first.topic = freed.topic and first.key = freed.key
                    and first.key is not null and first.ordering = 2
                  order by first.sequence limit 1
              )
            order by second.sequence limit 1
        ),
        9223372036854775807
    ) as behind
    from unnest($2::text[], $3::bytea[]) as freed (topic, key)
    offset 0
) as freed
where waiting.service = $1 and waiting.topic = freed.topic and waiting.key = freed.key and waiting.key is not null
  and not waiting.free and waiting.sequence < freed.behind
  and not exists (
      select 1 from microflow.parked as earlier
      where earlier.service = $1 and earlier.topic = freed.topic and earlier.key = freed.key
        and earlier.key is not null and earlier.ordering = 2 and earlier.sequence < waiting.sequence
        and earlier.digest <> waiting.digest
  )
  and not exists (
      select 1 from microflow.parked as earlier
      where earlier.service = $1 and earlier.topic = freed.topic and earlier.key = freed.key
        and earlier.key is not null and earlier.ordering = 1 and earlier.sequence < waiting.sequence
        and earlier.handler = waiting.handler
  );

-- Up to the next row that holds the handler, and that row too.
-- name: free after handler
update microflow.parked as waiting set free = true
from (
    select freed.topic, freed.key, freed.handler, coalesce(
        (
            select first.sequence from microflow.parked as first
            where first.service = $1 and first.topic = freed.topic and first.key = freed.key
              and first.key is not null and first.ordering = 1 and first.handler = freed.handler
            order by first.sequence limit 1
        ),
        9223372036854775807
    ) as up_to
    from unnest($2::text[], $3::bytea[], $4::integer[]) as freed (topic, key, handler)
    offset 0
) as freed
where waiting.service = $1 and waiting.topic = freed.topic and waiting.key = freed.key and waiting.key is not null
  and waiting.handler = freed.handler and not waiting.free and waiting.sequence <= freed.up_to
  and not exists (
      select 1 from microflow.parked as earlier
      where earlier.service = $1 and earlier.topic = freed.topic and earlier.key = freed.key
        and earlier.key is not null and earlier.ordering = 2 and earlier.sequence < waiting.sequence
        and earlier.digest <> waiting.digest
  );

-- After a row has changed what waits for it, which only a new version of a service does.
-- name: free anew
update microflow.parked as waiting set free = (
    not exists (
        select 1 from microflow.parked as earlier
        where earlier.service = $1 and earlier.topic = waiting.topic and earlier.key = waiting.key
          and earlier.key is not null and earlier.ordering = 2 and earlier.sequence < waiting.sequence
          and earlier.digest <> waiting.digest
    )
    and not exists (
        select 1 from microflow.parked as earlier
        where earlier.service = $1 and earlier.topic = waiting.topic and earlier.key = waiting.key
          and earlier.key is not null and earlier.ordering = 1 and earlier.sequence < waiting.sequence
          and earlier.handler = waiting.handler
    )
)
from unnest($2::text[], $3::bytea[]) as changed (topic, key)
where waiting.service = $1 and waiting.topic = changed.topic and waiting.key = changed.key and waiting.key is not null;

-- name: remove
delete from microflow.parked as parked using unnest($1::integer[], $2::bytea[]) as gone (handler, digest)
where parked.handler = gone.handler and parked.digest = gone.digest
returning parked.topic, parked.key, parked.ordering, parked.handler;

-- name: resume halted
update microflow.parked as parked set due = $1, attempt = 0
from unnest($2::integer[], $3::bytea[]) as halted (handler, digest)
where parked.handler = halted.handler and parked.digest = halted.digest
returning parked.handler, parked.digest;

-- name: blocked
select wanted.place, exists (
        select 1 from microflow.parked
        where service = $1 and topic = wanted.topic and key = wanted.key and key is not null and ordering = 2
    ) as all_handlers,
    array(
        select handler.name from microflow.handlers as handler
        where handler.service = $1 and exists (
            select 1 from microflow.parked as parked
            where parked.service = $1 and parked.topic = wanted.topic and parked.key = wanted.key
              and parked.key is not null and parked.ordering = 1 and parked.handler = handler.id
        )
    ) as handlers
from unnest($2::text[], $3::bytea[]) with ordinality as wanted (topic, key, place);

-- name: due
select found.*, handler.name as handler, partition.number
from unnest($2::text[], $3::integer[]) as wanted (topic, number)
join microflow.partitions as partition
    on partition.service = $1 and partition.topic = wanted.topic and partition.number = wanted.number
cross join lateral (
    select parked.sequence, parked.handler as handler_id, parked.digest, parked.topic, parked.key, parked.ordering,
        parked.due, parked.attempt, parked.first_failed_at, parked.content, parked."offset", parked."timestamp",
        parked.error, parked.headers, parked.value
    from microflow.parked as parked
    where parked.partition = partition.id and parked.free and parked.due is not null and parked.due <= $4
      and ($6::text[] is null or parked.handler in (
          select id from microflow.handlers where service = $1 and name = any($6)
      ))
    order by parked.due, parked.sequence limit $5
) as found
join microflow.handlers as handler on handler.id = found.handler_id
order by found.due, found.sequence limit $5;

-- name: next due
select found.due, handler.name as handler, found.digest
from unnest($2::text[], $3::integer[]) as wanted (topic, number)
join microflow.partitions as partition
    on partition.service = $1 and partition.topic = wanted.topic and partition.number = wanted.number
cross join lateral (
    select parked.due, parked.sequence, parked.handler, parked.digest from microflow.parked as parked
    where parked.partition = partition.id and parked.free and parked.due is not null
      and ($5::text[] is null or parked.handler in (
          select id from microflow.handlers where service = $1 and name = any($5)
      ))
    order by parked.due, parked.sequence limit $4
) as found
join microflow.handlers as handler on handler.id = found.handler
order by found.due, found.sequence limit $4;

-- name: counts
select handler.name, (
    select count(*) from (
        select 1 from microflow.parked as parked where parked.handler = handler.id limit $2::bigint
    ) as counted
) as count
from microflow.handlers as handler where handler.service = $1;

-- name: waiting
select handler.name as handler, partition.number, parked.digest, parked.topic, parked.key, parked.ordering, parked.due,
    parked.attempt, parked.first_failed_at, parked.content, parked."offset", parked."timestamp", parked.error,
    parked.headers, parked.value
from microflow.handlers as handler
join microflow.parked as parked on parked.handler = handler.id
join microflow.partitions as partition on partition.id = parked.partition
where handler.service = $1 and handler.name = $2 order by parked.sequence limit $3;
