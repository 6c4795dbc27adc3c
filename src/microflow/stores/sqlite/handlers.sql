-- name: find
select id from microflow_handlers where service = ? and name = ?;

-- name: intern
insert into microflow_handlers (service, name) values (?, ?) returning id;

-- name: version
select version from microflow_registries where service = ?;

-- name: new version
insert into microflow_registries (service, version) values (?, 1)
on conflict (service) do update set version = version + 1;

-- name: triggers
select handler.name, "trigger".topic, "trigger".type, "trigger".since, "trigger".registered_at
from microflow_triggers as "trigger" join microflow_handlers as handler on handler.id = "trigger".handler
where handler.service = ?;

-- name: add trigger
insert into microflow_triggers (handler, topic, type, since, registered_at)
values (?1, ?2, ?3, (
    select json_group_object(number, watermark) from microflow_partitions
    where service = ?4 and topic = ?2 and watermark is not null
), ?5)
on conflict (handler, topic, type) do nothing;

-- name: forget trigger
delete from microflow_triggers where handler = ? and topic = ? and type = ?;

-- name: something waits
select exists (select 1 from microflow_parked where handler = ?);

-- name: processes
select owner, handlers from microflow_processes where service = ? and until > ?;

-- name: attend
insert into microflow_processes (service, owner, until, handlers) values (?, ?, ?, ?)
on conflict (service, owner) do update set until = excluded.until, handlers = excluded.handlers;

-- name: forget the dead
delete from microflow_processes where service = ? and until <= ?;

-- name: leave
delete from microflow_processes where service = ? and owner = ?;

-- name: renamed
select name, new_name from microflow_renamed where service = ?;
