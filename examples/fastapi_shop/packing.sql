create table parcels (
    order_id text primary key,
    item text not null
);
