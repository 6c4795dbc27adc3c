"""The runtime's promises, rule by rule (semantics.md), on real SQLite and the real local log, in virtual time."""
