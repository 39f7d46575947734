"""Query text to tree, with errors that say where, what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NoReturn

from asapo.errors import WrongInput
from asapo.query.ast import KEYWORDS, Query
from asapo.query.grammar import OURS, Dialect, parser, wrong

if TYPE_CHECKING:
    from lark import Token

MAX_TEXT_BYTES: Final = 16 * 1024
"""Longest query text in UTF-8 bytes."""

_NAMES: Final = {
    "NAME": "a key",
    "OPERATOR": "an operator (= != <> < <= > >=)",
    "NUMBER": "a number",
    "STRING": "quoted text",
    "TRUE": "true",
    "FALSE": "false",
    "LPAR": "'('",
    "RPAR": "')'",
    "COMMA": "','",
    "$END": "the end of the query",
}


def parse(text: str, dialect: Dialect = OURS) -> Query:
    """Read a query such as ``score > 0.5 AND sample.name = 'lysozyme' ORDER BY score DESC LIMIT 100``.

    Parameters
    ----------
    text : str
        Condition, ORDER BY and LIMIT, each optional; empty text selects every message by ascending id.
    dialect : Dialect
        How keys and values are read, and what is meant by a predicate; ours if not given.

    Raises
    ------
    WrongInput
        If the text is not a query or exceeds a limit (16 kB, 256 comparisons, 64 levels of nesting). Syntax errors have
        the fields `position` (character number, from 1), `found` and `expected`.

    >>> str(parse("Score>.5 and not (`odd key`.x<>'it''s')"))
    "Score > 0.5 AND NOT `odd key`.x != 'it''s'"
    """
    _check_text(text)
    built = parser(dialect)  # says so when lark is not installed: only the extra `server` has it
    import lark

    try:
        query = built.parse(text)
    except lark.exceptions.UnexpectedToken as error:
        # Without a cause: the text of lark's errors names its own internals.
        _bad_token(error.token, error.accepts or error.expected, text)
    except lark.exceptions.UnexpectedCharacters as error:
        _bad_character(text, error.pos_in_stream)
    assert isinstance(query, Query)  # the embedded actions return it, which lark's types cannot say
    return query


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise WrongInput(f"query: found {type(text).__name__}, expected text")
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        wrong(error.start + 1, repr(text[error.start]), "text that can be written as UTF-8", "remove the character")
    if n_bytes > MAX_TEXT_BYTES:
        raise WrongInput(
            f"query: {n_bytes} bytes long, expected at most {MAX_TEXT_BYTES}; split the query",
            limit_bytes=MAX_TEXT_BYTES,
        )
    if "\0" in text:
        wrong(text.index("\0") + 1, "NUL", "text without NUL", "remove the character")


def _bad_token(token: Token, expected: Collection[str], text: str) -> NoReturn:
    at_end = token.type == "$END"
    shown = str(token) if len(token) <= 40 else f"{str(token)[:40]}…"
    wrong(
        len(text) + 1 if at_end else (token.start_pos or 0) + 1,
        "the end of the query" if at_end else repr(shown),
        _alternatives(expected),
        _advice(token, expected),
    )


def _alternatives(expected: Collection[str]) -> str:
    names = sorted({_NAMES.get(name, name.lstrip("_")) for name in expected})
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}" if names else "nothing more"


def _advice(token: Token, expected: Collection[str]) -> str:
    if token.upper() in KEYWORDS and "NAME" in expected:
        return f"for a metadata key of this name write meta.{token}"
    if set(expected) == {"_BY"}:
        return "write ORDER BY KEY, or meta.order for a metadata key of this name"
    if token.type == "NAME" and "STRING" in expected:
        return "put text in single quotes"
    if token.type in {"NUMBER", "STRING", "TRUE", "FALSE"} and "NAME" in expected:
        return "write the key on the left and the value on the right"
    if "RPAR" in expected and token.type == "$END":
        return "close the parenthesis"
    return "compare as KEY OPERATOR VALUE and join comparisons with AND, OR"


def _bad_character(text: str, position: int | None) -> NoReturn:
    index = position or 0
    character = text[index]
    if character in "'\"`":
        end = "key" if character == "`" else "text"
        wrong(
            index + 1,
            f"a {character} that is never closed",
            f"a closing {character}",
            f"end the {end} with {character}",
        )
    wrong(
        index + 1,
        repr(character),
        "a key, operator, value or parenthesis",
        "put text in single quotes and keys with odd characters in backticks",
    )
