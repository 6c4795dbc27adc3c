-- name: append
insert into microflow.outbox (service, topic, key, value, headers, created_at) values ($1, $2, $3, $4, $5, $6);

-- name: pending
select topic, key, value, headers, created_at, position, publisher, partition from microflow.outbox where position > $1
order by position limit $2;

-- name: pending of shards
select topic, key, value, headers, created_at, position, publisher, partition from microflow.outbox
where position > $1 and spread & 63 = any($3::integer[])
order by position limit $2;

-- name: page
select topic, key, value, headers, created_at, position, publisher, partition from microflow.outbox
where position > $1 and publisher is distinct from $3
order by position limit $2;

-- name: page of shards
select topic, key, value, headers, created_at, position, publisher, partition from microflow.outbox
where position > $1 and publisher is distinct from $3 and spread & 63 = any($4::integer[])
order by position limit $2;

-- Nobody waits until the disk has it: what comes back is published once more, and known by its claim (decision 0005).
-- name: delete
with unsynced as (select set_config('synchronous_commit', 'off', true)),
gone as (delete from microflow.outbox using unsynced where position = any($1::bigint[]) returning position)
select max(position) as highest from gone;

-- name: status
select count(*) as pending,
    (select created_at from microflow.outbox where position > $1 order by position limit 1) as oldest
from microflow.outbox where position > $1;

-- Positions are given in order, so how far they reach tells nearly always without counting.
-- name: crowded
select topic, count(*) as waiting
from (
    select topic from microflow.outbox
    where position > $2
      and (select max(position) - min(position) + 1 from microflow.outbox where position > $2) >= $1::bigint
    order by position limit $1::bigint * 10
) as oldest
group by topic having count(*) >= $1::bigint;

-- A relay counts while it goes on asking; one whose end lies behind what is asked for is from before the clock was set
-- back. Each keeps its share, gives back what is more, and takes what is free if it has less. A shard has no end of its
-- own: to go on asking changes one row, whose dead versions have to be passed while an old snapshot keeps them.
-- name: lease
with asking as (
    insert into microflow.relays (owner, until) values ($1, $3)
    on conflict (owner) do update set until = excluded.until
),
gone as (
    delete from microflow.relays where owner <> $1 and (until <= $2 or until > $3)
),
others as materialized (
    select owner from microflow.relays where owner <> $1 and until > $2 and until <= $3
),
share as (
    select 64 / (count(*) + 1) + case when count(*) filter (where owner < $1) < 64 % (count(*) + 1) then 1 else 0 end
        as size
    from others
),
mine as materialized (
    select shard, owner is not distinct from $1 as is_kept from microflow.shards
    where owner = $1 or owner is null or owner not in (select owner from others)
    order by owner is distinct from $1, shard
    limit (select size from share)
),
taken as (
    update microflow.shards set owner = $1, until = null where shard in (select shard from mine where not is_kept)
    returning shard
),
given_back as (
    update microflow.shards set owner = null where owner = $1 and shard not in (select shard from mine)
)
select shard from mine where is_kept
union all
select shard from taken;

-- name: release
with gone as (delete from microflow.relays where owner = $1)
update microflow.shards set owner = null where owner = $1;

-- name: partition counts
select topic, partitions from microflow.partition_counts where topic = any($1::text[]);

-- name: remember partition counts
insert into microflow.partition_counts (topic, partitions)
select * from unnest($1::text[], $2::integer[]) as found (topic, partitions) order by topic
on conflict (topic) do nothing;

-- name: switch
insert into microflow.partition_counts (topic, partitions) values ($1, $2)
on conflict (topic) do update set partitions = excluded.partitions;

-- name: pending of topic
select count(*) from microflow.outbox where topic = $1;

-- name: new version of every registry
update microflow.registries set version = version + 1;
