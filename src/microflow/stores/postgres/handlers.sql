-- name: find
select name, id from microflow.handlers where service = $1 and name = any($2::text[]);

-- name: intern
insert into microflow.handlers (service, name) select $1, name from unnest($2::text[]) as name order by name
on conflict do nothing;

-- name: version
select version from microflow.registries where service = $1;

-- name: new version
insert into microflow.registries (service, version) values ($1, 1)
on conflict (service) do update set version = registries.version + 1;

-- name: triggers
select handler.name, reads.topic, reads.type, reads.since, reads.registered_at
from microflow.triggers as reads join microflow.handlers as handler on handler.id = reads.handler
where handler.service = $1;

-- name: add triggers
insert into microflow.triggers (handler, topic, type, since, registered_at)
select handler.id, added.topic, added.type, (
        select coalesce(jsonb_object_agg(partition.number, mark.watermark), '{}')
        from microflow.partitions as partition join microflow.watermarks as mark on mark.partition = partition.id
        where partition.service = $1 and partition.topic = added.topic
    ), $5
from unnest($2::text[], $3::text[], $4::text[]) as added (name, topic, type)
join microflow.handlers as handler on handler.service = $1 and handler.name = added.name
on conflict (handler, topic, type) do nothing
returning 1;

-- name: forget triggers
delete from microflow.triggers as reads
using microflow.handlers as handler, unnest($2::text[], $3::text[], $4::text[]) as gone (name, topic, type)
where handler.service = $1 and handler.name = gone.name
  and reads.handler = handler.id and reads.topic = gone.topic and reads.type = gone.type;

-- name: something waits
select handler.name from microflow.handlers as handler
where handler.service = $1 and handler.name = any($2::text[])
  and exists (select 1 from microflow.parked as parked where parked.handler = handler.id);

-- name: processes
select owner, handlers from microflow.processes where service = $1 and until > $2;

-- name: attend
insert into microflow.processes (service, owner, until, handlers) values ($1, $2, $3, $4::text::jsonb)
on conflict (service, owner) do update set until = excluded.until, handlers = excluded.handlers;

-- name: forget the dead
delete from microflow.processes where service = $1 and owner in (
    select owner from microflow.processes where service = $1 and until <= $2 order by owner for update skip locked
);

-- name: leave
delete from microflow.processes where service = $1 and owner = $2;

-- name: renamed
select name, new_name from microflow.renamed where service = $1;
