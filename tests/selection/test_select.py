"""The published rule, by hand and by its properties; the controls; the diagnostics."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.errors import StaleError
from codetune.project import Selection
from codetune.records import Pick
from codetune.selection.select import NEEDS, STRATEGIES, Candidate, ClusterDiagnostics, select


def row(name: str, ifd: float | None, cluster: int | None, refused: bool = False) -> Candidate:
    return Candidate(name, ifd, refused, cluster)


ROWS = [
    row("a", 0.9, 0),
    row("b", 0.5, 0),
    row("c", 1.0, 0),  # at the limit: dropped
    row("d", 0.7, 0),
    row("e", 0.7, 0),  # a tie with d
    row("f", 0.2, 1),
    row("g", 0.3, 1),
    row("h", None, 1, refused=True),
]


def test_each_cluster_gives_its_hardest_rows_below_the_limit() -> None:
    # Cluster 0: a .9, d .7, e .7, b .5 eligible, floor(4 * 0.5) = 2. Cluster 1: g, f eligible, floor(2 * 0.5) = 1.
    selected = select(ROWS, Selection(ratio=0.5), 42)
    assert selected.picks == (Pick("a", 0.9, 0), Pick("d", 0.7, 0), Pick("g", 0.3, 1))
    assert selected.diagnostics == (
        ClusterDiagnostics(0, 5, 0, 1, 4, 2, (0.5, 0.7, 0.7, 0.9, 1.0)),
        ClusterDiagnostics(1, 3, 1, 0, 2, 1, (0.2, pytest.approx(0.225), 0.25, pytest.approx(0.275), 0.3)),
    )


def test_the_share_can_be_of_all_rows_but_never_more_than_are_eligible() -> None:
    # Cluster 0: floor(5 * 0.8) = 4 of 4. Cluster 1: floor(3 * 0.8) = 2 of 2.
    picks = select(ROWS, Selection(ratio=0.8, ratio_of="all"), 42).picks
    assert [pick.id for pick in picks] == ["a", "d", "e", "b", "g", "f"]
    assert len(select(ROWS, Selection(ratio=1.0, ratio_of="all"), 42).picks) == 6


def test_the_quota_is_the_published_floor_in_double_precision() -> None:
    rows = [row(f"{number:03}", 0.5, 0) for number in range(100)]
    assert len(select(rows, Selection(ratio=0.29), 42).picks) == 28


def test_the_limit_can_be_moved() -> None:
    picks = select(ROWS, Selection(ratio=1.0, max_ifd=0.7), 42).picks
    assert [pick.id for pick in picks] == ["b", "g", "f"]


@given(
    st.lists(st.tuples(st.floats(0.01, 2), st.integers(0, 3), st.booleans()), max_size=60),
    st.floats(0.01, 1),
    st.integers(0, 9),
)
def test_the_rule_holds_for_any_rows_in_any_order(
    values: list[tuple[float, int, bool]], ratio: float, shuffle: int
) -> None:
    rows = [
        row(f"{number:03}", None if refused else ifd, cluster, refused)
        for number, (ifd, cluster, refused) in enumerate(values)
    ]
    selected = select(rows, Selection(ratio=ratio), 42)
    shuffled = random.Random(shuffle).sample(rows, len(rows))
    assert select(shuffled, Selection(ratio=ratio), 42) == selected
    taken = Counter(pick.cluster for pick in selected.picks)
    picked = {pick.id for pick in selected.picks}
    for cluster in range(4):
        eligible = [r for r in rows if r.cluster == cluster and not r.refused and r.ifd is not None and r.ifd < 1]
        assert taken[cluster] == math.floor(len(eligible) * ratio)
        left = [r.ifd for r in eligible if r.id not in picked]
        assert max(left, default=0) <= min((r.ifd for r in eligible if r.id in picked), default=9)
    for part in selected.diagnostics:
        assert part.rows == part.refused + part.dropped + part.eligible


def test_a_random_draw_follows_from_the_seed_and_a_larger_one_holds_it() -> None:
    rows = [row(f"{number:03}", None, None) for number in range(200)]
    small, again, large, other = (
        {pick.id for pick in select(drawn, Selection(strategy="random", ratio=ratio), seed).picks}
        for drawn, ratio, seed in ((rows, 0.2, 1), (rows[::-1], 0.2, 1), (rows, 0.5, 1), (rows, 0.2, 2))
    )
    assert small == again
    assert len(small) == 40
    assert small < large
    assert small != other


def test_a_random_draw_favours_nobody() -> None:
    rows = [row(f"{number:03}", None, None) for number in range(100)]
    draws = Counter(
        pick.id for seed in range(400) for pick in select(rows, Selection(strategy="random", ratio=0.5), seed).picks
    )
    # 400 draws of a half: 200 each, with a standard deviation of 10
    assert len(draws) == 100
    assert all(150 < count < 250 for count in draws.values())


def test_all_takes_every_row_and_knows_no_more_than_it_was_told() -> None:
    rows = [row("b", None, None), row("a", None, None)]
    selected = select(rows, Selection(strategy="all", ratio=0.1), 42)
    assert selected.picks == (Pick("a", None, None), Pick("b", None, None))
    assert selected.diagnostics == (ClusterDiagnostics(None, 2, 0, 0, 2, 2, None),)


@pytest.mark.parametrize(
    ("missing", "command"), [(row("x", None, 0), "codetune score"), (row("x", 0.5, None), "codetune embed")]
)
def test_a_row_without_a_score_or_a_cluster_stops_the_selection(missing: Candidate, command: str) -> None:
    with pytest.raises(StaleError, match=rf"Row x of the data set has no result .*Run: {command}"):
        select([*ROWS, missing], Selection(), 42)


def test_no_rows_give_no_picks() -> None:
    assert select([], Selection(), 42).picks == ()


def test_every_strategy_says_what_it_needs() -> None:
    assert NEEDS.keys() == STRATEGIES.keys()
