create table payments (
    payment_id text primary key,
    order_id text not null,
    amount numeric not null,
    state text not null -- kept, owed (a refund is approved), refunded
);

create index payments_of_an_order on payments (order_id);
