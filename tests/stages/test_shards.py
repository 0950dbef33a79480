"""What status says of a stage that is made in shards."""

from __future__ import annotations

from pathlib import Path

from codetune.run_status import run_status
from codetune.stages.dataset import ensure_examples
from codetune.stages.stage import RunContext
from codetune.store.locks import locked
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows


def test_status_names_the_shards_that_are_done_running_dead_and_not_begun(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 20), embed__batch_size=2)
    pipeline.embed(context, (0, 4))
    done = pipeline.embed(context, (1, 4)).rows
    (context.run.parts(context.run.embeddings) / "1-of-4.done").unlink()  # as if it was killed before its end
    with locked(context.run, "embed", (2, 4)):
        detail, command = _embed_line(context)
    assert detail.startswith(f"{done} of 20 rows; shards of 4: 1 done (0), 1 dead (1), 1 running (2), 1 not begun (3);")
    assert command == "codetune embed --shard 1/4"
    for index in (1, 2):
        pipeline.embed(context, (index, 4))
    assert _embed_line(context)[1] == "codetune embed --shard 3/4"
    assert pipeline.embed(context, (3, 4)).state == "done"
    assert not context.run.parts(context.run.embeddings).exists()
    assert _embed_line(context) == ("20 rows", "codetune embed")


def test_a_shard_is_not_done_any_more_when_rows_are_added(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 20), embed__batch_size=2)
    pipeline.embed(context, (0, 2))
    write_rows(tmp_path / "data.jsonl", rows(30))
    ensure_examples(context)
    assert _embed_line(context)[0].endswith("of 30 rows; shards of 2: 1 dead (0), 1 not begun (1)")


def test_the_processes_of_a_plain_command_are_no_shards(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 20), embed__batch_size=2)
    pipeline.embed(context, (0, 2))
    for path in (context.run.directory / ".locks").glob("embed-*"):
        path.unlink()
    detail, command = _embed_line(context)
    assert ("shards" in detail, command) == (False, "codetune embed")


def _embed_line(context: RunContext) -> tuple[str, str]:
    line = next(line for line in run_status(context) if line.stage == "embed")
    return line.detail, line.command
