-- name: rename
update microflow.handlers set name = $1 where id = $2;

-- What both have claimed: it is done if one of them has done it; else the new name's own claim counts.
-- name: claimed by both
select case when old.status = 0 and new.status <> 0 then $2 else $1 end as loser, old.digest
from microflow.inbox as old join microflow.inbox as new on new.handler = $2 and new.digest = old.digest
where old.handler = $1::integer;

-- name: drop dead letters
delete from microflow.dead_letters as letter using unnest($1::integer[], $2::bytea[]) as lost (handler, digest)
where letter.handler = lost.handler and letter.digest = lost.digest;

-- name: drop claims
delete from microflow.inbox as claim using unnest($1::integer[], $2::bytea[]) as lost (handler, digest)
where claim.handler = lost.handler and claim.digest = lost.digest;

-- name: move claims
update microflow.inbox set handler = $2 where handler = $1;

-- name: move parked
update microflow.parked set handler = $2 where handler = $1;

-- name: move dead letters
update microflow.dead_letters set handler = $2 where handler = $1;

-- name: move triggers
update microflow.triggers as moved set handler = $2
where handler = $1 and not exists (
    select 1 from microflow.triggers as there
    where there.handler = $2 and there.topic = moved.topic and there.type = moved.type
);

-- name: drop triggers
delete from microflow.triggers where handler = $1;

-- name: drop handler
delete from microflow.handlers where id = $1;

-- name: keys that wait for a handler
select distinct topic, key from microflow.parked where handler = $1 and key is not null;

-- name: was not renamed
delete from microflow.renamed where service = $1 and name = $2;

-- name: was renamed
insert into microflow.renamed (service, name, new_name, renamed_at) values ($1, $2, $3, $4)
on conflict (service, name) do update set new_name = excluded.new_name, renamed_at = excluded.renamed_at;

-- name: was renamed on
update microflow.renamed set new_name = $3 where service = $1 and new_name = $2;
