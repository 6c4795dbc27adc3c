create table letters (
    order_id text not null,
    letter text not null
);
