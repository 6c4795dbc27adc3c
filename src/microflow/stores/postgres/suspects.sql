-- Whoever takes the partition meanwhile waits, or is waited for and found.
-- name: mark
with home as (select id from microflow.partitions where id = $1 and epoch = $2 for share)
insert into microflow.suspects (partition, number, "offset") select id, $3, $4 from home
on conflict (partition, number, "offset") do update set in_hand = true
returning 1;

-- name: known
select partition.topic, partition.number as home, suspect.number, suspect."offset", suspect.crashes
from unnest($2::text[], $3::integer[]) as wanted (topic, number)
join microflow.partitions as partition
    on partition.service = $1 and partition.topic = wanted.topic and partition.number = wanted.number
join microflow.suspects as suspect on suspect.partition = partition.id;

-- name: clear
delete from microflow.suspects as suspect
using unnest($1::integer[], $2::integer[], $3::bigint[]) as cleared (partition, number, "offset")
where suspect.partition = cleared.partition and suspect.number = cleared.number
  and suspect."offset" = cleared."offset";
