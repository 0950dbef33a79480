"""`codetune plan`: what the project will do, take and cost, found without training: with the tokenizer and the model's
configuration alone. Writes nothing into the run, and downloads no weights.

Every figure says where it comes from; what is not known is None, and shown as unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from codetune import console
from codetune.benchmark.statistics import FEWEST_DIFFERING, least_difference
from codetune.data.token_cache import TokenCache, TokenizedRows, write_token_cache
from codetune.errors import DataError, UsageError
from codetune.launch.devices import gpu_memory_bytes, gpu_name
from codetune.launch.dispatch import process_count
from codetune.launch.environment import current_rank
from codetune.model.load import load_tokenizer, outline_of
from codetune.model.model_files import find_encoder, find_model_files, require_model
from codetune.project.keys import required
from codetune.project.sections import Precision, Project
from codetune.report.doubts import doubts
from codetune.report.failures import FailuresAhead, check_disk, check_stages, check_surroundings, disk_bytes
from codetune.report.launch_lines import launch_lines
from codetune.report.plan_parts import (
    CostPlan,
    MeasuredFigure,
    MemoryPlan,
    PlanOptions,
    RenderedRow,
    RowPlan,
    RowTokens,
    RunPlan,
    StepsPlan,
    TimePlan,
)
from codetune.report.speed import (
    PROBE_STEPS,
    Probe,
    Rate,
    card_memory,
    card_rate,
    is_this_machine,
    probed_rate,
    recorded_rate,
    run_probe,
)
from codetune.report.step_plan import SampleLengths, plan_epochs
from codetune.selection.cost import SelectionCost, scoring_flops, training_flops, variants
from codetune.selection.holdout import holdout_size
from codetune.selection.strategies import STRATEGIES
from codetune.stages.checks import is_pending
from codetune.stages.dataset import SOURCES, ensure_examples, examples_manifest
from codetune.stages.precision import with_precision
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext, StageRequest
from codetune.stages.status import stage_status
from codetune.stages.tasks_apart import check_measurable
from codetune.stages.train import TRAIN, with_chat_format
from codetune.store.digests import Digests
from codetune.store.examples import read_examples
from codetune.store.manifest import Manifest
from codetune.store.row_artefacts import read_selection
from codetune.store.run_directory import Run
from codetune.store.scratch import scratch_directory
from codetune.training import build_model, parallelism
from codetune.training.batch_sampler import StepSampler, samples_per_step, total_steps
from codetune.training.memory import (
    ModelShape,
    TrainingSetup,
    device_memory,
    nearest_fit,
    shape_of,
    trained_weights,
)
from codetune.training.parallelism import ModelSize
from codetune.training.plausibility import TrainingSize, implausible_settings
from codetune.training.train import require_trainable

MOST_ROWS_READ = 100_000  # tokenised; of more rows every nth
DIFFERING_TASKS = 0.2  # the share of tasks on which two models of similar strength usually differ


@dataclass(frozen=True, slots=True)
class _BaseModelFiles:
    """The base model without its weights, and the project with the chat format that is found where it names none."""

    project: Project
    directory: Path
    shape: ModelShape
    precision: Precision
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Samples:
    """The rows as they would be trained on."""

    cache: TokenCache
    rows: TokenizedRows
    lengths: SampleLengths


def make_plan(context: RunContext, options: PlanOptions) -> RunPlan:
    """Finds everything that can be found; errors that stages would end in are collected in `failures`. Raises
    UsageError for a card that is not known, or that a probe on this machine tells nothing of."""
    if options.card is not None:
        card_memory(options.card)
    if options.probe and not is_this_machine(options.card):
        raise UsageError(
            f"--probe measures this machine, and --gpu {options.card} plans for another. Expected: one of the two. "
            "Leave the other out"
        )
    ahead = FailuresAhead()
    check_surroundings(ahead)
    with scratch_directory() as scratch:
        run = Run(scratch / "run")
        read = RunContext(with_precision(context.project, run), run, Digests(run))
        return _Planning(context, read, options, ahead, scratch).plan()


@dataclass(frozen=True, slots=True)
class _Planning:
    """Makes the parts of one plan, in the order in which they need each other."""

    context: RunContext
    read: RunContext  # the same project with a scratch run, for which the data set is read
    options: PlanOptions
    ahead: FailuresAhead
    scratch: Path

    def plan(self) -> RunPlan:
        context, ahead = self.context, self.ahead
        manifest = ahead.attempt(partial(ensure_examples, self.read))
        self._check_models()
        model = ahead.attempt(self._model)
        project = model.project if model else self.read.project
        processes = _all_processes(project)
        self._check_training(project, model, processes)
        scorer = ahead.attempt(partial(self._scorer, model)) if model else None
        found = {
            "dataset.path": self.read.run.examples if manifest else None,
            "model.path": model.directory if model else None,
            "score.model": scorer,
        }
        with console.progress("plan: checks of the stages", None, "check"):
            tasks = check_stages(self.read, ahead, {key: path for key, path in found.items() if path is not None})
        samples = ahead.attempt(partial(self._samples, model)) if manifest and model else None
        rows = _row_plan(manifest, samples) if manifest and samples else None
        steps = memory = time = cost = example = rate = None
        if model and samples and rows:
            steps = ahead.attempt(partial(self._steps, model, samples, rows, processes))
            example = _rendered(model, samples)
            rate = ahead.attempt(partial(self._rate, model, samples, processes))
        if model and rows and steps:
            memory = ahead.attempt(partial(self._memory, model, steps, rows, processes))
            cost = ahead.attempt(partial(_cost, model, scorer, rows, steps))
            time = _time(cost, rate, processes, self.options.price_per_hour) if cost else None
        needed = _disk_bytes(model, rows) if model and rows else None
        return RunPlan(
            rows=rows,
            steps=steps,
            memory=memory,
            time=time,
            cost=cost,
            tasks=tasks,
            least_differences=_least_differences(tasks),
            example=example,
            command_lines=launch_lines(project, max(1, processes // project.launch.nodes)),
            disk_needed=needed,
            disk_free=check_disk(context, ahead, needed or 0),
            measured=self._measured(steps, memory, time),
            doubts=ahead.attempt(partial(doubts, project, rows, steps, memory)) or (),
            failures=ahead.found,
        )

    def _check_models(self) -> None:
        """Whether the weights of all models are there, or known to the Hub."""
        project, attempt = self.context.project, self.ahead.attempt
        strategy = STRATEGIES[project.select.strategy]
        for name in [project.model.path, project.score.model if strategy.needs_scores else None]:
            if name is not None:
                attempt(partial(require_model, project.locate(name)))
        if strategy.needs_embeddings and project.embed.model != "hashing":
            attempt(partial(require_model, project.locate(project.embed.model), find_encoder))

    def _model(self) -> _BaseModelFiles:
        """Raises ModelError for a model of which configuration or tokenizer cannot be read."""
        name = self.read.project.locate(required(self.read.project.model.path, "model.path"))
        directory = find_model_files(name, self.scratch / "model")
        project = with_chat_format(self.read.project, directory)
        precision = build_model.arithmetic_precision(project)
        return _BaseModelFiles(project, directory, shape_of(directory), precision, load_tokenizer(directory))

    def _check_training(self, project: Project, model: _BaseModelFiles | None, processes: int) -> None:
        """Where a card is named, the training is for another machine, and nothing is asked of this one."""
        run, request = self.context.run, StageRequest()
        if model and self.options.card is None:
            here = max(1, processes // project.launch.nodes)
            self.ahead.attempt(partial(require_trainable, project, model.directory, here, processes))
        if model:
            self.ahead.attempt(partial(check_measurable, self.read, project, model.directory))
        if run.model.exists():
            self.ahead.attempt(partial(is_pending, self.context, TRAIN, request, [(TRAIN, request)]))

    def _samples(self, model: _BaseModelFiles) -> _Samples:
        """Raises DataError where no row is left, ProjectError for rows that do not fit the model's window."""
        usable = examples_manifest(self.read).rows
        every = -(-usable // MOST_ROWS_READ)
        examples = islice(read_examples(self.read.run), 0, None, every)
        rows = TokenizedRows(
            console.track(examples, "plan: tokens", usable // every, "row"), model.project, model.tokenizer
        )
        cache = write_token_cache(rows, self.scratch / "tokens")
        if not len(cache):
            reasons = console.counts(Counter(refusal.kind for refusal in rows.dropped))
            raise DataError(
                f"No row is left to train on ({reasons}). Expected: at least one. Raise train.max_length, fix the "
                "data, or set a model.chat_format that can write them"
            )
        build_model.require_fit(outline_of(model.directory), model.project.train, cache)
        return _Samples(cache, rows, SampleLengths.of(cache))

    def _steps(self, model: _BaseModelFiles, samples: _Samples, rows: RowPlan, processes: int) -> StepsPlan | None:
        """None where select would take no row, which is a failure of its own."""
        training, project = model.project.train, model.project
        lengths, is_selected = samples.lengths, stage_status(self.context, SELECT).state == "done"
        count, share = _expected_rows(project, rows.rows), 1.0
        if is_selected:
            place = {row_id.decode(): index for index, row_id in enumerate(samples.cache.ids.tolist())}
            ids = [row.id for row in read_selection(self.context.run.selection)]
            known = [place[row_id] for row_id in ids if row_id in place]  # in the order of the training
            lengths, count = lengths.of_rows(known) if known else lengths, len(ids)
        if not count:
            return None
        count = max(1, int(count * len(samples.cache) / rows.tokenised))
        share = count * float(lengths.tokens.mean()) / rows.tokens.all
        epoch = plan_epochs(lengths, training, processes, project.seed, model.shape.width)
        step_samples, steps = samples_per_step(training, processes), total_steps(training, count, processes)
        size = TrainingSize(count, step_samples, steps, -(-count // step_samples), model.shape.width)
        implausible = implausible_settings(training, size)
        return StepsPlan(
            count, is_selected, share, step_samples, steps, epoch.padding_rates, epoch.largest, implausible
        )

    def _memory(self, model: _BaseModelFiles, steps: StepsPlan, rows: RowPlan, processes: int) -> MemoryPlan:
        """Raises ProjectError for a strategy that cannot work here."""
        launch, training = model.project.launch, model.project.train
        gpu_bytes = card_memory(self.options.card) if self.options.card else gpu_memory_bytes()
        trained = trained_weights(model.shape, training)
        size = ModelSize(trained, model.shape.weights - (trained if training.method == "full" else 0), gpu_bytes)
        choice = parallelism.choose_strategy(launch, training.method, processes, size)
        setup = TrainingSetup(training, model.precision, choice.strategy, processes, launch.offload)
        memory = device_memory(model.shape, setup, steps.largest)
        if gpu_bytes is None or memory.fits(gpu_bytes):
            return MemoryPlan(choice, processes, memory, gpu_bytes, None if gpu_bytes is None else True, None)
        nearest = nearest_fit(model.shape, setup, steps.largest, rows.longest, gpu_bytes)
        return MemoryPlan(choice, processes, memory, gpu_bytes, False, nearest)

    def _rate(self, model: _BaseModelFiles, samples: _Samples, processes: int) -> Rate | None:
        project, weights, card = model.project, model.shape.weights, self.options.card or gpu_name()
        if not is_this_machine(self.options.card):
            return card_rate(card, model.precision, processes) if card else None
        if self.options.probe:
            return probed_rate(self._probe(model, samples), project, weights, processes)
        is_done = stage_status(self.context, TRAIN).state == "done"
        recorded = recorded_rate(project, self.context.run, weights, processes, with_own=not is_done)
        return recorded or (card_rate(card, model.precision, processes) if card else None)

    def _probe(self, model: _BaseModelFiles, samples: _Samples) -> Probe:
        """Raises DataError where there are rows for one step only."""
        step_samples = samples_per_step(model.project.train, 1)
        ids = {row_id.decode() for row_id in samples.cache.ids[: step_samples * PROBE_STEPS]}
        rows = [row for row in read_examples(self.read.run) if row.id in ids]
        tokens = samples.lengths.tokens
        steps = [int(tokens[step].sum()) for step in StepSampler(len(rows), step_samples, model.project.seed)]
        if len(steps) < 2:
            raise DataError(
                f"--probe needs more rows than those of one step ({step_samples}). Found: {len(rows)}. Leave it out, "
                "or lower train.per_device_batch_size"
            )
        return run_probe(rows, steps[:PROBE_STEPS], model.project, model.directory, self.scratch)

    def _scorer(self, model: _BaseModelFiles) -> Path | None:
        """None where the strategy needs no scores. Raises ModelError for a model that cannot be found."""
        if not STRATEGIES[model.project.select.strategy].needs_scores:
            return None
        name = model.project.score.model
        return find_model_files(model.project.locate(name), self.scratch / "scorer") if name else model.directory

    def _measured(
        self, steps: StepsPlan | None, memory: MemoryPlan | None, time: TimePlan | None
    ) -> list[MeasuredFigure]:
        """The finished training of just this project beside its plan."""
        found = stage_status(self.context, TRAIN)
        if found.state != "done" or found.manifest is None or steps is None:
            return []
        planned_bytes = memory.memory.total if memory and memory.gpu_bytes else None
        facts, mode = found.manifest.facts, self.context.project.train.pad_mode
        return [
            MeasuredFigure("rows", steps.rows, found.manifest.rows),
            MeasuredFigure("steps", steps.steps, facts["steps"]),
            MeasuredFigure("padding rate", steps.padding_rates[mode], facts["padding_rate"]),
            MeasuredFigure("peak GPU memory, bytes", planned_bytes, facts["peak_memory_bytes"]),
            MeasuredFigure("training, seconds", time.train_seconds if time else None, facts["seconds"]),
        ]


def _all_processes(project: Project) -> int:
    rank = current_rank()
    return rank.world_size if rank.world_size > 1 else process_count(project) * project.launch.nodes


def _row_plan(manifest: Manifest, samples: _Samples) -> RowPlan:
    tokenised = len(samples.cache) + len(samples.rows.dropped)
    scale = manifest.rows / tokenised
    tokens, learned = int(samples.lengths.tokens.sum()), int(samples.lengths.learned.sum())
    return RowPlan(
        rows=manifest.rows,
        refused=manifest.refused,
        sources=manifest.facts.get(SOURCES, {}),
        tokenised=tokenised,
        dropped=Counter(refusal.kind for refusal in samples.rows.dropped),
        truncated=samples.rows.truncated_rows,
        lost_tokens=samples.rows.lost_tokens,
        tokens=RowTokens(scale * (tokens - learned), scale * learned),
        longest=samples.cache.longest,
    )


def _expected_rows(project: Project, usable: int) -> int:
    """At most so many: rows that are set aside before the strategy are not known yet."""
    rows = usable - holdout_size(project.train.holdout, usable)
    if project.select.strategy == "all":
        return rows
    return min(rows, project.select.count) if project.select.count else int(rows * project.select.ratio)


def _cost(model: _BaseModelFiles, scorer: Path | None, rows: RowPlan, steps: StepsPlan) -> CostPlan:
    """Raises ModelError for a scorer whose configuration describes no network."""
    project = model.project
    epochs = min(float(project.train.epochs), steps.steps * steps.samples_per_step / max(1, steps.rows))
    tokens, share, scoring = rows.tokens, min(1.0, steps.token_share), 0.0
    if scorer is not None:
        answer_passes = 2 if project.score.empty_prompt else 1
        scoring = scoring_flops(shape_of(scorer).weights, tokens.all, tokens.answer, answer_passes)
    epoch = training_flops(model.shape.weights, tokens.all, is_full=project.train.method == "full")
    cost = SelectionCost(tokens.all, share * tokens.all, scoring, epoch, share * epoch)
    return CostPlan(cost, epochs, variants(cost, epochs) if scoring else ())


def _time(planned: CostPlan, rate: Rate | None, processes: int, price: float | None) -> TimePlan:
    if rate is None:
        return TimePlan(None, None, None, None)
    score, train = (flops / rate.flops_per_second for flops in (planned.cost.scoring, planned.train_selected))
    hours = (score + train) / 3600
    return TimePlan(rate, score, train, None if price is None else hours * processes * price)


def _disk_bytes(model: _BaseModelFiles, rows: RowPlan) -> int:
    strategy = STRATEGIES[model.project.select.strategy]
    return disk_bytes(
        model.shape,
        model.project.train,
        rows.rows,
        with_scores=strategy.needs_scores,
        with_embeddings=strategy.needs_embeddings,
    )


def _least_differences(tasks: Mapping[str, int]) -> dict[str, float]:
    """The least difference of each benchmark, and of all together; above 1 for fewer than 6 tasks, which find none."""
    sizes = dict(tasks) | ({"together": sum(tasks.values())} if len(tasks) > 1 else {})
    return {
        name: max(least_difference(count, DIFFERING_TASKS), FEWEST_DIFFERING / count)
        for name, count in sizes.items()
        if count
    }


def _rendered(model: _BaseModelFiles, samples: _Samples) -> RenderedRow:
    """The row of median length."""
    order = np.argsort(samples.lengths.tokens, kind="stable")
    sample = samples.cache[int(order[len(order) // 2])]
    cuts = [0, *(np.flatnonzero(np.diff(sample.learned)) + 1).tolist(), len(sample)]
    pieces = [
        (bool(sample.learned[start]), end - start, str(model.tokenizer.decode(sample.tokens[start:end].tolist())))
        for start, end in pairwise(cuts)
    ]
    return RenderedRow(sample.id, pieces)
