-- By position as well: who looks for the rows of a key begins behind what is settled, and passes none of the dead ones.
create index outbox_of_key on microflow.outbox (spread, position);
drop index microflow.outbox_spread;
