"""What the doctor finds on this machine, and that each lack says what it costs and what ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetune.project.file import read_project
from codetune.report import doctor_text
from codetune.report.doctor import Finding, examine_machine
from codetune.report.requirements import PackageState, unmet_requirements
from codetune.sandbox.probe import choose_tier
from codetune.sandbox.tiers import TIERS
from codetune.stages.runner import read_context
from tests.small_world import make_small_world


def test_everything_is_looked_at_and_each_lack_says_what_it_costs_and_what_ends_it(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    before = sorted(tmp_path.rglob("*"))
    findings = list(examine_machine(read_context(read_project(project, [], {}))))
    assert sorted(tmp_path.rglob("*")) == before
    names = [finding.name for finding in findings]
    assert names[:4] == ["Python", "codetune", "packages", "torch"]
    assert {"memory", "cores", "deepspeed", "disk of the run", "Hugging Face Hub", "Hugging Face token"} <= set(names)
    assert "benchmark humaneval" in names
    assert all(finding.costs and finding.command for finding in findings if finding.state != "ok")
    used = [finding.name for finding in findings if finding.found.startswith("works, used")]
    assert used == [f"sandbox {choose_tier('auto')}"]


def test_what_the_sandbox_that_is_used_does_not_stop_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    stronger = {"bubblewrap": "bubblewrap: not here", "namespaces": "namespaces: not here"}
    monkeypatch.setattr("codetune.report.doctor.find_failure", stronger.get)
    findings = examine_machine(read_context(read_project(None, [], {})))
    [used] = [found for found in findings if found.name.startswith("sandbox") and "used" in found.found]
    assert used.name == "sandbox landlock"
    assert used.found.endswith(f"; does not stop {TIERS['landlock'].does_not_stop}")


@pytest.fixture(scope="module")
def without_a_project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """What is found where two published benchmarks are named wrongly: a file without tasks, and no file."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "tasks.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRUXEVAL_OVERRIDE_PATH", str(directory / "tasks.jsonl"))
        patch.setenv("LEETCODE_OVERRIDE_PATH", str(directory / "nowhere.jsonl"))
        return {found.name: found for found in examine_machine(read_context(read_project(None, [], {})))}


def test_every_published_benchmark_is_listed(without_a_project: dict[str, Finding]) -> None:
    found = {name.partition(" ")[2]: each for name, each in without_a_project.items() if name[:9] == "benchmark"}
    assert list(found) == ["humaneval", "mbpp", "humaneval_pro", "mbpp_pro", "cruxeval", "leetcode"]
    assert found["mbpp_pro"].command == "codetune eval mbpp_pro --limit 1"
    for name in ("cruxeval", "leetcode"):
        assert found[name].state == "wrong"
        assert found[name].command.startswith(f"unset {name.upper()}_OVERRIDE_PATH")


def test_the_hub_that_is_switched_off_is_a_lack(without_a_project: dict[str, Finding]) -> None:
    hub = without_a_project["Hugging Face Hub"]
    assert (hub.state, "not reachable" in hub.found) == ("lack", True)


def test_a_package_of_another_version_is_wrong_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["numpy>=99", "pip>=1", "nowhere-to-be-found>=2", 'vllm>=1; extra == "vllm"', 'x; python_version < "3"']
    monkeypatch.setattr("codetune.report.requirements.requires", lambda name: stated)
    numpy, absent = unmet_requirements()
    assert numpy.endswith("Expected: >=99. Install it: pip install 'numpy>=99'")
    assert absent.startswith("nowhere-to-be-found is not installed. Expected: >=2.")


@pytest.mark.parametrize(
    ("installed", "fits"), [("2.13.0+cpu", True), ("2.10.0", False), ("2.14.0.dev1", True), (None, False)]
)
def test_a_version_fits_what_is_expected(installed: str | None, fits: bool) -> None:
    assert PackageState("torch", installed, ">=2.11").fits == fits


def test_only_what_does_not_work_is_a_failure() -> None:
    lack = Finding("GPU", "none", "lack", "slow", "buy one")
    shown = doctor_text.doctor([Finding("Python", "3.11"), lack])
    assert (shown.title, shown.exit_status) == ("doctor: 1 ok, 1 lack", 0)
    assert shown.notes == ["GPU: slow. To change that: buy one"]
    assert json.loads(json.dumps(shown.document))["findings"][1]["command"] == "buy one"
    assert doctor_text.doctor([Finding("sandbox", "none", "wrong", "no verdicts", "apt")]).exit_status == 1
