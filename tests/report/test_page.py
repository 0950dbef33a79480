"""The page of a small world: its figures are those of the artefacts, what is missing is told, and texts stay texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any, cast

import pytest

from codetune.benchmark.evaluate import compare, evaluate
from codetune.benchmark.likelihood import report_likelihood
from codetune.data.ids import unpack_id
from codetune.errors import InputError, StaleError
from codetune.project.file import read_project
from codetune.records import Outcome, Problem, Score, Verdict
from codetune.report import page_rows
from codetune.report.page import embedded_json, make_report, page_text
from codetune.report.page_document import page_document
from codetune.report.page_sweep import page_sweep
from codetune.stages.runner import read_context
from codetune.stages.stage import RunContext
from codetune.store.manifest import Manifest, read_manifest, write_manifest
from codetune.store.row_artefacts import read_embeddings, read_scores, read_selection
from tests import pipeline
from tests.chromium import BrowserPage, needs_chromium, opened
from tests.report.test_page_sweep import VARIANTS
from tests.small_world import context_of, make_small_world, rows, write_rows

MAP_COLUMNS = ("id", "x", "y", "state")
HOSTILE = "</script><script>alert(1)</script><!-- <img src=https://example.org/x onerror=alert(1)> \u2028"
ADDRESS = re.compile(r"""(?:src|href|action|data|poster)\s*=\s*["']?(?!#)\w+:|url\(|@import|//[a-z]+\.[a-z]""")


def test_the_figures_of_the_selection_are_those_of_its_artefacts(tmp_path: Path) -> None:
    context = selected(tmp_path)
    document = written_document(context)
    report = json.loads(context.run.selection_report.read_text(encoding="utf-8"))
    drawn = report.pop("map")
    found, shown = document["selection"], document["selection"]["rows"]
    assert found["report"] == report
    assert [shown[name] for name in MAP_COLUMNS] == [drawn[name] for name in MAP_COLUMNS]
    taken = {row.id for row in read_selection(context.run.selection)}
    is_taken = [state == shown["states"].index("taken") for state in shown["state"]]
    assert set(compress(shown["id"], is_taken)) == taken
    assert sum(shown["random"]) == report["taken"]
    scores = {row.id: row.answer_tokens for row in read_scores(context.run) if isinstance(row, Score)}
    assert dict(zip(shown["id"], shown["tokens"], strict=True)) == scores
    digests = {manifest["name"]: manifest["digest"] for manifest in document["provenance"]["manifests"]}
    manifest = read_manifest(context.run.selection)
    assert manifest
    assert digests["selection.jsonl"] == manifest.digest


def test_the_figures_of_training_and_benchmarks_are_those_of_their_artefacts(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path))
    lines = [{"step": 10 * n, "loss": 1 / n, "holdout_loss": None, "tokens_per_second": 5.0} for n in (1, 2)]
    context.run.train.mkdir()
    write_rows(context.run.train / "metrics.jsonl", lines)
    context.run.model.mkdir()
    write_manifest(context.run.model, Manifest("train", "", 2, {}, {}, {}, {}, 0.0, {"steps": 20, "nested": {}}))
    reports = [judged(context, "base", ("pass", "fail")), judged(context, "tuned", ("fail", "pass"))]
    losses = {"a" * 16: (2.0, 4), "b" * 16: (3.0, 4)}
    for label in ("base", "tuned"):
        seal_document(context, context.run.evaluation("holdout", label), report_likelihood(label, losses, {}, 1))
    document = written_document(context)
    assert (document["training"]["lines"], document["training"]["facts"]) == (lines, {"steps": 20})
    (found,) = document["benchmarks"]["found"]
    assert found["reports"] == reports
    assert found["comparisons"] == json.loads(json.dumps(compare(cast("list[Any]", reports), context.project.seed)))
    assert found["tasks"] == ["T/1", "T/0"]  # won, then lost
    assert found["programs"] == {label: {"T/0": [HOSTILE, 0], "T/1": [label, 0]} for label in ("base", "tuned")}
    nats = [report["nats_per_token"] for report in document["likelihood"]["reports"]]
    assert (nats, document["likelihood"]["comparisons"][0]["difference"]) == ([5 / 8, 5 / 8], 0)
    shown = make_report(context, tmp_path / "figures")
    told = shown.document
    assert told["left_out"] == [document["selection"]["missing"]]
    assert shown.asides == [f"left out: {document['selection']['missing']}"]
    drawn = [path.name for path in map(Path, cast("list[str]", told["figures"]))]
    assert drawn == [f"{name}.{kind}" for name in ("loss", "speed", "pass-tasks") for kind in ("png", "svg")]


def test_a_row_has_its_text_and_the_reason_of_the_selection(tmp_path: Path) -> None:
    context = selected(tmp_path)
    found = page_document(context)["selection"]["rows"]
    lines = context.run.selection.read_text(encoding="utf-8").splitlines()
    reasons = {row["id"]: row["why"] for row in map(json.loads, lines)}
    shown = dict(zip(found["id"], found["why"], strict=True))
    assert shown.items() >= reasons.items()
    assert set(shown.values()) - set(reasons.values()) == {"not taken"}
    first = next(iter(read_selection(context.run.selection)))
    assert found["texts"][first.id] == [(first.instruction, 0), (first.answer, 0)]


def test_a_row_has_its_nearest_rows_by_the_embeddings(tmp_path: Path) -> None:
    context = selected(tmp_path)
    found = page_document(context)["selection"]["rows"]
    embeddings = read_embeddings(context.run)
    at = {unpack_id(number): place for place, number in enumerate(embeddings.ids.tolist())}
    for row_id, nearest in found["neighbours"].items():
        cosines = embeddings.vectors @ embeddings.vectors[at[row_id]]
        others = sorted((cosines[place] for other, place in at.items() if other != row_id), reverse=True)
        assert [cosine for _, cosine in nearest] == pytest.approx(others[:3], abs=1e-4)
        assert all(cosines[at[found["id"][index]]] == pytest.approx(cosine, abs=1e-4) for index, cosine in nearest)


def test_what_is_not_made_yet_is_a_sentence_with_its_command(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    pipeline.score(context_of(project))
    document = written_document(context_of(project))
    parts = ("selection", "training", "benchmarks", "likelihood")
    assert all("so this part is left out. Run: codetune" in document[part]["missing"] for part in parts)
    assert document["likelihood"]["missing"].endswith("Run: codetune run --set name=NEW --set train.holdout=0.1")
    held_out = written_document(context_of(project, train__holdout=2))
    assert held_out["likelihood"]["missing"].endswith("Run: codetune eval holdout")
    assert [manifest["name"] for manifest in document["provenance"]["manifests"]] == ["examples.jsonl", "scores.jsonl"]


def test_a_run_that_has_not_begun_has_no_page(tmp_path: Path) -> None:
    project = read_project(make_small_world(tmp_path), [], {})
    with pytest.raises(InputError, match="has no artefacts yet"):
        make_report(read_context(project))
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_on_the_page_of_its_project_even_where_nothing_else_was_run(tmp_path: Path) -> None:
    context = read_context(read_project(make_small_world(tmp_path), [], {}))
    context.run.sweep.mkdir(parents=True)
    table = context.run.sweep / "sweep.json"
    table.write_text(json.dumps({"variants": VARIANTS}), encoding="utf-8")
    document = written_document(context)
    assert document["sweep"] == json.loads(json.dumps(page_sweep(VARIANTS)))
    assert "missing" in document["selection"]
    for damage in (b"{}", b"{", b"\xff"):
        table.write_bytes(damage)
        with pytest.raises(StaleError, match=r"sweep\.json is damaged .* && codetune sweep"):
            make_report(context)


def test_a_selection_without_scores_and_embeddings_has_rows_and_no_map(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path), select__strategy="random")
    pipeline.select(context)
    found = page_document(context)["selection"]["rows"]
    assert (found["x"], found["tokens"], len(found["id"])) == (None, None, 60)
    taken = [state == found["states"].index("taken") for state in found["state"]]
    assert list(map(bool, found["random"])) == taken  # the same seed draws the same rows


def test_several_data_sets_are_counted_by_name(tmp_path: Path) -> None:
    parts = [{"name": name, "path": "data.jsonl"} for name in ("first", "again")]
    context = context_of(make_small_world(tmp_path, 8), dataset=parts, select__strategy="all")
    pipeline.select(context)
    assert page_document(context)["selection"]["data_sets"] == [
        "first: 8 rows, 0 refused; 8 taken",
        "again: 0 rows, 8 refused, 8 duplicates of first; 0 taken",
    ]


def test_large_sets_are_thinned_and_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(make_small_world(tmp_path), select__strategy="random")
    pipeline.select(context)
    monkeypatch.setattr(page_rows, "MAP_ROWS", 20)
    monkeypatch.setattr(page_rows, "ANSWER_CHARACTERS", 10)
    every = page_document(context)["selection"]["rows"]["texts"]
    assert len(every) == 20
    monkeypatch.setattr(page_rows, "TEXT_CHARACTERS", sum(len(text) for row in every.values() for text, _ in row) // 4)
    found = page_document(context)["selection"]["rows"]
    assert (found["of_rows"], len(found["id"]), len(found["texts"])) == (60, 20, 5)
    assert all(len(answer) == 10 and more > 0 for _, (answer, more) in found["texts"].values())


@pytest.mark.parametrize(("trained", "epochs"), [(None, 2), (0.5, 0.5)])
def test_the_cost_that_is_saved_is_that_of_the_training_of_this_run(
    tmp_path: Path, trained: float | None, epochs: float
) -> None:
    context = context_of(make_small_world(tmp_path, 20), train__epochs=2, select__clusters=1)
    pipeline.score(context)
    pipeline.embed(context)
    pipeline.select(context)
    context.run.train.mkdir()
    write_rows(context.run.train / "metrics.jsonl", [{"step": 1, "epoch": trained or 0.1}])
    if trained:
        context.run.model.mkdir()
        write_manifest(context.run.model, Manifest("train", "", 2, {}, {}, {}, {}, 0.0))
    found = page_document(context)["selection"]
    flops = found["report"]["cost"]["flops_per_weight"]
    spent = flops["scoring"] + epochs * flops["training_epoch_on_selection"]
    share = pytest.approx(1 - spent / (epochs * flops["training_epoch_on_all"]))
    assert found["saved"] == {"epochs": epochs, "share": share}


def test_a_text_of_a_row_never_ends_the_element_that_holds_it(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    hostile = [{"instruction": f"{HOSTILE} {n}", "output": HOSTILE} for n in range(9)]
    write_rows(tmp_path / "data.jsonl", hostile + rows(9))
    context = context_of(project, select__strategy="random", select__ratio=1.0)
    pipeline.select(context)
    document = written_document(context)
    assert HOSTILE in {text for _, (text, _) in document["selection"]["rows"]["texts"].values()}


def test_the_page_names_no_address_to_load_from(tmp_path: Path) -> None:
    text = page_text({"project": {"name": HOSTILE}})
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert "<title>&lt;/script&gt;" in outside
    assert not ADDRESS.findall(outside.replace("https://example.org", ""))
    assert "default-src 'none'" in outside
    assert "innerHTML" not in outside
    assert "eval(" not in outside


def test_half_a_surrogate_pair_is_written_as_json_escapes_it() -> None:
    text = embedded_json({"name": "\udc80<é"})
    assert json.loads(text.encode().decode()) == {"name": "\udc80<é"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("selection.jsonl", r"selection\.jsonl was changed after codetune wrote it"),
        ("selection.report.json", r"selection\.jsonl was changed after codetune wrote it"),
        ("examples.jsonl", r"examples\.jsonl was changed after codetune wrote it"),
        ("selection.excluded.jsonl", r"selection\.excluded\.jsonl is damaged"),
    ],
)
def test_a_damaged_artefact_is_told_with_its_remedy(name: str, told: str, tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path), select__strategy="random")
    pipeline.select(context)
    (context.run.directory / name).write_text("{\n", encoding="utf-8")
    with pytest.raises(StaleError, match=rf"{told}.* Make it again: mv .*seal\.old && codetune run"):
        make_report(context)


def test_a_training_that_was_killed_shows_its_whole_lines(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path))
    context.run.train.mkdir()
    metrics = context.run.train / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo', encoding="utf-8")
    training = page_document(context)["training"]
    assert (training["lines"], training["is_finished"]) == ([{"step": 1, "loss": None}], False)


@needs_chromium
def test_a_browser_draws_the_page_without_an_error_and_runs_no_text_of_a_row(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    write_rows(tmp_path / "data.jsonl", [{"instruction": HOSTILE, "output": HOSTILE}, *rows(9)])
    context = context_of(project, select__strategy="random", select__ratio=1.0)
    pipeline.select(context)
    context.run.sweep.mkdir()
    difference = {"mean": -0.1, "low": -0.2, "high": -0.0001, "told_apart": True}
    worse = dict.fromkeys(VARIANTS[0]["figures"], difference)
    variants = [{**VARIANTS[0], "tokens": 320_926.5, "against": {"all": worse}}, *VARIANTS[1:]]
    (context.run.sweep / "sweep.json").write_text(json.dumps({"variants": variants}), encoding="utf-8")
    make_report(context)
    with opened(context.run.report, tmp_path / "profile") as page:
        shown = page.value("document.body.innerText")
        assert page.value("document.querySelectorAll('script').length") == 2
    assert not page.complaints
    assert "All 10 rows of this page" in shown
    assert "By sampling rate (select.ratio)" in shown
    assert re.search(r"ifd-0\.4\t9\t320,926\t", shown)  # a half goes to the even number, as in the terminal
    assert "-10.0 points (-20.0 to +0.0)" in shown


@needs_chromium
def test_what_a_mouse_or_a_finger_drags_over_is_listed(tmp_path: Path) -> None:
    context = selected(tmp_path)
    make_report(context)
    scores = {row.id: row for row in read_scores(context.run) if isinstance(row, Score)}
    report = json.loads(context.run.selection_report.read_text(encoding="utf-8"))
    edges, drawn = report["histograms"]["ifd"]["edges"], report["map"]
    with opened(context.run.report, tmp_path / "profile", width=390, has_touch=True) as page:
        for by_finger in (False, True):
            page.drag("svg.brush", (0.3, 0.5), (0.6, 0.5), by_finger=by_finger)
            low, high = (on_axis(share, edges[0], edges[-1]) for share in (0.3, 0.6))
            assert listed(page) == {row_id for row_id, row in scores.items() if low <= row.ifd <= high} != set()
            page.value("document.getElementById('clear').click()")
            assert listed(page) == set(scores)
        page.drag("canvas.brush", (0.01, 0.01), (0.5, 0.99))
        width = page.value("document.querySelector('canvas.brush').clientWidth")
        left = min(drawn["x"]) + (width / 2 - 10) / (width - 20) * (max(drawn["x"]) - min(drawn["x"]))
        on_map = {row_id for row_id, x in zip(drawn["id"], drawn["x"], strict=True) if x <= left}
        assert listed(page) == on_map != set()
        page.drag("svg.brush", (0.3, 0.5), (0.6, 0.5))
        assert listed(page) == {row_id for row_id in on_map if low <= scores[row_id].ifd <= high}
    assert not page.complaints


def on_axis(share: float, low: float, high: float) -> float:
    """The value at a share of the width of a histogram, which is 560 wide, 46 of them left of its axis and 20 right."""
    return low + (share * 560 - 46) / (560 - 46 - 20) * (high - low)


def listed(page: BrowserPage) -> set[str]:
    """The ids of the rows that the page lists; their number stands above them."""
    ids = page.value(
        "for (let more; (more = document.querySelector('button.more')); ) more.click();"
        "[...document.querySelectorAll('td button.link[aria-expanded]')].map((each) => each.textContent)"
    )
    assert f"{len(ids)} rows of this page" in page.value("document.body.innerText")
    return set(ids)


def selected(directory: Path) -> RunContext:
    context = context_of(make_small_world(directory))
    for stage in (pipeline.score, pipeline.embed, pipeline.select):
        stage(context)
    return context


def judged(context: RunContext, label: str, outcomes: tuple[Outcome, Outcome]) -> dict[str, Any]:
    """A finished evaluation of two tasks."""
    problems = [Problem(f"T/{n}", "", "f", "", [], [], 0.0) for n in (0, 1)]
    verdicts = [Verdict(f"T/{n}", outcome, outcome) for n, outcome in enumerate(outcomes)]
    report: dict[str, Any] = json.loads(json.dumps(evaluate("tasks", label, "namespaces", problems, verdicts, [1], 1)))
    seal_document(context, context.run.evaluation("tasks", label), report)
    solutions = context.run.solutions("tasks", label)
    solutions.parent.mkdir(parents=True, exist_ok=True)
    write_rows(solutions, [{"task_id": "T/0", "solution": HOSTILE}, {"task_id": "T/1", "solution": label}])
    seal(context, solutions)
    return report


def seal_document(context: RunContext, path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    seal(context, path)


def seal(context: RunContext, path: Path) -> None:
    write_manifest(path, Manifest("evaluate", context.digests.artefact(path), 2, {}, {}, {}, {}, 0.0))


def written_document(context: RunContext) -> dict[str, Any]:
    """The document in the page that was written, as a browser finds it."""
    make_report(context)
    text = context.run.report.read_text(encoding="utf-8")
    assert text.lower().count("</script") == 2
    begin, end = '<script type="application/json" id="document">', "</script>"
    found: dict[str, Any] = json.loads(text.partition(begin)[2].partition(end)[0])
    return found
