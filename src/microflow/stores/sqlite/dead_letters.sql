-- name: bury
insert into microflow_dead_letters (
    service, handler, digest, state, partition, "key", ordering, reason, attempts, first_failed_at, failed_at, content,
    "offset", "timestamp", error, trace, headers, value
) values (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (handler, digest) do update set
    state = 0,
    ordering = excluded.ordering,
    reason = excluded.reason,
    attempts = excluded.attempts,
    first_failed_at = excluded.first_failed_at,
    failed_at = excluded.failed_at,
    error = excluded.error,
    trace = excluded.trace;

-- name: redriven has succeeded
update microflow_dead_letters set state = 2 where handler = ? and digest = ? and state = 1;

-- name: list
select letter.id, handler.name, letter.digest, letter.state, partition.topic, partition.number, letter."key",
    letter.ordering, letter.reason, letter.attempts, letter.first_failed_at, letter.failed_at, letter.content,
    letter."offset", letter."timestamp", letter.error, letter.trace, letter.headers, letter.value
from microflow_dead_letters as letter
join microflow_handlers as handler on handler.id = letter.handler
join microflow_partitions as partition on partition.id = letter.partition
where letter.service = ?1 and letter.id > ?2 and (?3 is null or handler.name = ?3)
order by letter.id limit ?4;

-- name: get
select letter.id, handler.name, letter.digest, letter.state, partition.topic, partition.number, letter."key",
    letter.ordering, letter.reason, letter.attempts, letter.first_failed_at, letter.failed_at, letter.content,
    letter."offset", letter."timestamp", letter.error, letter.trace, letter.headers, letter.value
from microflow_dead_letters as letter
join microflow_handlers as handler on handler.id = letter.handler
join microflow_partitions as partition on partition.id = letter.partition
where letter.service = ? and letter.id = ?;

-- name: of
select letter.id from microflow_dead_letters as letter
join microflow_handlers as handler on handler.id = letter.handler
where handler.service = ? and handler.name = ? and letter.digest = ? and letter.state = 0;

-- name: begin to redrive
update microflow_dead_letters set state = 1 where service = ? and id = ? and state = 0 returning id;

-- One that halts its key stays: it is the only way to make the key go on.
-- name: purge
delete from microflow_dead_letters where id in (
    select id from microflow_dead_letters as letter
    where service = ? and failed_at < ? and state <> 1
      and not exists (
          select 1 from microflow_parked as parked
          where parked.handler = letter.handler and parked.digest = letter.digest
      )
    order by failed_at limit ?
);
