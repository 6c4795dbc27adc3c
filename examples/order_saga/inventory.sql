create table stock (
    item text primary key,
    available bigint not null check (available >= 0)
);

create table reservations (
    order_id text not null,
    item text not null,
    quantity bigint not null,
    state text not null -- reserved, released
);

create index reservations_of_an_order on reservations (order_id);

insert into stock (item, available) values
    ('teapot', 1000000),
    ('cup', 1000000),
    ('antique clock', 1000000), -- the carrier is slow with these
    ('grand piano', 1000000),   -- the carrier refuses these
    ('unicorn', 0);             -- everybody wants one
