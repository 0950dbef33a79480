"""A little benchmark for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codetune.records import Problem

PROMPT = 'def double(x):\n    """Twice x."""\n'
ROW: dict[str, Any] = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[1], [2]],
    "plus_input": [[-1], [10**30], ["ab"]],
    "atol": 0,
}


def problem(**changes: Any) -> Problem:
    return Problem(**(ROW | changes))


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
