create table orders (
    order_id text primary key,
    state text not null -- accepted, withdrawn, unwanted, or how it ended
);

-- Every end of every order. It has no unique index, so that an order that ended twice would be seen here, not hidden.
create table endings (
    order_id text not null,
    ending text not null -- completed, cancelled, rejected
);
