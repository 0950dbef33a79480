"""The stages as functions, for tests that run one after the other in their own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.benchmark.benchmarks import Benchmark
from codetune.launch.environment import Shard
from codetune.records import ModelRef
from codetune.stages.benchmarks import benchmark_of_samples, open_benchmark, samples_request
from codetune.stages.embed import EMBED
from codetune.stages.evaluate import EVALUATE, read_report
from codetune.stages.generate import GENERATE
from codetune.stages.runner import run_stage
from codetune.stages.sanitize import SANITIZE
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext, StageRequest, StageResult
from codetune.stages.train import TRAIN
from codetune.workflow import model_request

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report


def score(context: RunContext, shard: Shard | None = None) -> StageResult:
    return run_stage(context, SCORE, StageRequest(shard=shard))


def embed(context: RunContext, shard: Shard | None = None) -> StageResult:
    return run_stage(context, EMBED, StageRequest(shard=shard))


def select(context: RunContext) -> StageResult:
    return run_stage(context, SELECT)


def train(context: RunContext, *, replacing: bool = False) -> StageResult:
    return run_stage(context, TRAIN, StageRequest(replace=replacing))


def generate(context: RunContext, tasks: Benchmark, model: ModelRef) -> StageResult:
    return run_stage(context, GENERATE, model_request(tasks, model))


def sanitize(context: RunContext, tasks: Benchmark, model: ModelRef) -> StageResult:
    return run_stage(context, SANITIZE, model_request(tasks, model))


def evaluate(context: RunContext, tasks: Benchmark, model: ModelRef, part: Benchmark | None = None) -> Report:
    """On `part` of the tasks, where one is given."""
    request = model_request(part or tasks, model, tasks)
    return read_report(run_stage(context, EVALUATE, request).artefact)


def sanitize_file(context: RunContext, path: Path) -> StageResult:
    tasks = open_benchmark(context, benchmark_of_samples(context, path))
    return run_stage(context, SANITIZE, samples_request(context, tasks, path))


def evaluate_file(context: RunContext, tasks: Benchmark, path: Path, complete: bool = False) -> Report:
    request = replace(samples_request(context, tasks, path), complete=complete)
    return read_report(run_stage(context, EVALUATE, request).artefact)
