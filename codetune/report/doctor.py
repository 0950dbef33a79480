"""`codetune doctor`: what this machine has and lacks, found by trying; each lack with what it costs and the command
that ends it. Downloads nothing and changes nothing.

Several machines are compared in `nodes.py`."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from codetune import __version__
from codetune.benchmark.benchmarks import BENCHMARKS, EvalPlusDownload, HubFile
from codetune.data.hub import OFFLINE, hub_cache, unreachable_hub
from codetune.data.hub_upload import has_token
from codetune.errors import DataError
from codetune.launch.devices import choose_device, compiler_fault, count_gpus, describe_gpus, find_precision
from codetune.launch.environment import thread_count, user_cache
from codetune.project.sections import Project
from codetune.report.requirements import installed_version, required_packages
from codetune.sandbox.probe import CONFINING_TIERS, find_failure
from codetune.sandbox.tiers import TIERS
from codetune.stages.benchmarks import problems_at_hand
from codetune.stages.stage import RunContext
from codetune.text import gigabytes

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that codetune runs on
LEAST_FREE_BYTES = 20 * 10**9  # of a disk
LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 and flash attention
DRIVER = Path("/proc/driver/nvidia/version")
MEMORY = Path("/proc/meminfo")
OPTIONAL = (
    ("deepspeed", "launch.strategy zero1, zero2 and zero3 cannot be used; fsdp shares a model as well", "gpu"),
    ("flash-attn", "greedy decoding on a GPU takes longer; training and scoring use torch's own kernel", "flash"),
    ("vllm", "many samples of a task take longer on a GPU", "vllm"),
    ("matplotlib", "codetune report writes its page, and no figures as PNG and SVG (--figures)", "report"),
)
FOR_A_GPU = ("gpu", "flash", "vllm")  # extras
FindingState = Literal["ok", "lack", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A `lack` costs something, with `wrong` a part of codetune does not work."""

    name: str
    found: str
    state: FindingState = "ok"
    costs: str = ""
    command: str = ""  # that ends it


def examine_machine(context: RunContext) -> Iterator[Finding]:
    """Everything, in the order in which it is shown."""
    yield from _software()
    yield from _devices()
    yield from find_compiler(context.project)
    yield from _optional_packages()
    yield from _sandbox()
    yield from _disks(context)
    yield _hub()
    yield Finding("Hugging Face token", "found" if has_token() else "none; of use with codetune train --push only")
    yield from _benchmarks(context)


def _software() -> Iterator[Finding]:
    version, (oldest, newest) = sys.version_info[:2], PYTHONS
    fits = oldest <= version <= newest
    command = f"make a virtual environment of Python {newest[0]}.{newest[1]}"
    python = Finding("Python", platform.python_version())
    yield python if fits else Finding(python.name, python.found, "wrong", "codetune is not tested on it", command)
    yield Finding("codetune", __version__)
    unmet = [package for package in required_packages() if not package.fits]
    if not unmet:
        yield Finding("packages", "all that codetune needs")
    for package in unmet:
        yield Finding(
            f"package {package.name}",
            package.installed or "not installed",
            "wrong",
            f"codetune needs {package.expected}",
            f"pip install '{package.name}{package.expected}'",
        )


def _devices() -> Iterator[Finding]:
    cuda = torch.version.cuda
    yield Finding("torch", f"{torch.__version__}, " + (f"CUDA {cuda}" if cuda else "without CUDA"))
    if not count_gpus():
        is_hidden = DRIVER.exists()
        yield Finding(
            "GPU",
            "a driver, and no GPU that torch can use" if is_hidden else "none",
            "wrong" if is_hidden else "lack",
            "training, scoring and generation run on the CPU, which is for small models",
            "pip install --force-reinstall torch" if is_hidden else "use a machine with an NVIDIA GPU",
        )
    for number, gpu in enumerate(describe_gpus()):
        found = f"{gpu.name}, {gigabytes(gpu.total_bytes)}, {gigabytes(gpu.free_bytes)} free"
        if gpu.capability >= LEAST_CAPABILITY:
            yield Finding(f"GPU {number}", found)
        else:
            costs = "it has neither bfloat16 nor flash attention"
            yield Finding(
                f"GPU {number}", found, "lack", costs, "set model.dtype: float32, or use an Ampere or newer GPU"
            )
    yield Finding("memory", _memory())
    precision, reason = find_precision()
    yield Finding("cores", f"{thread_count()} used; fastest number format: {precision} ({reason})")


def find_compiler(project: Project) -> Iterator[Finding]:
    """Looks where the project compiles; it takes some seconds."""
    if project.train.compile != "always":
        return
    if not (fault := compiler_fault(choose_device())):
        yield Finding("torch.compile", "works")
        return
    costs, command = "train.compile: always is an error", "apt install g++ python3-dev, or set train.compile: never"
    yield Finding("torch.compile", f"does not work: {fault}", "wrong", costs, command)


def _memory() -> str:
    if not MEMORY.is_file():
        return "unknown"
    lines = (line.split() for line in MEMORY.read_text(encoding="ascii").splitlines())
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in lines}
    return f"{gigabytes(1024 * kilobytes['MemTotal'])}, {gigabytes(1024 * kilobytes['MemAvailable'])} free"


def _optional_packages() -> Iterator[Finding]:
    for name, costs, extra in OPTIONAL:
        version = installed_version(name)
        if version is not None:
            yield Finding(name, version)
        elif count_gpus() or extra not in FOR_A_GPU:
            yield Finding(name, "not installed", "lack", costs, f"pip install 'codetune[{extra}]'")
        else:
            yield Finding(name, "not installed; of use with a GPU only")


def _sandbox() -> Iterator[Finding]:
    """Each tier is tried, by a program that attempts to escape."""
    failures = {tier: find_failure(tier) for tier in CONFINING_TIERS}
    working = [tier for tier, failure in failures.items() if failure is None]
    for tier, failure in failures.items():
        if failure is None:
            allowed = TIERS[tier].does_not_stop
            used = f"works, used{f'; does not stop {allowed}' if allowed else ''}"
            yield Finding(f"sandbox {tier}", used if tier == working[0] else "works")
        else:
            reason = failure.removeprefix(f"{tier}: ")
            costs = f"{working[0]} is used" if working else "no generated program is run, so evaluate stops"
            yield Finding(
                f"sandbox {tier}", f"does not work: {reason}", "lack" if working else "wrong", costs, TIERS[tier].remedy
            )


def _disks(context: RunContext) -> Iterator[Finding]:
    places = {
        "disk of the run": context.run.directory,
        "disk of temporary files": Path(tempfile.gettempdir()),
        "disk of the Hub cache": hub_cache(),
        "disk of the codetune cache": user_cache(),
    }
    for name, path in places.items():
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free
        found = f"{gigabytes(free)} free at {there}"
        if free >= LEAST_FREE_BYTES:
            yield Finding(name, found)
        else:
            costs = "a model of 7 B weights takes 14 GB"
            yield Finding(
                name, found, "lack", costs, f"free some space there: du -xh --max-depth 2 {there} | sort -h | tail"
            )


def _hub() -> Finding:
    reason = unreachable_hub()
    if reason is None:
        return Finding("Hugging Face Hub", "reachable")
    costs = "models and data sets must lie on this machine"
    command = "unset HF_HUB_OFFLINE" if reason == OFFLINE else "hf download NAME, where there is a network"
    return Finding("Hugging Face Hub", f"not reachable: {reason}", "lack", costs, command)


def _benchmarks(context: RunContext) -> Iterator[Finding]:
    """All that are published."""
    for spec in BENCHMARKS:
        if isinstance(spec.source, EvalPlusDownload | HubFile):
            yield _benchmark(context, spec.name, spec.source.variable)


def _benchmark(context: RunContext, name: str, variable: str) -> Finding:
    try:
        problems = problems_at_hand(context, name)
    except DataError as why:
        costs = "it cannot be evaluated"
        return Finding(f"benchmark {name}", str(why), "wrong", costs, f"unset {variable}, or name another file in it")
    if problems is not None:
        return Finding(f"benchmark {name}", f"{len(problems)} tasks")
    costs = "it is downloaded when it is first needed"
    return Finding(f"benchmark {name}", "not here", "lack", costs, f"codetune eval {name} --limit 1")
