-- In the order of the primary key, so that two who claim the same events do not wait for each other in a ring. Of the
-- same claim twice the first is entered. What was granted is told only if it was not all. Handler, status and partition
-- are said once for each kind of claim: most are of one.
-- name: claim
with claim as (
    select ($5::integer[])[kind] as handler, digest, ($6::smallint[])[kind] as status, content,
        ($7::integer[])[kind] as partition, "offset", place
    from unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[])
        with ordinality as claim (kind, digest, content, "offset", place)
),
granted as (
    insert into microflow.inbox (handler, digest, status, content, partition, "offset", completed_at)
    select handler, digest, status, content, partition, "offset", case when status <> 1 then $8::timestamptz end
    from claim
    order by handler, digest, place
    on conflict do nothing
    returning handler, digest
)
select
    pg_current_xact_id()::text as transaction,
    case when count(*) < cardinality($1) then coalesce(array_agg(handler), '{}') end as handlers,
    case when count(*) < cardinality($1) then coalesce(array_agg(digest), '{}') end as digests
from granted;

-- name: resume
with resumed as (
    select parked.sequence, parked.topic, parked.key, parked.ordering, claim.*
    from unnest($1::integer[], $2::bytea[], $3::smallint[], $4::bytea[], $5::integer[], $6::bigint[])
        as claim (handler, digest, status, content, partition, "offset")
    join microflow.parked as parked on parked.handler = claim.handler and parked.digest = claim.digest
    order by parked.sequence
    for update of parked
),
entered as (
    insert into microflow.inbox (handler, digest, status, content, partition, "offset", completed_at)
    select handler, digest, status, content, partition, "offset", case when status <> 1 then $7::timestamptz end
    from resumed
    on conflict (handler, digest) do update set status = excluded.status, completed_at = excluded.completed_at
),
gone as (
    delete from microflow.parked as parked using resumed
    where parked.sequence = resumed.sequence and resumed.status <> 1
),
succeeded as (
    update microflow.dead_letters as letter set state = 2 from resumed
    where letter.handler = resumed.handler and letter.digest = resumed.digest and letter.state = 1
      and resumed.status = 0
)
select handler, digest, status, topic, key, ordering from resumed;

-- name: set status
update microflow.inbox as claim set status = $3, completed_at = changed.completed_at
from unnest($1::integer[], $2::bytea[], $4::timestamptz[]) as changed (handler, digest, completed_at)
where claim.handler = changed.handler and claim.digest = changed.digest;

-- name: reopen
insert into microflow.inbox (handler, digest, status, content, partition, "offset", completed_at)
select handler, digest, 1, content, partition, "offset", null
from unnest($1::integer[], $2::bytea[], $3::bytea[], $4::integer[], $5::bigint[])
    as letter (handler, digest, content, partition, "offset")
on conflict (handler, digest) do update set status = 1, completed_at = null;

-- A lookup for each, however large the inbox is and whatever the planner thinks of it. A row without a place says that
-- something is parked which others wait for: hardly ever, so that hardly ever anybody has to ask for what.
-- name: seen
select wanted.place, claim.content
from unnest($2::integer[], $3::bytea[]) with ordinality as wanted (handler, digest, place)
cross join lateral (
    select content from microflow.inbox where handler = wanted.handler and digest = wanted.digest limit 1
) as claim
union all
select null, null
where exists (select 1 from microflow.parked where service = $1 and ordering = 2 and key is not null)
    or exists (select 1 from microflow.parked where service = $1 and ordering = 1 and key is not null);

-- name: claimed from
select 1
from microflow.handlers as handler
join microflow.inbox as claim on claim.handler = handler.id
join microflow.partitions as partition on partition.id = claim.partition
join unnest($3::text[], $4::integer[], $5::bigint[]) as wanted (topic, number, first)
    on wanted.topic = partition.topic and wanted.number = partition.number and claim."offset" >= wanted.first
where handler.service = $1 and handler.name = $2
limit 1;

-- name: passed partitions
select partition.id, mark.watermark
from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
where partition.service = $1;

-- Behind what was purged before ($5): what is dead there has to be passed while an old snapshot keeps it.
-- name: purge
with old as (
    select handler, digest from microflow.inbox as claim
    where partition = $1 and completed_at < $2 and completed_at >= $5 and "offset" < $3
      and (
          status = 0
          or status = 2 and not exists (
              select 1 from microflow.dead_letters as letter
              where letter.handler = claim.handler and letter.digest = claim.digest
          )
      )
    order by completed_at
    limit $4
    for update skip locked
)
delete from microflow.inbox as claim using old
where claim.handler = old.handler and claim.digest = old.digest
returning claim.completed_at;
