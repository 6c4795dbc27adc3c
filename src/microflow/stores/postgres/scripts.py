"""A file of SQL as its statements, so that an error can name the line of the one that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]*)
    | (?P<comment>/\*)
    | (?P<quoted>[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<other>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ROUTINES = re.compile(r"create (or replace )?(function|procedure)\b")


def split(script: str) -> Iterator[tuple[int, str]]:
    """Each statement, with the number of the line on which it begins. The last one need not end with a semicolon.

    Semicolons in strings, quoted names, dollar quotes, nested comments, parentheses and the bodies of SQL routines
    (`begin atomic … end`) end nothing.
    """
    start: int | None = None
    words: list[str] = []
    parentheses = blocks = position = 0
    while position < len(script):
        token = _TOKEN.match(script, position)
        assert token is not None
        kind, text, position = token.lastgroup, token.group(), token.end()
        if kind == "comment":
            position = _end_of_comment(script, position)
        elif kind == "dollar":
            position = _end_of_dollars(script, text, position)
        if kind in {"space", "comment"}:
            continue
        if text == ";" and parentheses == 0 and blocks == 0:
            if start is not None:
                yield script.count("\n", 0, start) + 1, script[start:position]
            start, words = None, []
            continue
        start = token.start() if start is None else start
        if kind == "word":
            words.append(text.lower())
            blocks += _opens(words, blocks)
        elif text in "()":
            parentheses = max(0, parentheses + (1 if text == "(" else -1))
    if start is not None:
        yield script.count("\n", 0, start) + 1, script[start:].rstrip()


def _opens(words: list[str], blocks: int) -> int:
    """How many blocks of a routine's body the last word opens; -1 if it ends one."""
    if not _ROUTINES.match(" ".join(words[:4])):
        return 0
    match words[-1]:
        case "atomic" if words[-2:-1] == ["begin"]:
            return 1
        case "case" if blocks:
            return 1
        case "end" if blocks:
            return -1
        case _:
            return 0


def _end_of_comment(script: str, position: int) -> int:
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(script, position)):
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
    return len(script) if depth else position


def _end_of_dollars(script: str, tag: str, position: int) -> int:
    end = script.find(tag, position)
    return len(script) if end < 0 else end + len(tag)
