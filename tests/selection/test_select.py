"""The published rule, by hand and by its properties; the controls; the diagnostics."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.errors import DataError
from codetune.project.sections import Selection, Strategy
from codetune.records import SelectedRows
from codetune.selection.row_vectors import RowIndices, RowVectors
from codetune.selection.select import ClusterDiagnostics, SelectionResult, require_selected_rows, select, why_taken
from codetune.selection.strategies import STRATEGIES, Candidates, SelectionInputs, SelectionStrategy


class Row(NamedTuple):
    id: int
    ifd: float | None
    cluster: int | None


def row(name: str, ifd: float | None, cluster: int | None) -> Row:
    """A row with a letter for a name; one without an IFD was refused, where the others have one."""
    return Row(ord(name), ifd, cluster)


def columns(rows: list[Row]) -> SelectionInputs:
    rows = sorted(rows)
    has_scores, has_clusters = any(row.ifd is not None for row in rows), any(row.cluster is not None for row in rows)
    return SelectionInputs(
        np.array([row.id for row in rows], dtype=np.uint64),
        np.array([math.nan if row.ifd is None else row.ifd for row in rows]) if has_scores else None,
        np.array([row.cluster for row in rows], dtype=np.int32) if has_clusters else None,
    )


def names(selected: SelectedRows) -> str:
    return "".join(map(chr, selected.ids.tolist()))


def select_from(rows: list[Row], settings: Selection, seed: int = 42) -> SelectionResult:
    return select(columns(rows), settings, seed)


ROWS = [
    row("a", 0.9, 0),
    row("b", 0.5, 0),
    row("c", 1.0, 0),  # at the limit: dropped
    row("d", 0.7, 0),
    row("e", 0.7, 0),  # a tie with d
    row("f", 0.2, 1),
    row("g", 0.3, 1),
    row("h", None, 1),  # refused
]


def test_each_cluster_gives_its_hardest_rows_below_the_limit() -> None:
    # Cluster 0: a .9, d .7, e .7, b .5 eligible, floor(4 * 0.5) = 2. Cluster 1: g, f eligible, floor(2 * 0.5) = 1.
    result = select_from(ROWS, Selection(ratio=0.5))
    assert names(result.rows) == "adg"
    assert (result.rows.ifd.tolist(), result.rows.cluster.tolist()) == ([0.9, 0.7, 0.3], [0, 0, 1])
    assert result.diagnostics == (
        ClusterDiagnostics(0, 5, 0, 0, 1, 4, 2, (0.5, 0.7, 0.7, 0.9, 1.0)),
        ClusterDiagnostics(1, 3, 1, 0, 0, 2, 1, (0.2, pytest.approx(0.225), 0.25, pytest.approx(0.275), 0.3)),
    )


def test_the_share_can_be_of_all_rows_but_never_more_than_are_eligible() -> None:
    # Cluster 0: floor(5 * 0.8) = 4 of 4. Cluster 1: floor(3 * 0.8) = 2 of 2.
    assert names(select_from(ROWS, Selection(ratio=0.8, ratio_of="all")).rows) == "adebgf"
    assert len(select_from(ROWS, Selection(ratio=1.0, ratio_of="all")).rows.ids) == 6


def test_the_quota_is_the_published_floor_in_double_precision() -> None:
    rows = [Row(number, 0.5, 0) for number in range(100)]
    assert len(select_from(rows, Selection(ratio=0.29)).rows.ids) == 28


def test_the_limit_can_be_moved() -> None:
    assert names(select_from(ROWS, Selection(ratio=1.0, max_ifd=0.7)).rows) == "bgf"


@given(st.lists(st.tuples(st.floats(0.01, 2), st.integers(0, 3), st.booleans()), max_size=60), st.floats(0.01, 1))
def test_the_rule_holds_for_any_rows(values: list[tuple[float, int, bool]], ratio: float) -> None:
    rows = [Row(number, None if refused else ifd, cluster) for number, (ifd, cluster, refused) in enumerate(values)] + [
        Row(1000, 1.5, 0)
    ]  # so that there are scores, and this one is never taken
    result = select_from(rows, Selection(ratio=ratio))
    taken, chosen = Counter(result.rows.cluster.tolist()), set(result.rows.ids.tolist())
    for cluster in range(4):
        eligible = [r for r in rows if r.cluster == cluster and r.ifd is not None and r.ifd < 1]
        assert taken[cluster] == math.floor(len(eligible) * ratio)
        left = [r.ifd for r in eligible if r.id not in chosen]
        assert max(left, default=0) <= min((r.ifd for r in eligible if r.id in chosen), default=9)
    for part in result.diagnostics:
        assert part.rows == part.refused + part.filtered + part.dropped + part.eligible
        assert part.taken == taken[part.cluster]


def test_a_random_draw_follows_from_the_seed_and_a_larger_one_holds_it() -> None:
    rows = [Row(number, None, None) for number in range(200)]
    small, again, large, other = (
        set(select_from(rows, Selection(strategy="random", ratio=ratio), seed).rows.ids.tolist())
        for ratio, seed in ((0.2, 1), (0.2, 1), (0.5, 1), (0.2, 2))
    )
    assert small == again
    assert len(small) == 40
    assert small < large
    assert small != other


def test_rows_added_later_move_none_of_a_random_draw() -> None:
    # A draw of half of a third more rows takes those of the others that it took before, as far as there is room.
    few, many = ([Row(number, None, None) for number in range(count)] for count in (60, 90))
    before, after = (
        set(select_from(rows, Selection(strategy="random", ratio=0.5)).rows.ids.tolist()) for rows in (few, many)
    )
    assert before <= after or after - {*range(60, 90)} <= before


def test_a_random_draw_favours_no_row() -> None:
    rows = [Row(number, None, None) for number in range(100)]
    draws = Counter(
        number
        for seed in range(400)
        for number in select_from(rows, Selection(strategy="random", ratio=0.5), seed).rows.ids.tolist()
    )
    # 400 draws of a half: 200 each, with a standard deviation of 10
    assert len(draws) == 100
    assert all(150 < count < 250 for count in draws.values())


def test_all_takes_every_row_and_knows_no_more_than_it_was_told() -> None:
    rows = [row("b", None, None), row("a", None, None)]
    result = select_from(rows, Selection(strategy="all", ratio=0.1))
    assert names(result.rows) == "ab"
    assert (result.rows.ifd, result.rows.cluster) == (None, None)
    assert result.diagnostics == (ClusterDiagnostics(None, 2, 0, 0, 0, 2, 2, None),)


def test_an_empty_draw_is_not_explained_by_scores_that_do_not_exist() -> None:
    settings = Selection(strategy="random", ratio=0.1)
    with pytest.raises(
        DataError, match=r"^No row is selected of 2: .*of the other 2 the ratio 0\.1 takes none\. .*select\.ratio$"
    ):
        require_selected_rows(select_from([row("a", None, None), row("b", None, None)], settings), settings)


def test_where_no_row_may_be_taken_nobody_is_told_to_raise_the_ratio() -> None:
    settings = Selection(strategy="random", ratio=1.0)
    inputs = SelectionInputs(np.arange(2, dtype=np.uint64), None, None, filtered=np.array([True, True]))
    with pytest.raises(DataError, match=r"of 2: 2 repeat others.*may be taken.*select\.checks$"):
        require_selected_rows(select(inputs, settings, 42), settings)


@pytest.mark.parametrize(("count", "taken"), [(1, "a"), (4, "adeg"), (6, "adebgf")])
def test_a_count_is_taken_exactly_and_shared_by_the_clusters(count: int, taken: str) -> None:
    # Of 4 and 2 eligible rows, seats come at (s + 1/2) / size: 1/8 a, 1/4 g, 3/8 d, 5/8 e, 3/4 f, 7/8 b.
    assert names(select_from(ROWS, Selection(count=count)).rows) == taken


def test_a_count_above_what_is_eligible_is_refused() -> None:
    with pytest.raises(DataError, match=r"select\.count is 7, and 6 of 8 rows are eligible.*Expected: at most 6"):
        select_from(ROWS, Selection(count=7))


def test_no_rows_give_an_empty_selection() -> None:
    empty = SelectionInputs(np.empty(0, np.uint64), np.empty(0), np.empty(0, np.int32))
    assert len(select(empty, Selection(), 42).rows.ids) == 0
    assert len(select_from([], Selection(strategy="all")).rows.ids) == 0


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        ("ifd_cluster", ["IFD 0.9000, rank 1 of 4 in cluster 0", "IFD 0.7000, rank 2 of 4 in cluster 0"]),
        ("ifd", ["IFD 0.9000, rank 1 of 6 rows", "IFD 0.7000, rank 2 of 6 rows", "IFD 0.7000, rank 2 of 6 rows"]),
        ("length", ["answer tokens 2,000, rank 2 of 6 rows", "answer tokens 3,000, rank 1 of 6 rows"]),
        ("kcenter", ["one of 4 taken of 5 in cluster 0"] * 4),
        ("random", ["one of 4 taken of 8 rows"] * 4),
    ],
)
def test_a_row_that_was_taken_says_why_in_numbers(strategy: Strategy, why: list[str]) -> None:
    every = columns(ROWS)
    tokens = np.array([100.0, 200, 300, 2000, 400, 500, 3000, np.nan])
    has_scores, has_clusters = STRATEGIES[strategy].needs_scores, STRATEGIES[strategy].needs_embeddings
    vectors = RowVectors(np.eye(8, dtype=np.float32), np.arange(8))
    inputs = SelectionInputs(
        every.ids,
        every.ifd if has_scores else None,
        every.cluster if has_clusters else None,
        answer_tokens=tokens,
        vectors=vectors,
    )
    settings = Selection(strategy=strategy, ratio=0.5)
    assert list(why_taken(inputs, select(inputs, settings, 42), settings))[: len(why)] == why


def test_diagnostics_are_plain_numbers_that_json_takes() -> None:
    for part in select_from(ROWS, Selection()).diagnostics:
        assert part.pmi_quantiles is None  # no row has a pmi
        assert {type(value) for name, value in asdict(part).items() if name != "pmi_quantiles"} == {int, tuple}
        assert {type(value) for value in part.ifd_quantiles} == {float}


def test_a_new_strategy_is_one_more_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def easiest_row(candidates: Candidates) -> RowIndices:
        assert candidates.inputs.ifd is not None
        return candidates.eligible[[np.argmin(candidates.inputs.ifd[candidates.eligible])]]

    easiest = SelectionStrategy("ifd", "the easiest row", needs_scores=True, needs_embeddings=False, choose=easiest_row)
    monkeypatch.setitem(STRATEGIES, "ifd", easiest)
    result = select_from(ROWS, Selection(strategy="ifd"))
    assert names(result.rows) == "f"
    assert [(part.dropped, part.taken) for part in result.diagnostics] == [(1, 0), (0, 1)]
