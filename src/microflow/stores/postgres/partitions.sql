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
select taken.*, mark.watermark, mark.incarnation
from taken left join microflow.watermarks as mark on mark.partition = taken.id;

-- name: release
update microflow.partitions as partition set left_epoch = partition.epoch, careful_until = left_at.careful_until
from unnest($1::integer[], $2::bigint[], $3::bigint[]) as left_at (id, epoch, careful_until)
where partition.id = left_at.id and partition.epoch = left_at.epoch;

-- name: epochs
select id, epoch from microflow.partitions where id = any($1::integer[]);

-- name: begin
insert into microflow.watermarks as stored (partition, watermark, incarnation)
select partition, watermark, incarnation
from unnest($1::integer[], $2::bigint[], $3::text[]) as begun (partition, watermark, incarnation)
order by partition
on conflict (partition) do update set watermark = excluded.watermark, incarnation = excluded.incarnation;

-- Several partitions of a trigger may begin at once, so all of them go into one new value.
-- name: read from further on
with earlier as (
    select reads.handler, reads.topic, reads.type, jsonb_object_agg(begun.number::text, begun.watermark) as since
    from microflow.triggers as reads
    join microflow.handlers as handler on handler.id = reads.handler and handler.service = $1
    join unnest($2::text[], $3::integer[], $4::bigint[]) as begun (topic, number, watermark)
        on begun.topic = reads.topic and (reads.since ->> begun.number::text)::bigint > begun.watermark
    group by reads.handler, reads.topic, reads.type
)
update microflow.triggers as reads set since = reads.since || earlier.since
from earlier
where reads.handler = earlier.handler and reads.topic = earlier.topic and reads.type = earlier.type
returning 1;

-- name: watermarks
select partition.topic, partition.number, mark.watermark
from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
where partition.service = $1;

-- name: incarnations
select partition.topic, partition.number, mark.incarnation
from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
where partition.service = $1 and mark.incarnation is not null;

-- name: owners
select topic, number, epoch, case when left_epoch is distinct from epoch then owner end as owner
from microflow.partitions where service = $1 and epoch > 0;
