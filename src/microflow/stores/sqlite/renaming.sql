-- name: rename
update microflow_handlers set name = ? where id = ?;

-- What both have claimed: it is done if one of them has done it; else the new name's own claim counts.
-- name: claimed by both
select old.digest, old.status = 0 and new.status <> 0
from microflow_inbox as old join microflow_inbox as new on new.handler = ?2 and new.digest = old.digest
where old.handler = ?1;

-- name: drop claim
delete from microflow_inbox where handler = ? and digest = ?;

-- name: drop dead letter
delete from microflow_dead_letters where handler = ? and digest = ?;

-- name: move claims
update microflow_inbox set handler = ?2 where handler = ?1;

-- name: move parked
update microflow_parked set handler = ?2 where handler = ?1;

-- name: move dead letters
update microflow_dead_letters set handler = ?2 where handler = ?1;

-- name: move triggers
update or ignore microflow_triggers set handler = ?2 where handler = ?1;

-- name: drop triggers
delete from microflow_triggers where handler = ?;

-- name: drop handler
delete from microflow_handlers where id = ?;

-- name: keys that wait for a handler
select distinct topic, "key" from microflow_parked where handler = ? and "key" is not null;

-- name: was not renamed
delete from microflow_renamed where service = ? and name = ?;

-- name: was renamed
insert into microflow_renamed (service, name, new_name, renamed_at) values (?, ?, ?, ?)
on conflict (service, name) do update set new_name = excluded.new_name, renamed_at = excluded.renamed_at;

-- name: was renamed on
update microflow_renamed set new_name = ?3 where service = ?1 and new_name = ?2;
