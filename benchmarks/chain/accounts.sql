create table accounts (account text primary key, events integer not null, last integer not null);
