-- name: find
select id from microflow_handlers where service = ? and name = ?;

-- name: intern
insert into microflow_handlers (service, name) values (?, ?) returning id;

-- name: register
insert into microflow_handlers (service, name, registered) values (?, ?, 1)
on conflict (service, name) do update set registered = 1;

-- name: registered
select name from microflow_handlers where service = ? and registered = 1;
