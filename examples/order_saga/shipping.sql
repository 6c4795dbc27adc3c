create table shipments (
    tracking text primary key,
    order_id text not null,
    state text not null -- booked, called back
);

create index shipments_of_an_order on shipments (order_id);
