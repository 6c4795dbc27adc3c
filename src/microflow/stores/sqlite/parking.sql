-- Within (service, topic, key), a row waits for an earlier row if that one
--   has ordering 2 (key) and is of another event, or
--   has ordering 1 (handler) and is of the same handler.
-- `free` keeps the answer in the row, so that finding what is due costs what is found, however much waits. It is set
-- when a row is parked and when a row that others may wait for goes. Rows without a key wait for nothing.

-- name: park
insert into microflow_parked (
    handler, digest, service, topic, "key", partition, ordering, due, attempt, first_failed_at, content, "offset",
    "timestamp", error, headers, value, free
) values (
    ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
    not exists (
        select 1 from microflow_parked indexed by microflow_parked_key
        where service = ?3 and topic = ?4 and "key" = ?5 and "key" is not null and ordering = 2 and digest <> ?2
    ) and not exists (
        select 1 from microflow_parked indexed by microflow_parked_handler
        where service = ?3 and topic = ?4 and "key" = ?5 and "key" is not null and ordering = 1 and handler = ?1
    )
)
on conflict (handler, digest) do update set
    ordering = excluded.ordering,
    due = excluded.due,
    attempt = excluded.attempt,
    first_failed_at = excluded.first_failed_at,
    error = excluded.error;

-- name: place
select sequence, topic, "key", ordering from microflow_parked where handler = ? and digest = ?;

-- name: remove
delete from microflow_parked where sequence = ?;

-- Up to the second event that holds the key: everything behind that one waits for it still.
-- name: free after key
update microflow_parked as waiting indexed by microflow_parked_waiting set free = 1
where free = 0 and service = ?1 and topic = ?2 and "key" = ?3 and "key" is not null
  and sequence < coalesce(
      (
          select second.sequence from microflow_parked as second indexed by microflow_parked_key
          where second.service = ?1 and second.topic = ?2 and second."key" = ?3 and second."key" is not null
            and second.ordering = 2
            and second.digest <> (
                select first.digest from microflow_parked as first indexed by microflow_parked_key
                where first.service = ?1 and first.topic = ?2 and first."key" = ?3 and first."key" is not null
                  and first.ordering = 2
                order by first.sequence limit 1
            )
          order by second.sequence limit 1
      ),
      9223372036854775807
  )
  and not exists (
      select 1 from microflow_parked as earlier indexed by microflow_parked_key
      where earlier.service = ?1 and earlier.topic = ?2 and earlier."key" = ?3 and earlier."key" is not null
        and earlier.ordering = 2 and earlier.sequence < waiting.sequence and earlier.digest <> waiting.digest
  )
  and not exists (
      select 1 from microflow_parked as earlier indexed by microflow_parked_handler
      where earlier.service = ?1 and earlier.topic = ?2 and earlier."key" = ?3 and earlier."key" is not null
        and earlier.ordering = 1 and earlier.sequence < waiting.sequence and earlier.handler = waiting.handler
  );

-- Up to the next row that holds the handler, and that row too.
-- name: free after handler
update microflow_parked as waiting indexed by microflow_parked_waiting set free = 1
where free = 0 and service = ?1 and topic = ?2 and "key" = ?3 and "key" is not null and handler = ?4
  and sequence <= coalesce(
      (
          select first.sequence from microflow_parked as first indexed by microflow_parked_handler
          where first.service = ?1 and first.topic = ?2 and first."key" = ?3 and first."key" is not null
            and first.ordering = 1 and first.handler = ?4
          order by first.sequence limit 1
      ),
      9223372036854775807
  )
  and not exists (
      select 1 from microflow_parked as earlier indexed by microflow_parked_key
      where earlier.service = ?1 and earlier.topic = ?2 and earlier."key" = ?3 and earlier."key" is not null
        and earlier.ordering = 2 and earlier.sequence < waiting.sequence and earlier.digest <> waiting.digest
  );

-- After a row has changed what waits for it, which only a new version of a service does.
-- name: free anew
update microflow_parked as waiting indexed by microflow_parked_waiting set free = (
    not exists (
        select 1 from microflow_parked as earlier indexed by microflow_parked_key
        where earlier.service = ?1 and earlier.topic = ?2 and earlier."key" = ?3 and earlier."key" is not null
          and earlier.ordering = 2 and earlier.sequence < waiting.sequence and earlier.digest <> waiting.digest
    )
    and not exists (
        select 1 from microflow_parked as earlier indexed by microflow_parked_handler
        where earlier.service = ?1 and earlier.topic = ?2 and earlier."key" = ?3 and earlier."key" is not null
          and earlier.ordering = 1 and earlier.sequence < waiting.sequence and earlier.handler = waiting.handler
    )
)
where service = ?1 and topic = ?2 and "key" = ?3 and "key" is not null;

-- name: anything that others wait for
select exists (
    select 1 from microflow_parked indexed by microflow_parked_key where service = ?1 and ordering = 2 and "key" is not null
) or exists (
    select 1 from microflow_parked indexed by microflow_parked_handler where service = ?1 and ordering = 1 and "key" is not null
);

-- name: key is held
select exists (
    select 1 from microflow_parked indexed by microflow_parked_key
    where service = ? and topic = ? and "key" = ? and "key" is not null and ordering = 2
);

-- name: held handlers
select name from microflow_handlers as handler
where handler.service = ?1 and exists (
    select 1 from microflow_parked indexed by microflow_parked_handler
    where service = ?1 and topic = ?2 and "key" = ?3 and "key" is not null and ordering = 1
      and microflow_parked.handler = handler.id
);

-- name: due
select parked.due, parked.sequence, handler.name, parked.digest
from microflow_parked as parked join microflow_handlers as handler on handler.id = parked.handler
where parked.partition = ?1 and parked.free = 1 and parked.due is not null and parked.due <= ?2
  and (?4 is null or handler.name in (select value from json_each(?4)))
order by parked.due, parked.sequence limit ?3;

-- name: parked event
select topic, "key", ordering, due, attempt, first_failed_at, content, "offset", "timestamp", error, headers, value,
    (select number from microflow_partitions where id = microflow_parked.partition)
from microflow_parked where sequence = ?;

-- name: counts
select name, (
    select count(*) from (select 1 from microflow_parked as parked where parked.handler = handler.id limit ?2)
)
from microflow_handlers as handler where service = ?1;

-- name: waiting
select parked.sequence, parked.digest
from microflow_handlers as handler join microflow_parked as parked on parked.handler = handler.id
where handler.service = ? and handler.name = ? order by parked.sequence limit ?;

-- name: resume halted
update microflow_parked set due = ?, attempt = 0 where handler = ? and digest = ? returning sequence;
