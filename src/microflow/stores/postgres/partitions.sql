-- name: find
select partition.topic, partition.number, partition.id
from unnest($2::text[], $3::integer[]) as wanted (topic, number)
join microflow.partitions as partition
    on partition.service = $1 and partition.topic = wanted.topic and partition.number = wanted.number;

-- name: intern
insert into microflow.partitions (service, topic, number)
select $1, topic, number from unnest($2::text[], $3::integer[]) as wanted (topic, number) order by topic, number
on conflict do nothing;

-- What the owner before had in hand is not in hand any more, and has crashed it if it has not said goodbye.
-- name: take
with taken as (
    update microflow.partitions set epoch = epoch + 1, owner = $2 where id = any($1::integer[])
    returning id, epoch, coalesce(left_epoch, 0) = epoch - 1 as released,
        case when left_epoch = epoch - 1 then careful_until end as careful_until
),
counted as (
    update microflow.suspects as suspect
    set crashes = crashes + case when taken.released then 0 else 1 end, in_hand = false
    from taken where suspect.partition = taken.id and suspect.in_hand
)
select taken.*, (select watermark from microflow.watermarks where partition = taken.id) as watermark from taken;

-- name: release
update microflow.partitions as partition set left_epoch = partition.epoch, careful_until = left_at.careful_until
from unnest($1::integer[], $2::bigint[], $3::bigint[]) as left_at (id, epoch, careful_until)
where partition.id = left_at.id and partition.epoch = left_at.epoch;

-- name: epochs
select id, epoch from microflow.partitions where id = any($1::integer[]);

-- name: watermarks
select partition.topic, partition.number, mark.watermark
from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
where partition.service = $1;

-- name: owners
select topic, number, epoch, case when left_epoch is distinct from epoch then owner end as owner
from microflow.partitions where service = $1 and epoch > 0;
