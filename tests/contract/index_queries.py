"""What every index promises of queries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.errors import (
    WrongInput,
)
from asapo.index.interface import MetadataIndex
from asapo.query import (
    And,
    Boolean,
    Builtin,
    Comparison,
    MetaKey,
    Not,
    Number,
    Or,
    Order,
    Query,
    Record,
    Text,
    parse,
    select,
)
from tests.contract import query_corpus
from tests.contract.index_units import (
    AS_THE_EVALUATOR,
    IndexFixtures,
    ids_of,
    number,
    ref,
    unit,
)


class QueryContract(IndexFixtures):
    """Queries."""

    # -- queries

    @pytest.mark.parametrize("declared", [[], ["score"], ["score", "hit.n"]])
    def test_queries_select_and_order(self, index: MetadataIndex, declared: list[str]) -> None:
        metas = [json.dumps({"score": (i * 7) % 20 / 20, "hit": {"n": i % 3}, "ok": i % 2 == 0}) for i in range(20)]
        metas[4], metas[5] = '{"score": "high", "hit": 3}', "{}"
        half = len(metas) // 2
        index.commit([unit(range(1, half + 1), metas=metas[:half])])
        index.declare_keys(declared)
        assert index.declared_keys() == declared
        index.commit([unit(range(half + 1, 21), metas=metas[half:])])
        index.commit([unit([1], ref("other"), metas=['{"score": 0.99}'])])
        score, hits, ok = MetaKey(("score",)), MetaKey(("hit", "n")), MetaKey(("ok",))
        data = {i + 1: json.loads(text) for i, text in enumerate(metas)}
        good = {i: m["score"] for i, m in data.items() if isinstance(m.get("score"), float)}
        deep = {i: m["hit"]["n"] for i, m in data.items() if isinstance(m.get("hit"), dict)}

        def ask(where: Any, *order: Order, limit: int | None = None) -> list[int]:
            return ids_of(index.query(number(index), Query(where, order, limit)))

        above = Comparison(score, ">", Number(0.5))
        assert ask(above) == [i for i in data if good.get(i, 0) > 0.5]
        assert ask(above, Order(score, True), limit=3) == sorted(good, key=lambda i: -good[i])[:3]
        assert ask(above, Order(score), limit=0) == []
        assert ask(And((above, Comparison(hits, "=", Number(1))))) == [
            i for i in data if good.get(i, 0) > 0.5 and deep.get(i) == 1
        ]
        assert ask(Or((above, Comparison(hits, "=", Number(2))))) == [
            i for i in data if good.get(i, 0) > 0.5 or deep.get(i) == 2
        ]
        assert ask(Not(above)) == [i for i in data if not good.get(i, 0) > 0.5]
        assert ask(Comparison(score, "=", Text("high"))) == [5]
        assert ask(Comparison(ok, "=", Boolean(True)), limit=3) == [1, 3, 7]
        assert ask(Comparison(Builtin("_id"), ">=", Number(19))) == [19, 20]
        assert len(index.query(number(index), Query(None), row_limit=4)) == 4

    @pytest.mark.needs_server
    @pytest.mark.parametrize("further", [[], ["score", "sample.name", "note", "hit"]], ids=["", "sorted"])
    @pytest.mark.parametrize("declared", [[], ["score", "sample.name"], ["note"]])
    def test_the_corpus_is_answered(self, index: MetadataIndex, declared: list[str], further: list[str]) -> None:
        index.declare_keys(declared)
        index.declare_sorted_keys(further)
        index.commit(query_corpus.units(query_corpus.MESSAGES, ref()))
        if further:
            index.finish_stream(ref(), 9, "")
            index.sort_finished(ref())
            assert index.unsorted() == []
        no = number(index)
        found = {text: ids_of(index.query(no, parse(text))) for text, _ in query_corpus.ANSWERS}
        assert found == dict(query_corpus.ANSWERS)
        assert {text: index.count(no, parse(text)) for text in found} == {text: len(ids) for text, ids in found.items()}

    @pytest.mark.needs_server
    @AS_THE_EVALUATOR
    @given(
        case=st.tuples(query_corpus.records(), query_corpus.queries) | query_corpus.rows_with_one_key(),
        declared=st.sampled_from(query_corpus.DECLARED),
        further=st.sampled_from(query_corpus.SORTED),
        page=st.integers(1, 4),
    )
    def test_rows_pages_and_counts_are_those_of_the_evaluator(
        self, index: MetadataIndex, case: tuple[list[Record], Query], declared: list[str], further: list[str], page: int
    ) -> None:
        rows, query = case
        to = ref(f"s{len(index.streams(limit=10_000))}")
        index.set_stream_meta(to, "{}")
        no = number(index, to)
        index.declare_keys(declared)
        index.declare_sorted_keys(further)
        index.commit(query_corpus.units(rows, to))
        if further:
            index.finish_stream(to, max((row.id for row in rows), default=0), "")
            index.sort_finished(to)
        expected = [(record.id, record.substream) for record in select(query, rows)]
        assert [(row[0], row[2]) for row in index.query(no, query)] == expected
        assert index.count(no, query) == len(expected)
        unlimited = Query(query.where, query.order)
        everything = [(record.id, record.substream) for record in select(unlimited, rows)]
        found: list[Any] = []
        while part := index.query(no, unlimited, row_limit=page, after=found[-1][1] if found else 0):
            found += part
        assert [(row[0], row[2]) for row in found] == everything
        explained = index.explain(no, query)
        assert explained.rows_total == len(rows)
        assert len(everything) <= explained.rows <= len(rows)

    def test_pages_go_on_exactly_where_they_ended_while_messages_arrive(self, index: MetadataIndex) -> None:
        def send(**scores: Any) -> None:
            ids = [int(name[1:]) for name in scores]
            index.commit([unit(ids, metas=[json.dumps({"score": score}) for score in scores.values()])])

        send(_2=1, _4=2, _6=1, _8=2)
        no = number(index)
        first = index.query(no, Query(), row_limit=2)
        assert ids_of(first) == [2, 4]
        send(_3=1, _7=2)  # one on each side of the place
        assert ids_of(index.query(no, Query(), after=first[-1][1])) == [6, 7, 8]

        by_score = Query(None, (Order(MetaKey(("score",)), True),))
        first = index.query(no, by_score, row_limit=2)
        assert ids_of(first) == [4, 7]
        send(_1=3, _9=2, _5="x", _10=None)
        assert ids_of(index.query(no, by_score, after=first[-1][1])) == [8, 9, 2, 3, 6, 5, 10]

    def test_a_row_that_is_not_there_cannot_be_gone_on_after(self, index: MetadataIndex) -> None:
        index.commit([unit([1])])
        for after in (2, 2**40, -1):
            with pytest.raises(WrongInput, match="arrival number"):
                index.query(number(index), Query(), after=after)

    def test_a_query_on_an_unknown_stream_finds_nothing(self, index: MetadataIndex) -> None:
        assert index.query(5, Query()) == []
        assert index.count(5, Query()) == 0
        assert index.explain(5, Query()).rows == 0

    def test_too_many_or_odd_declared_keys_are_refused(self, index: MetadataIndex) -> None:
        index.declare_keys(["a"])
        for keys in (["a", "b", "c"], ["a.."], [""], ['x"y']):
            with pytest.raises(WrongInput):
                index.declare_keys(keys)
        assert index.declared_keys() == ["a"]
        index.declare_keys(["meta.b"])
        assert index.declared_keys() == ["b"]
        index.declare_sorted_keys(["a", "meta.c.d"])
        for keys in (list("abcdefg"), ["a.."], [""], ['x"y']):
            with pytest.raises(WrongInput):
                index.declare_sorted_keys(keys)
        assert index.sorted_keys() == ["a", "c.d"]
        assert index.declared_keys() == ["b"]
        index.declare_sorted_keys([])
        assert index.sorted_keys() == []
