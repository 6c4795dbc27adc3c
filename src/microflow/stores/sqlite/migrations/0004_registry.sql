-- Which handlers a service has, whatever the process. Every transaction checks the version, which grows with them.
create table microflow_registries (
    service text primary key,
    version integer not null
) without rowid;

-- What triggers a handler. `since`: the offset of each partition from which it is read, as JSON.
create table microflow_triggers (
    handler integer not null,
    topic text not null,
    type text not null,
    since text not null,
    registered_at integer not null,
    primary key (handler, topic, type)
) without rowid;

-- The processes that live until an instant, and their handlers with their triggers, as JSON.
create table microflow_processes (
    service text not null,
    owner text not null,
    until integer not null,
    handlers text not null,
    primary key (service, owner)
) without rowid;

create table microflow_renamed (
    service text not null,
    name text not null,
    new_name text not null,
    renamed_at integer not null,
    primary key (service, name)
) without rowid;

alter table microflow_handlers drop column registered;
