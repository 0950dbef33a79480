"""`codetune train --push`: against a small Hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from codetune.cli import app
from codetune.errors import CodetuneError
from tests import pipeline
from tests.small_hub import TOKEN, SmallHub, small_hub
from tests.small_world import context_of, make_small_world

SETTINGS: dict[str, Any] = {"select__strategy": "random", "train__max_steps": 1}
FLAGS = ["--set", "select.strategy=random", "--set", "train.max_steps=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_small_world(tmp_path_factory.mktemp("trained"), 20)
    context = context_of(project, **SETTINGS)
    pipeline.select(context)
    pipeline.train(context)
    return project


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with small_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub._commit_api.constants.ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def push(project: Path, repository: str, *flags: str) -> None:
    """Runs the command. Raises what it raises."""
    app(
        ["train", "--push", repository, "--project", str(project), "--json", *FLAGS, *flags],
        prog_name="codetune",
        standalone_mode=False,
    )


def test_a_finished_model_is_pushed_whole_without_training_again(
    trained: Path, hub: SmallHub, capfd: pytest.CaptureFixture[str]
) -> None:
    push(trained, "joe/small")
    document = json.loads(capfd.readouterr().out)
    assert document["reused"] == document["rows"] > 0
    assert document["pushed_to"] == f"{hub.address}/joe/small"
    assert hub.created == {"name": "small", "organization": "joe", "type": "model", "visibility": "private"}
    model = trained.parent / "runs" / "small" / "model"
    assert set(hub.files) == {path.name for path in model.iterdir()}
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert hub.files["README.md"].decode() == hub.card
    assert not [name for name, content in hub.files.items() if str(trained.parent).encode() in content]


@pytest.mark.parametrize("repository", ["a/b/c", "https://huggingface.co/joe/small", "", "a b", "-x", "x" * 97])
def test_a_name_that_no_repository_has_is_refused_before_anything_else(trained: Path, repository: str) -> None:
    with pytest.raises(CodetuneError, match=r"not the name of a repository .* such as --push my-name") as error:
        push(trained, repository)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"token": ""}, 2, "there is no token .* set HF_TOKEN"),
        ({"token": "wrong"}, 2, "the Hub refused it .401: .* hf auth login"),
        ({"role": "read"}, 2, "the token of joe may only read"),
        ({"offline": True}, 2, "HF_HUB_OFFLINE is set"),
        ({"endpoint": "http://127.0.0.1:9"}, 1, "is unreachable .* Connection refused"),
        ({"refusals": {"/api/whoami": 503}}, 1, "is unreachable"),
    ],
)
def test_what_can_be_known_is_told_before_a_training_begins(
    trained: Path,
    hub: SmallHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: dict[str, Any],
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", change.get("offline", False))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", change.get("endpoint", hub.address))
    monkeypatch.setenv("HF_TOKEN", change.get("token", TOKEN))
    hub.role, hub.refusals = change.get("role", "write"), change.get("refusals", {})
    with pytest.raises(CodetuneError, match=message) as error:
        push(trained, "joe/small", "--set", "train.epochs=9", "--replace")
    assert error.value.exit_status == status
    assert not (trained.parent / "runs" / "small" / "train.next").exists()


@pytest.mark.parametrize(
    ("refused", "status", "message"),
    [
        ({"/api/repos/create": 403}, 2, "the Hub refused it .403: You don't have the rights"),
        ({"/api/validate-yaml": 400}, 2, "refused the front matter of README.md .* Fix it, or remove the file"),
        ({"/api/models": 429}, 1, "broke off .* Nothing is lost: the model is finished .* uploads without training"),
    ],
)
def test_an_upload_that_fails_loses_nothing(
    trained: Path,
    hub: SmallHub,
    monkeypatch: pytest.MonkeyPatch,
    refused: dict[str, int],
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.refusals = refused
    with pytest.raises(CodetuneError, match=message) as error:
        push(trained, "joe/small")
    assert error.value.exit_status == status
    hub.refusals = {}
    push(trained, "joe/small")
    assert "model.safetensors" in hub.files


def test_adapters_that_nobody_else_could_load_are_refused_before_they_are_trained(trained: Path) -> None:
    with pytest.raises(CodetuneError, match=r"model\.path is base, a directory of this machine\. .* train\.merge"):
        push(trained, "joe/small", "--method", "lora")


def test_merged_adapters_are_pushed_without_the_paths_of_what_they_were_made_of(tmp_path: Path, hub: SmallHub) -> None:
    project = make_small_world(tmp_path, 20)
    pipeline.select(context_of(project, **SETTINGS))
    best = ["train.keep_best=pass@1", f"train.tasks={tmp_path / 'tasks.jsonl'}", "train.task_count=1"]
    flags = [word for one in ("train.merge=true", *best, "generate.max_new_tokens=4") for word in ("--set", one)]
    push(project, "small", "--method", "lora", *flags)
    assert json.loads(hub.files["codetune.json"])["train.tasks"] == "tasks.jsonl"
    assert json.loads(hub.files["adapter/adapter_config.json"])["base_model_name_or_path"] == "base"
    assert not [name for name, content in hub.files.items() if str(tmp_path).encode() in content]
    own = json.loads((tmp_path / "runs/small/model/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert own["base_model_name_or_path"] == str(tmp_path / "base")
