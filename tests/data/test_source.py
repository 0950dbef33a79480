"""Rows of every kind of file, each refusal by its reason, and damaged files by their line."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from codetune.data.source import dataset_fingerprint, files_of_other_splits, read_examples, with_columns
from codetune.errors import DataError, InputError
from codetune.project.sections import Dataset
from codetune.records import Example, Message, Refusal, content_id

PAIR = {"problem": "Add two numbers.", "solution": "def add(a, b):\n    return a + b"}
PAIR_COLUMNS = {name: [value] for name, value in PAIR.items()}
PAIR_ID = content_id([Message("user", PAIR["problem"]), Message("assistant", PAIR["solution"])])


def pairs(path: Path | str, instruction: str = "problem", response: str = "solution", split: str = "train") -> Dataset:
    return Dataset(path=str(path), instruction=instruction, response=response, split=split)


def rows_of(path: Path, **columns: str) -> list[Example | Refusal]:
    return list(read_examples(pairs(path, **columns), str(path)))


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*turns: str) -> dict[str, object]:
    """A row of turns, each written `role: content`."""
    parted = (turn.partition(": ") for turn in turns)
    return {"messages": [{"role": role, "content": content} for role, _, content in parted]}


def parquet_bytes(rows: list[dict[str, str]]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content := io.BytesIO())
    return content.getvalue()


def distinct(count: int) -> list[dict[str, str]]:
    return [{"problem": f"Task {number}", "solution": f"answer({number})"} for number in range(count)]


def test_a_row_becomes_an_example_with_its_content_id(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [PAIR])
    messages = (Message("user", PAIR["problem"]), Message("assistant", PAIR["solution"]))
    assert rows_of(path) == [Example(PAIR_ID, messages, f"{path}:1", source=str(path))]


CSV = """﻿id,problem,solution
1,"Add two
numbers, ""fast"".",a + b
2,Wrong,a,b

3,Subtract.,"a - b"
"""


def test_a_csv_file_gives_text_by_the_names_in_its_header_and_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV, encoding="utf-8", newline="")
    first, wrong, last = rows_of(path)
    assert isinstance(first, Example)
    assert first.messages == (Message("user", 'Add two\nnumbers, "fast".'), Message("assistant", "a + b"))
    assert wrong == Refusal(None, "another number of fields than the header", f"{path}:4")
    assert (first.at, last.at) == (f"{path}:2", f"{path}:6")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert [row.id for row in rows_of(tmp_path / "a.csv.gz")] == [first.id, None, last.id]


def test_turns_in_a_csv_file_are_json_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(chat("user: x", "assistant: y")["messages"])], ["x"]])
    example, refused = read_examples(Dataset(path=str(path)), str(path))
    assert isinstance(example, Example)
    assert example.messages == (Message("user", "x"), Message("assistant", "y"))
    assert isinstance(refused, Refusal)
    assert refused.reason == "messages is not a list of objects"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'problem,solution\nx,y\n"x,y\n', r"a\.csv:3 is not CSV \(unexpected end of data\)"),
        (b'problem,solution\nx,"y"z\n', r"a\.csv:2 is not CSV"),
        (b"problem,solution\nx,\xe9\n", r"a\.csv:2 is not UTF-8"),
        (b"problem,solution,problem\n", r"a\.csv:1 names the column 'problem' twice"),
        (b"problem;solution\nx;y\n", r"a\.csv:1 has one column, 'problem;solution'.*not ';'"),
    ],
)
def test_a_damaged_csv_file_is_an_error_with_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=told):
        rows_of(tmp_path / "a.csv")


SIX = [*distinct(5), {"problem": "schön 😀", "solution": "print('日本')"}]
SIX_IDS = [content_id([Message("user", row["problem"]), Message("assistant", row["solution"])]) for row in SIX]
ARRAY = json.dumps(SIX, ensure_ascii=False, indent=1).encode()
LINES = "".join(json.dumps(row) + "\n" for row in SIX).encode()


@pytest.mark.parametrize(
    ("name", "content", "second_at"),
    [
        ("a.json", codecs.BOM_UTF8 + ARRAY, "row 2"),
        ("b.json", LINES, "2"),
        ("c.jsonl", b"\n" + LINES, "3"),
        ("d.json.gz", gzip.compress(ARRAY), "row 2"),
        ("e.jsonl.gz", gzip.compress(LINES), "2"),
        ("f.parquet", parquet_bytes(SIX), "row 2"),
    ],
    ids=["array", "lines in .json", "lines", "packed array", "packed lines", "parquet"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, content: bytes, second_at: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = rows_of(tmp_path / name)
    assert [row.id for row in found] == SIX_IDS
    assert len(set(SIX_IDS)) == 6
    assert found[1].at == f"{tmp_path / name}:{second_at}"


@pytest.mark.parametrize(
    ("row", "reason", "has_id"),
    [
        ([1], "not an object", False),
        ({"problem": "x", "solution": 3}, "answer is not text", False),
        ({"problem": None, "solution": "y"}, "instruction is not text", False),
        ({"problem": "x", "solution": "y", "input": 1}, "input is not text", False),
        ({"problem": "x"}, "no column solution", False),
        ({"solution": "x"}, "no column problem", False),
        ({"problem": "x", "solution": "\ud800"}, "text is not valid Unicode", False),
        ({"problem": "x", "solution": " \n"}, "empty answer", True),
        ({"problem": " ", "solution": "y"}, "empty instruction", True),
        ({"problem": "\u200b", "solution": "y"}, "empty instruction", True),
        ({"problem": "x", "solution": "\ufeff \u3164\n"}, "empty answer", True),
        (chat("user: x", "assistant: y", "user: \u2060", "assistant: z"), "empty turn", True),
        ({"messages": "x"}, "messages is not a list of objects", False),
        ({"messages": [{"role": "user"}]}, "a message's content is not text", False),
        ({"messages": []}, "does not end with an assistant's turn", True),
        ({"messages": [{"role": "user", "content": "x"}]}, "does not end with an assistant's turn", True),
        (chat("system: x", "assistant: y"), "no user's turn before the answer", True),
        (chat("user: x", "user: y", "assistant: z"), "turns do not alternate between user and assistant", True),
        (chat("assistant: x", "user: y", "assistant: z"), "turns do not alternate between user and assistant", True),
        (chat("user: x", "system: y", "assistant: z"), "a system message behind another turn", True),
        (chat("system: x", "system: y", "user: z", "assistant: a"), "a system message behind another turn", True),
        (chat("user: x", "assistant: ", "user: y", "assistant: z"), "empty turn", True),
        (chat("user: x", "assistant: y", "user: z"), "does not end with an assistant's turn", True),
        (
            {"conversations": [{"from": "robot", "value": "x"}]},
            "a message's role is none of human, gpt, system, user, assistant, tool, function, function_call, "
            "observation",
            False,
        ),
        (
            {"messages": [{"role": ["user"], "content": "x"}]},
            "a message's role is none of system, user, assistant, tool, function",
            False,
        ),
        (chat("user: x", "tool: y", "assistant: z"), "a tool's turn follows no call", True),
        (chat("user: x", "assistant: y", "tool: z", "assistant: z"), "a tool's turn follows no call", True),
        ({**PAIR, "system": 1}, "system is not text", False),
        ({**PAIR, "system": "Be brief.", "system_prompt": "Be long."}, "more than one system prompt", False),
        ({**PAIR, "history": "x"}, "history is not a list of questions with answers", False),
        ({**PAIR, "history": [["x", None]]}, "history is not text", False),
        ({**PAIR, "history": [["x", " "]]}, "empty turn", True),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_and_stops_no_other(
    tmp_path: Path, row: object, reason: str, has_id: bool
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [PAIR, row, *distinct(1)])
    first, refused, last = rows_of(path)
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.at, refused.id is not None) == (reason, f"{path}:2", has_id)


def test_alpacas_input_follows_the_instruction_after_a_blank_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**PAIR, "input": "2 and 3"}, {**PAIR, "input": " "}])
    with_input, without = rows_of(path)
    assert isinstance(with_input, Example)
    assert with_input.instruction == "Add two numbers.\n\n2 and 3"
    assert without.id == PAIR_ID


def test_a_chat_of_several_turns_keeps_them_all(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "yo"), ("user", "more"), ("assistant", "yo yo")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (example,) = rows_of(write_lines(tmp_path / "a.jsonl", [row]))
    assert isinstance(example, Example)
    assert [(message.role, message.content) for message in example.messages] == turns
    assert example.answer == "yo yo"


def test_calls_are_part_of_a_rows_id_and_the_tools_are_not(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    other = [turns[0], {**turns[1], "tool_calls": [{**call, "function": {"name": "add", "arguments": {"a": 2}}}]}]
    rows = [{"messages": turns, "tools": [call]}, {"messages": other}, {"messages": turns}]
    first, second, third = rows_of(write_lines(tmp_path / "a.jsonl", rows))
    canonical = json.dumps(turns, sort_keys=True, separators=(",", ":"))
    assert first.id == hashlib.sha256(canonical.encode()).hexdigest()[:16] != second.id
    assert isinstance(third, Refusal)
    assert third.kind == "differs only in columns beside its messages"
    assert isinstance(first, Example)
    assert (first.instruction, first.answer) == ("x", '{"name": "add", "arguments": {"a": 1}}')


def test_a_second_identical_row_names_the_first_across_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [*distinct(2), PAIR])
    write_lines(tmp_path / "b.jsonl", [PAIR, {**PAIR, "other": 1}])
    found = rows_of(tmp_path)
    assert [row.at for row in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "b.jsonl:2"]
    assert found[3:] == [
        Refusal(None, "duplicate of a.jsonl:3", "b.jsonl:1"),
        Refusal(None, "duplicate of a.jsonl:3", "b.jsonl:2"),
    ]


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("context", "a", "b"),
        ("tools", '[{"name": "f"}]', None),
        ("documents", [{"text": "x"}], [{"text": "y"}]),
    ],
)
def test_rows_that_differ_in_columns_beside_their_messages_are_no_duplicates(
    tmp_path: Path, column: str, first: object, second: object
) -> None:
    row = chat("user: x", "assistant: y")
    path = write_lines(tmp_path / "a.jsonl", [{**row, column: value} for value in (first, second, first)])
    kept, other, same = rows_of(path)
    assert isinstance(kept, Example)
    assert [name for name, _ in kept.left_out] == [column] * (column != "tools")
    assert other == Refusal(None, f"differs from {path}:1 only in columns beside its messages", f"{path}:2")
    assert isinstance(other, Refusal)
    assert other.kind == "differs only in columns beside its messages"
    assert same == Refusal(None, f"duplicate of {path}:1", f"{path}:3")


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_a_directory_and_a_glob_are_read_in_the_order_of_the_files_names(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "deep" / "b.jsonl", distinct(1))
    write_lines(tmp_path / "a.jsonl", [PAIR])
    write_lines(tmp_path / ".hidden.jsonl", distinct(3))
    (tmp_path / "README.md").write_text("not data")
    examples = [row for row in rows_of(tmp_path / pattern) if isinstance(row, Example)]
    assert [example.at for example in examples] == ["a.jsonl:1", "deep/b.jsonl:1"]
    assert [example.source for example in examples] == ["a.jsonl", "deep/b.jsonl"]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_a_link_to_a_directory_above_doubles_no_file(tmp_path: Path, pattern: str) -> None:
    write_lines(tmp_path / "a.jsonl", [PAIR])
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [row.at for row in rows_of(tmp_path / pattern)] == ["a.jsonl:1"]


def test_a_missing_column_is_an_error_that_lists_those_that_exist(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "x", "output": "y"}])
    with pytest.raises(DataError, match=r"a.jsonl:1 has no column problem and no column solution; it has instruction"):
        rows_of(path)


def test_an_array_under_the_name_of_a_file_of_lines_is_an_error_that_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1 is a list\. .* that is named \.json\."):
        rows_of(write_lines(tmp_path / "a.jsonl", [[PAIR, PAIR]]))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '[{"problem": "x"}]', r"a\.jsonl:1 is a list\. .* that is named \.json\."),
        ("a.jsonl", '[\n{"problem": "x"}\n]', r"a\.jsonl:1 begins a value that takes several lines\. .*Rename a file"),
        (
            "a.json",
            '{\n"data": [{"problem": "x"}]\n}',
            r"a\.json:1 begins .* a list inside of an object, write that list",
        ),
        ("a.jsonl", "", r"a\.jsonl holds no row"),
        ("a.csv", "problem,solution\n", r"a\.csv holds no row"),
    ],
)
def test_a_file_whose_rows_are_not_objects_is_an_error_that_says_what_it_is(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        with_columns(Dataset(path=str(path)), str(path))


@pytest.mark.parametrize("named", [{}, {"instruction": "problem", "response": "solution"}], ids=["found", "named"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            {"data": [PAIR, PAIR]},
            r"1 is one object that holds lists of rows, 2 under data \(the first has problem, sol",
        ),
        (
            {"version": "1", "train": [PAIR], "test": [PAIR]},
            r"1 under train .* and 1 under test .* under train or test",
        ),
        (
            {"problem": ["x", "y"], "solution": ["a", "b"]},
            r"holds the columns problem, solution, each as a whole\..*pandas",
        ),
        ({"problem": {"0": "x"}, "solution": {"0": "a"}}, r"holds the columns problem, solution, each as a whole"),
        ({"a": PAIR, "b": PAIR}, r"rows under names of their own \(the first has problem, solution\).*as a list"),
        ({"messages": [[], []]}, r"holds the columns messages, each as a whole"),
    ],
)
def test_a_file_whose_only_object_holds_all_rows_is_an_error_that_names_its_shape(
    tmp_path: Path, value: dict[str, object], told: str, named: dict[str, str]
) -> None:
    path = write_lines(tmp_path / "a.json", [value])
    with pytest.raises(DataError, match=told):
        list(read_examples(with_columns(Dataset(path=str(path), **named), str(path)), str(path)))


@pytest.mark.parametrize("beside", [{"tests": [{"in": 1}]}, {"tools": [{"name": "f"}], "messages": []}])
def test_the_only_row_of_a_file_may_have_lists_of_objects(tmp_path: Path, beside: dict[str, object]) -> None:
    path = write_lines(tmp_path / "a.json", [{**PAIR, **beside}])
    (row,) = read_examples(with_columns(Dataset(path=str(path)), str(path)), str(path))
    assert isinstance(row, Example) or row.reason == "does not end with an assistant's turn"


def test_a_chat_among_rows_without_the_columns_does_not_hide_that_they_are_missing(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    path = write_lines(tmp_path / "a.jsonl", [chat, {"instruction": "x"}, {"instruction": "z"}])
    with pytest.raises(DataError, match=r"a.jsonl:2 has no column problem and no column solution; it has instruction"):
        rows_of(path)
    write_lines(path, [{"instruction": "x"}, chat, chat])
    assert [isinstance(row, Refusal) for row in rows_of(path)] == [True, False, True]  # the last is a duplicate


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"question": "x", "answer": "y"},
            r"it has question, answer: an instruction in question and a response in answer\. .*"
            r"Set dataset\.instruction to question and dataset\.response to answer\.$",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z"},
            r"preference pairs\. .*Set dataset\.instruction to prompt and dataset\.response to chosen\.$",
        ),
        ({"Question": "x", "answer": "y", "output": "z"}, r"to Question and dataset\.response to output or answer\.$"),
        ({"chosen": "x", "rejected": "y"}, r"preference pairs\. .*Give the turns of chosen a column messages"),
        ({"prompt": "x"}, r"an instruction in prompt, without a response"),
        (
            {"input": {}, "preferred_output": []},
            r"as OpenAI has them\. .*Write the messages of input and those",
        ),
        ({"segments": []}, r"texts in segments, as axolotl's input_output has them\. .*Give each row an instruction"),
        ({"text": "x"}, r": text alone\. .*Give each row an instruction and a response\.$"),
    ],
)
def test_rows_that_are_mostly_of_another_shape_are_an_error_that_names_it_and_the_keys_to_set(
    tmp_path: Path, row: dict[str, object], told: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row, row, row])
    with pytest.raises(DataError, match=told):
        rows_of(path)
    write_lines(path, [PAIR, row, row])
    with pytest.raises(DataError, match=told):
        rows_of(path)
    write_lines(path, [PAIR, *distinct(1), row, row])  # no more than half
    assert [isinstance(found, Refusal) for found in rows_of(path)] == [False, False, True, True]


def test_the_line_where_a_real_file_breaks_off_is_named(shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "instruct" / "evol-round1.json").read_text(encoding="utf-8")
    lines = text.split("\n")[:1203]
    path = tmp_path / "cut.json"
    path.write_text("\n".join(lines)[:-3], encoding="utf-8")
    with pytest.raises(DataError, match=r"cut\.json:1203: "):
        rows_of(path, instruction="instruction", response="output")


def test_real_sets_are_read_whole_with_every_row_counted(shared_data: Path) -> None:
    evol = rows_of(shared_data / "instruct" / "evol-round1.json", instruction="instruction", response="output")
    assert len(evol) == 1966
    alpaca = rows_of(shared_data / "instruct" / "code-alpaca-20k.json.gz", instruction="instruction", response="output")
    kinds = Counter(row.kind for row in alpaca if isinstance(row, Refusal))
    assert len(alpaca) == 20022
    assert kinds["empty answer"] == 6
    assert set(kinds) <= {"empty answer", "duplicate"}


def test_a_row_leaves_less_than_two_hundred_bytes_behind(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", distinct(10_000))
    tracemalloc.start()
    rows = read_examples(pairs(path), str(path))
    next(rows)
    before, _ = tracemalloc.get_traced_memory()
    count = sum(1 for _ in rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (peak - before) / count < 200


@pytest.mark.parametrize("name", ["data/rows.jsn", "data/row.jsonl", "data/rows.json"])
def test_a_name_that_is_nearly_that_of_a_data_file_is_no_data_set_on_the_hub(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "rows.jsonl", [])
    with pytest.raises(DataError, match=rf"There is no file {name}; did you mean data/rows.jsonl\?"):
        list(read_examples(pairs(Path(name)), name))


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "a/b/c", "none/*.json"])
def test_a_path_without_data_is_an_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"There is no file|has no data files"):
        list(read_examples(pairs(name), name))


def fake_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_hub_data_set_in_the_cache_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(tmp_path, monkeypatch)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "datasets--some--set" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--some--set" / "refs" / "main").write_text(commit)
    snapshot = tmp_path / "datasets--some--set" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write_lines(snapshot / "train.jsonl", [PAIR, PAIR])
    dataset = pairs("some/set")
    first, second = read_examples(dataset, "some/set")
    assert (first.id, first.at) == (PAIR_ID, "some/set:row 1")
    assert second == Refusal(None, "duplicate of some/set:row 1", "some/set:row 2")
    digest = dataset_fingerprint(dataset, "some/set", lambda path: pytest.fail(str(path)))
    assert digest == hashlib.sha256(f"some/set\0{commit}\0train".encode()).hexdigest()
    with pytest.raises(DataError, match=r"split other of some/set .*train"):
        list(read_examples(pairs("some/set", split="other"), "some/set"))
    bad = pyarrow.table({**PAIR_COLUMNS, "date": pyarrow.array([2**62], pyarrow.timestamp("ms"))})
    (snapshot / "train.jsonl").unlink()
    pyarrow.parquet.write_table(bad, snapshot / "train-00000-of-00001.parquet")
    assert [row.id for row in read_examples(dataset, "some/set")] == [PAIR_ID]


def test_a_hub_data_set_that_cannot_be_asked_for_is_an_error_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(tmp_path, monkeypatch)
    started = time.monotonic()
    with pytest.raises(DataError, match="the Hub is unreachable"):
        list(read_examples(pairs("some/none"), "some/none"))
    assert time.monotonic() - started < 5


def fingerprint(location: Path, split: str = "train") -> str:
    def digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    return dataset_fingerprint(Dataset(path=str(location), split=split), str(location), digest)


def test_the_fingerprint_follows_the_contents_of_the_files_their_order_and_the_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-a.jsonl", [PAIR])
    write_lines(tmp_path / "train-b.jsonl", distinct(1))
    first = fingerprint(tmp_path)
    write_lines(tmp_path / "test.jsonl", [PAIR])  # of another split
    assert first == fingerprint(tmp_path)
    (tmp_path / "train-a.jsonl").rename(tmp_path / "train-c.jsonl")  # now after train-b.jsonl
    reordered = fingerprint(tmp_path)
    write_lines(tmp_path / "train-c.jsonl", distinct(2))
    assert len({first, reordered, fingerprint(tmp_path), fingerprint(tmp_path, split="test")}) == 4


def test_a_copy_a_new_name_and_another_spelling_of_the_path_keep_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    path = write_lines(tmp_path / "a.jsonl", [PAIR])
    copy = write_lines(tmp_path / "copy" / "renamed.jsonl", [PAIR])
    monkeypatch.chdir(tmp_path)
    found = {fingerprint(one) for one in (path, Path("a.jsonl"), copy, copy.parent, tmp_path / "copy" / "*.jsonl")}
    assert len(found) == 1


def test_the_files_of_other_splits_are_named_and_not_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-a.jsonl", [PAIR])
    write_lines(tmp_path / "test.jsonl", distinct(1))
    dataset = pairs(tmp_path)
    assert [row.at for row in read_examples(dataset, str(tmp_path))] == ["train-a.jsonl:1"]
    assert files_of_other_splits(dataset, str(tmp_path)) == ["test.jsonl"]


def test_a_named_pipe_is_refused_by_name_and_passed_over_in_a_directory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl is a named pipe\. Expected: a plain file"):
        rows_of(tmp_path / "a.jsonl")
    write_lines(tmp_path / "b.jsonl", [PAIR])
    assert [row.at for row in rows_of(tmp_path)] == ["b.jsonl:1"]


def test_a_glob_over_links_without_end_ends() -> None:
    with pytest.raises(DataError, match="has no data files"):
        rows_of(Path("/proc/self/**"))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (PAIR, ("problem", "solution")),
        ({"id": 1, "instruction": "a", "input": "", "output": "b"}, ("instruction", "output")),
        ({"prompt": "a", "messages": []}, (None, None)),
        ({"conversations": []}, (None, None)),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_that_the_project_does_not_name_are_found_by_their_usual_names(
    row: dict[str, object], columns: tuple[str, str], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_lines(path, [row, {"other": 1}, row])
    else:
        pyarrow.parquet.write_table(pyarrow.table({name: ["x"] for name in row}), path)
    found = with_columns(Dataset(path=str(path)), str(path))
    assert (found.instruction, found.response) == columns


@pytest.mark.parametrize(
    ("row", "key", "fault"),
    [
        ({"instruction": "", "prompt": "", "output": ""}, "instruction", "any of instruction, prompt could be it"),
        ({"instruction": "", "output": "", "Output": ""}, "response", "any of output, Output could be it"),
        ({"problem": "", "text": ""}, "response", "none of its columns has a usual name"),
        ({"input": "", "output": ""}, "instruction", "none of its columns has a usual name"),
    ],
)
def test_columns_of_which_none_or_several_could_be_meant_are_an_error_that_lists_them(
    row: dict[str, object], key: str, fault: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match=f"{key} is not set, and {fault}. Columns found: {', '.join(row)}. Set "):
        with_columns(Dataset(path=str(path)), str(path))


def test_rows_of_several_shapes_of_which_none_is_usual_are_told_with_their_numbers(tmp_path: Path) -> None:
    rows = [*[{"problem": "a", "solution": "b"}] * 2, *[{"messages": []}] * 2]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"2 of 4 have problem, solution; 2 of 4 have messages.*under dataset, each with"
    ):
        with_columns(Dataset(path=str(path)), str(path))


def test_a_column_that_the_project_names_decides_and_the_other_is_found(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "a", "prompt": "b", "output": "c", "messages": []}])
    found = with_columns(Dataset(path=str(path), instruction="prompt"), str(path))
    assert (found.instruction, found.response) == ("prompt", "output")


def test_a_data_set_without_a_name_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"dataset\.path is not set"):
        with_columns(Dataset(), "None")
