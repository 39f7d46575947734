"""Rows of an index, judged as a query judges records."""

import pytest

from asapo.query import matches, parse
from asapo.query.rows import record_of, select_rows

pytestmark = pytest.mark.needs_server


@pytest.mark.parametrize(
    "text", ["n > 6", "_size = 20 OR _substream = 1 AND n < 4", "timestamp < 7", "t = 'é\"]' AND _stored < 7", ""]
)
def test_many_rows_are_judged_as_each_by_itself(text: str) -> None:
    rows = [
        (number, number, number % 2, 0, 1, 0, 10 * number, 0, 1, f'{{"n":{number},"t":"é\\"]"}}', 100 + number, 7, 0, 0)
        for number in range(1, 9)
    ]
    query = parse(text)
    expected = [(record_of(row), row) for row in rows if matches(query.where, record_of(row))]
    assert select_rows(query, rows) == expected
    assert expected
    assert select_rows(query, []) == []
