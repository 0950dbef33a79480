"""A selection in other trainers (codetune/docs/other-trainers.md): each reads it as it is. What is not installed here
is held against the names that its documentation asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from codetune.data.chat import chat_template
from codetune.data.tokens import TrainingTokens, training_tokens
from codetune.records import Example, Message, SelectedRows
from codetune.stages.runner import run_stage
from codetune.stages.select import SELECT
from codetune.store.examples import write_examples
from codetune.store.row_artefacts import read_selection, write_dataset_info, write_selection
from codetune.store.run_directory import Run
from tests.model.builders import byte_tokenizer, tiny_model
from tests.small_world import context_of, make_small_world

PAGE = (Path(__file__).resolve().parents[1] / "codetune/docs/other-trainers.md").read_text(encoding="utf-8")
CONVERSATIONS = (
    [("user", "Add 1 to `x`."), ("assistant", "def f(x):\n    return x + 1\n")],
    [("system", "Be short."), ("user", "Hi\u2028there"), ("assistant", "Hi."), ("user", "Bye"), ("assistant", "Bye!")],
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a selection of a pair and of a longer conversation."""
    found, ids = Run(tmp_path), [f"{number:016x}" for number in range(len(CONVERSATIONS))]
    write_examples(
        found,
        [
            Example(row_id, tuple(Message(role, text) for role, text in turns), "a.jsonl:1")  # type: ignore[arg-type]
            for row_id, turns in zip(ids, CONVERSATIONS, strict=True)
        ],
    )
    rows = np.arange(len(ids), dtype=np.uint64)
    write_selection(found, SelectedRows(rows, np.array([0.5, 0.9]), None, np.zeros(2, np.int32)), ["rank 1", "rank 2"])
    return found


def rows_of(run: Run, **options: int) -> Any:
    cache = str(run.directory / "cache")
    return load_dataset("json", data_files=str(run.selection), split="train", cache_dir=cache, **options)


def test_datasets_reads_the_conversations(run: Run) -> None:
    found = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows_of(run)]
    assert found == [list(turns) for turns in CONVERSATIONS]


def test_datasets_reads_tool_calls_that_only_a_late_row_has(run: Run) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with run.selection.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "a", "messages": turns, "tools": [call["function"]]}) + "\n")
    with pytest.raises(DatasetGenerationError):  # as by default beyond 10 MB
        rows_of(run, chunksize=100)
    *_, last = rows_of(run, chunksize=2**31 - 1)
    assert [turn.get("tool_calls") for turn in last["messages"]] == [None, [call]]


@pytest.mark.filterwarnings("ignore")  # of trl
@pytest.mark.parametrize("chat_format", ["deepseek", "codeqwen"])
def test_trl_trains_on_the_tokens_that_codetune_trains_on(run: Run, chat_format: Any) -> None:
    trl = pytest.importorskip("trl")
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = chat_template(chat_format, with_bos=False)
    trainer = trl.SFTTrainer(
        tiny_model("llama", len(tokenizer)),
        args=trl.SFTConfig(output_dir=str(run.directory / "trl"), max_length=None, use_cpu=True, bf16=False),
        train_dataset=rows_of(run),
        processing_class=tokenizer,
    )
    ours = [training_tokens(tokenizer, chat_format, row, 4096, "drop", "all") for row in read_selection(run.selection)]
    assert [row["input_ids"] for row in trainer.train_dataset] == [
        list(tokens.ids) for tokens in ours if isinstance(tokens, TrainingTokens)
    ]


def test_select_describes_the_selection_for_llama_factory(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), select__strategy="random")
    run_stage(context, SELECT)
    entries = json.loads((context.run.directory / "dataset_info.json").read_text(encoding="utf-8"))
    (setting,) = (block for block in yaml_blocks() if "dataset_dir" in block)
    entry = entries[setting["dataset"]]
    assert set(entries) == {"selection"}
    assert entry["formatting"] == "sharegpt"
    row = json.loads((context.run.directory / entry["file_name"]).read_text(encoding="utf-8").partition("\n")[0])
    tags, turns = entry["tags"], row[entry["columns"]["messages"]]
    assert [turn[tags["role_tag"]] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]]
    assert all(turn[tags["content_tag"]] for turn in turns)


def test_a_selection_with_calls_is_described_for_llama_factory_in_the_format_that_has_them(run: Run) -> None:
    write_dataset_info(run)
    assert json.loads(run.dataset_info.read_text())["selection"]["formatting"] == "sharegpt"
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with run.selection.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "a", "messages": turns}) + "\n")
    write_dataset_info(run)
    entry = json.loads(run.dataset_info.read_text())["selection"]
    assert (entry["formatting"], entry["columns"]["tools"]) == ("openai", "tools")
    assert (entry["tags"]["user_tag"], entry["tags"]["observation_tag"]) == ("user", "tool")


def test_the_axolotl_settings_name_what_is_in_the_selection(run: Run) -> None:
    (settings,) = (block for block in yaml_blocks() if "datasets" in block)
    (dataset,) = settings["datasets"]
    assert (dataset["type"], dataset["ds_type"], Path(dataset["path"]).name) == (
        "chat_template",
        "json",
        "selection.jsonl",
    )
    row = json.loads(run.selection.read_text(encoding="utf-8").splitlines()[0])
    turns = row[dataset["field_messages"]]
    assert set(dataset["message_property_mappings"].values()) == set(turns[0])
    assert dataset["roles_to_train"] == [turns[1][dataset["message_property_mappings"]["role"]]]


def yaml_blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
