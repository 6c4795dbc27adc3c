"""A file of SQL as its statements."""

from __future__ import annotations

import pytest

from microflow.stores.postgres.scripts import split


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("", []),
        (" ;; -- nothing\n /* at /* all */ */ ;", []),
        ("select 1", ["select 1"]),
        ("select 1;\nselect 2;", ["select 1;", "select 2;"]),
        ("select ';', \";\", E'\\';', 'it''s;'; select 2", ["select ';', \";\", E'\\';', 'it''s;';", "select 2"]),
        ("do $$ begin; end $$; select 1", ["do $$ begin; end $$;", "select 1"]),
        ("do $a$ $$;$$ $b$ ; $a$; select $1;", ["do $a$ $$;$$ $b$ ; $a$;", "select $1;"]),
        ("select 1 /* ; /* ; */ ; */; select 2", ["select 1 /* ; /* ; */ ; */;", "select 2"]),
        (
            "create or replace function f() returns int begin atomic select case when true then 1 end; end; select 2;",
            [
                "create or replace function f() returns int begin atomic select case when true then 1 end; end;",
                "select 2;",
            ],
        ),
        ("create rule r as on insert to t do also (select 1; select 2); select 3", None),
        ("select 'open", ["select 'open"]),
    ],
)
def test_a_script_is_split_where_a_statement_ends(script: str, statements: list[str] | None) -> None:
    found = [statement for _, statement in split(script)]

    assert found == statements if statements is not None else len(found) == 2


def test_each_statement_has_the_line_on_which_it_begins() -> None:
    assert [line for line, _ in split("-- a\n\ncreate table a (\n id text\n);\n\n\nselect 1; select 2;")] == [3, 8, 8]
