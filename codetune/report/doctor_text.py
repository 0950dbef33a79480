"""The findings of the doctor as a user sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from codetune.console import CommandResult, counts
from codetune.report.doctor import Finding

STATES = ("ok", "lack", "wrong")


def doctor(findings: Sequence[Finding]) -> CommandResult:
    """Exit status 1 where a part of codetune does not work."""
    states = [finding.state for finding in findings]
    title = f"doctor: {counts({state: states.count(state) for state in STATES if state in states})}"
    cells = [[finding.name, finding.state, finding.found] for finding in findings]
    notes = [
        f"{finding.name}: {finding.costs}. To change that: {finding.command}" for finding in findings if finding.command
    ]
    document = {"findings": [asdict(finding) for finding in findings]}
    columns, status = ("part", "state", "found"), 1 if "wrong" in states else 0
    return CommandResult(title, columns, cells, notes, has_prose=True, exit_status=status, document=document)
