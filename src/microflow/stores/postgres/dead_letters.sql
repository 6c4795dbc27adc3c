-- name: bury
insert into microflow.dead_letters (
    service, handler, digest, state, partition, key, ordering, reason, attempts, first_failed_at, failed_at, content,
    "offset", "timestamp", error, trace, headers, value
)
select $1, handler, digest, 0, partition, key, ordering, reason, attempts, first_failed_at, failed_at, content,
    "offset", "timestamp", error, trace, headers, value
from unnest(
    $2::integer[], $3::bytea[], $4::integer[], $5::bytea[], $6::smallint[], $7::text[], $8::integer[],
    $9::timestamptz[], $10::timestamptz[], $11::bytea[], $12::bigint[], $13::timestamptz[], $14::text[], $15::text[],
    $16::bytea[], $17::bytea[]
) with ordinality as letter (
    handler, digest, partition, key, ordering, reason, attempts, first_failed_at, failed_at, content, "offset",
    "timestamp", error, trace, headers, value, place
)
order by place
on conflict (handler, digest) do update set
    state = 0,
    ordering = excluded.ordering,
    reason = excluded.reason,
    attempts = excluded.attempts,
    first_failed_at = excluded.first_failed_at,
    failed_at = excluded.failed_at,
    error = excluded.error,
    trace = excluded.trace;

-- name: list
select letter.id, handler.name as handler, letter.digest, letter.state, partition.topic, partition.number, letter.key,
    letter.ordering, letter.reason, letter.attempts, letter.first_failed_at, letter.failed_at, letter.content,
    letter."offset", letter."timestamp", letter.error, letter.trace, letter.headers, letter.value
from microflow.dead_letters as letter
join microflow.handlers as handler on handler.id = letter.handler
join microflow.partitions as partition on partition.id = letter.partition
where letter.service = $1 and letter.id > $2 and ($3::text is null or handler.name = $3)
order by letter.id limit $4;

-- name: get
select letter.id, handler.name as handler, letter.digest, letter.state, partition.topic, partition.number, letter.key,
    letter.ordering, letter.reason, letter.attempts, letter.first_failed_at, letter.failed_at, letter.content,
    letter."offset", letter."timestamp", letter.error, letter.trace, letter.headers, letter.value
from microflow.dead_letters as letter
join microflow.handlers as handler on handler.id = letter.handler
join microflow.partitions as partition on partition.id = letter.partition
where letter.service = $1 and letter.id = any($2::bigint[])
order by letter.id;

-- name: of
select handler.name as handler, letter.digest, letter.id
from unnest($2::text[], $3::bytea[]) as claim (handler, digest)
join microflow.handlers as handler on handler.service = $1 and handler.name = claim.handler
join microflow.dead_letters as letter on letter.handler = handler.id and letter.digest = claim.digest
where letter.state = 0;

-- By ascending id, so that two who ask at once do not wait for each other in a ring.
-- name: begin to redrive
with chosen as (
    select id from microflow.dead_letters where service = $1 and id = any($2::bigint[]) and state = 0
    order by id
    for update
)
update microflow.dead_letters as letter set state = 1 from chosen where letter.id = chosen.id returning letter.id;

-- One that halts its key stays: it is the only way to make the key go on.
-- name: purge
delete from microflow.dead_letters where id in (
    select id from microflow.dead_letters as letter
    where service = $1 and failed_at < $2 and state <> 1
      and not exists (
          select 1 from microflow.parked as parked
          where parked.handler = letter.handler and parked.digest = letter.digest
      )
    order by failed_at limit $3
    for update skip locked
)
returning 1;
