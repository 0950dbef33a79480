from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from codetune.project.sections import Evaluation
from codetune.sandbox import tiers
from codetune.sandbox.probe import find_failure
from codetune.sandbox.tiers import TIERS, ZYGOTE_FILES, Tier
from codetune.sandbox.zygote import Mechanisms
from tests.sandbox.tiers import find_failure_once


def test_evaluate_sandbox_may_be_auto_or_any_tier() -> None:
    assert get_args(Evaluation.model_fields["sandbox"].annotation) == ("auto", *TIERS)


def test_only_the_last_tier_confines_nothing_and_the_strongest_stop_all_that_a_tier_can() -> None:
    assert [name for name, tier in TIERS.items() if not tier.confines] == [list(TIERS)[-1]] == ["none"]
    assert [name for name, tier in TIERS.items() if not tier.does_not_stop] == ["bubblewrap", "namespaces"]


def test_the_root_of_bubblewrap_holds_every_module_that_the_zygote_loads() -> None:
    program = (
        "import sys, codetune.sandbox.zygote\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'codetune'))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    assert {str(Path(path).relative_to(tiers.PACKAGE)) for path in loaded} == set(ZYGOTE_FILES)


def nice(_: Sequence[Path]) -> list[str]:
    return ["nice", "-n", "1"]


@pytest.mark.skipif(find_failure_once("landlock") is not None, reason="no Landlock here")
def test_a_tier_is_added_as_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("nice") is None:
        pytest.skip("no nice here")
    mechanisms = Mechanisms(unshare=False, landlock_required=True, scratch=False)
    added = Tier("nice", mechanisms, wrapper=nice, code=tiers.PACKAGE.parent, does_not_stop="a low priority")
    monkeypatch.setattr(tiers, "TIERS", {**TIERS, "nice": added})
    monkeypatch.setattr("codetune.sandbox.launcher.TIERS", {**TIERS, "nice": added})
    assert find_failure("nice") is None
