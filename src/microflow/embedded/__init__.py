"""What the local log and the SQLite store share: a SQLite file that several processes use at once."""
