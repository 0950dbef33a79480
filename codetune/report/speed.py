"""FLOPs a second that this project's training reaches, from what is known: a record of an earlier run beside this one,
a probe of a few steps, or the data sheet of the GPU. Where none of these is there, the rate is unknown: None.

All rates are of the FLOPs that `cost.py` counts, and of all devices together."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.console import percent
from codetune.errors import UsageError
from codetune.launch.devices import gpu_name
from codetune.project.sections import Precision, Project
from codetune.records import Example
from codetune.selection.cost import training_flops
from codetune.store.manifest import Manifest, read_manifest
from codetune.store.run_directory import Run
from codetune.training.metrics import peak_flops_per_second
from codetune.training.train import train

CARD_GIGABYTES = {
    "B200": 180,
    "GH200": 96,
    "H200": 141,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "H800": 80,
    "A100": 40,  # or 80: A100-80GB
    "A800": 80,
    "L40S": 48,
    "L40": 48,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "A40": 48,
    "A10G": 24,
    "A10": 24,
    "L4": 24,
}  # of the cards whose rate training/metrics.py knows
ASSUMED_MFU = 0.4  # Chowdhery et al. 2022, table 3: 21 to 46 % of what the accelerators could do
PROBE_STEPS = 4  # the first is not counted: kernels are chosen and memory is allocated


@dataclass(frozen=True, slots=True)
class Rate:
    """FLOPs a second, where they come from, and whether they were measured here."""

    flops_per_second: float
    basis: str
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """The first steps of the training, on one device."""

    tokens: int  # of all steps but the first
    seconds: float


def is_this_machine(card: str | None) -> bool:
    """Whether what runs here tells the speed of the card that a plan is for; None plans for this machine."""
    own, named = _known_card(gpu_name() or ""), _known_card(card or "")
    return card is None or (named is not None and own == named)


def recorded_rate(project: Project, run: Run, weights: int, processes: int, *, with_own: bool) -> Rate | None:
    """Of the newest finished training beside this run (or of this one, `with_own`) of the same model with the same
    method in as many processes, on a GPU where this machine has one."""
    found: list[tuple[Manifest, Path]] = []
    for record in run.directory.parent.glob(f"*/{run.project.name}"):
        is_own = record.parent == run.directory
        manifest = read_manifest(Run(record.parent).model) if with_own or not is_own else None
        if manifest is not None and _is_alike(manifest, project, processes):
            found.append((manifest, record.parent))
    if not found:
        return None
    manifest, directory = max(found, key=lambda entry: entry[0].made)
    is_full = project.train.method == "full"
    flops = training_flops(weights, manifest.facts["tokens"], is_full=is_full)
    return Rate(flops / manifest.facts["seconds"], f"measured in {directory} on {manifest.day}", is_measured=True)


def probed_rate(probe: Probe, project: Project, weights: int, processes: int) -> Rate:
    """`processes` devices as fast as the one of the probe."""
    flops = training_flops(weights, probe.tokens, is_full=project.train.method == "full")
    shared = f", times {processes} processes" if processes > 1 else ""
    basis = f"measured by a probe of {PROBE_STEPS - 1} steps on one device{shared}"
    return Rate(processes * flops / probe.seconds, basis, is_measured=True)


def card_rate(card: str, precision: Precision, processes: int) -> Rate | None:
    """An estimate for a GPU of that name; None where its data sheet is not known here."""
    peak = peak_flops_per_second(precision, card)
    if peak is None:
        return None
    basis = f"an estimate: {percent(ASSUMED_MFU)} of what the data sheet of {card} says"
    return Rate(ASSUMED_MFU * peak * processes, basis, is_measured=False)


def card_memory(card: str) -> int:
    """The memory of a GPU of that name, as its data sheet says, in bytes. Raises UsageError for an unknown name."""
    if size := re.search(r"(\d+) ?GB", card):
        return int(size[1]) * 10**9
    known = _known_card(card)
    if known is None:
        raise UsageError(f"--gpu {card}: no such GPU is known. Expected one of: {', '.join(CARD_GIGABYTES)}")
    return CARD_GIGABYTES[known] * 10**9


def _known_card(name: str) -> str | None:
    return next((known for known in CARD_GIGABYTES if re.search(rf"\b{known}\b", name)), None)


def run_probe(
    rows: Sequence[Example], step_tokens: Sequence[int], project: Project, model: Path, scratch: Path
) -> Probe:
    """Trains `PROBE_STEPS` steps of one process in `scratch`, and throws the result away. `step_tokens` are the tokens
    of each step. Raises what `train` raises."""
    training = project.train.model_copy(update={"max_steps": PROBE_STEPS, "save_minutes": None, "save_steps": None})
    alone = project.launch.model_copy(update={"processes": 1, "nodes": 1, "strategy": "auto"})
    times: list[float] = []

    def note(report: Mapping[str, float | None]) -> None:
        times.append(time.perf_counter())
        if len(times) == len(step_tokens):
            raise _EnoughStepsError

    probe = project.model_copy(update={"train": training, "launch": alone})
    with contextlib.suppress(_EnoughStepsError):
        train(rows, probe, model, scratch / "probe", scratch / "probe-model", note)
    return Probe(sum(step_tokens[1:]), times[-1] - times[0])


class _EnoughStepsError(Exception):
    """Ends the training of a probe before it would save a model."""


def _is_alike(manifest: Manifest, project: Project, processes: int) -> bool:
    facts = manifest.facts
    return (
        manifest.names.get("model.path") == project.model.path
        and manifest.settings.get("train.method") == project.train.method
        and facts.get("processes") == processes
        and bool(facts.get("seconds"))
        and (facts.get("peak_memory_bytes") is None) == (gpu_name() is None)
    )
