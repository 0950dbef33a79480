"""What every benchmark leaves behind: a JSON document, most in `results/`, with its machine and versions."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

DIRECTORY_VARIABLE = "CODETUNE_RECORDS"  # another directory for the records, as in a rehearsal
RESULTS = Path(os.environ.get(DIRECTORY_VARIABLE, Path(__file__).parent / "results"))
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx")
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "sentence-transformers")


def write_record(name: str, settings: dict[str, Any], figures: Any, directory: Path | None = None) -> Path:
    # A rehearsal sets the variable after this module is imported.
    results = directory or Path(os.environ.get(DIRECTORY_VARIABLE, RESULTS))
    results.mkdir(exist_ok=True)
    path, new = results / f"{name}.json", results / f"{name}.json.new"
    document = {"device": device(), "versions": versions(), "settings": settings, "figures": figures}
    new.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    new.replace(path)  # a run that is stopped leaves the record before
    return path


def device() -> dict[str, Any]:
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    found["processor"] = _processor()
    found["instructions"] = _instructions()
    found["load_average"] = os.getloadavg()[0]  # above the cores: others were at work, and processor time says more
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory}
    return found


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _instructions() -> list[str]:
    """Those that decide how fast a matrix is multiplied."""
    return [flag for flag in _cpuinfo("flags").split() if flag.startswith(INSTRUCTIONS)]


def _cpuinfo(key: str) -> str:
    """The first value of a key; "" where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
