"""train, with `keep_best: pass@1`: which tasks choose the weights, and how a network in training answers them. The
answers are made, sanitized and judged by the code of the stages generate, sanitize and evaluate.

One answer for each task, greedy, of at most `generate.max_new_tokens`: no random number is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from codetune.benchmark.benchmarks import benchmark_digest, read_problems, runnable
from codetune.benchmark.evalplus_format import pair_with_problems
from codetune.errors import InputError, first_line
from codetune.launch.environment import thread_count
from codetune.launch.workers import JSON
from codetune.project.sections import Project
from codetune.records import Completion, Problem, PromptKind, Solution
from codetune.stages.benchmarks import open_whole_benchmark, tasks_apart, tasks_apart_at_hand
from codetune.stages.sandbox import expected_outputs, prepare_expected, working_tier
from codetune.stages.stage import Input, Resolved, RunContext, SealedArtefact, Settings, StageRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from codetune.launch.process_group import ProcessGroup
    from codetune.training.tasks_apart import TaskMeasure

TASKS = "tasks"  # the name of the input of train
PROMPT, MAX_NEW_TOKENS = "generate.prompt", "generate.max_new_tokens"


def tasks_apart_input(project: Project) -> Sequence[Input]:
    """The tasks that choose the weights, by their content."""
    if project.train.keep_best != "pass@1":
        return ()
    return (Input(TASKS, _resolve, _change, setting="train.tasks"),)


def measuring_settings(project: Project) -> Settings:
    """The settings beside those of train that decide pass@1, and with it which weights are kept."""
    if project.train.keep_best != "pass@1":
        return {}
    settings = {PROMPT: _kind(project), MAX_NEW_TOKENS: project.generate.max_new_tokens}
    return {**settings, "train.task_count": project.train.task_count}


def check_measurable(context: RunContext, project: Project, model: Path) -> None:
    """Raises what measuring pass@1 would raise hours later: UsageError and DataError for the tasks, CodetuneError where
    no sandbox tier works, InputError where expected outputs cannot be kept, ModelError where the chat template takes
    no task. `project` has the chat format of the training."""
    if project.train.keep_best != "pass@1":
        return
    problems = tasks_apart(context)
    working_tier(project.evaluate.sandbox)
    expected_outputs()
    if _kind(project) == "chat":
        from codetune.benchmark.generate import chat_text

        chat_text(problems[0], _tokenizer(project, model))


def prepare_tasks(context: RunContext) -> dict[str, JSON] | None:
    """What each process needs to know of the tasks, as JSON; None where none are measured. Computes the expected
    outputs that the user's cache lacks."""
    project = context.project
    if project.train.tasks is None:
        return None
    tier, problems = working_tier(project.evaluate.sandbox), tasks_apart(context)
    prepare_expected(project.train.tasks, problems, tier)
    file = open_whole_benchmark(context, project.train.tasks).file
    return {"file": str(file), "task_ids": [problem.task_id for problem in problems], "tier": tier}


def task_measure(
    tasks: Mapping[str, Any] | None, project: Project, model: Path, group: ProcessGroup
) -> TaskMeasure | None:
    """`tasks` are what `prepare_tasks` returned, `model` is the directory of the base model."""
    from codetune.training.tasks_apart import TaskMeasure

    if tasks is None:
        return None
    task_ids = set(tasks["task_ids"])
    problems = [problem for problem in read_problems(Path(tasks["file"])) if problem.task_id in task_ids]
    judge = _Judge.of(problems, tasks["tier"], project, model, group)
    return TaskMeasure(benchmark_digest(problems), len(problems), judge.judge)


@dataclass(frozen=True, slots=True)
class _Judge:
    """One rank's part: it answers every Nth task; rank 0 judges the answers of all."""

    problems: Sequence[Problem]
    tier: str
    project: Project
    tokenizer: PreTrainedTokenizerBase
    group: ProcessGroup

    @classmethod
    def of(cls, problems: Sequence[Problem], tier: str, project: Project, model: Path, group: ProcessGroup) -> Self:
        return cls(problems, tier, project, _tokenizer(project, model), group)

    def judge(self, network: PreTrainedModel) -> tuple[int, int]:
        """How many tasks passed, and how many were judged here. Raises InputError where none can be asked."""
        answers = [row for part in self.group.gather(json.dumps(self._answers(network))) for row in json.loads(part)]
        if all(refused for _, _, refused in answers):
            raise InputError(
                f"No task of {self.project.train.tasks} can be asked ({answers[0][2]}). Expected: room for prompts and "
                "answers. Set train.tasks to a benchmark with shorter prompts"
            )
        if not self.group.is_first:
            return 0, 0
        kinds = {kind.__name__: kind for kind in (Completion, Solution)}
        samples = [kinds[kind](**sample) for kind, sample, _ in answers]
        return self._count_passed(samples), len(self.problems)

    def _count_passed(self, samples: Sequence[Completion | Solution]) -> int:
        """How many samples pass all tests of their tasks: what sanitize and evaluate do, without artefacts."""
        from codetune.benchmark.judge import judge
        from codetune.benchmark.sanitize_all import sanitize_all

        pairs, workers = pair_with_problems(self.problems, samples), thread_count()
        solutions = [runnable(pairs[at][0], clean.solution) for at, clean in sanitize_all(pairs, workers)]
        verdicts = judge(self.problems, solutions, expected_outputs(), workers, self.tier)
        return sum(verdict.plus == "pass" for verdict in verdicts)

    def _answers(self, network: PreTrainedModel) -> list[tuple[str, dict[str, object], str]]:
        """Of this rank: the kind of sample, its fields, and the reason where a task cannot be asked."""
        from codetune.benchmark.generate import generate
        from codetune.data.chat import stop_strings
        from codetune.model.batch_generator import BatchGenerator

        kind, chat_format = _kind(self.project), self.project.model.chat_format
        assert chat_format is not None
        greedy = {"prompt": kind, "samples_per_task": 1, "temperature": 0.0}
        settings = self.project.generate.model_copy(update=greedy)
        end_of_turn = stop_strings(chat_format) if kind == "chat" else ()
        decoder = BatchGenerator(network, self.tokenizer, end_of_turn, settings)
        work = [(problem, 0) for problem in self.problems[self.group.member.rank :: self.group.count]]
        made = generate(work, self.tokenizer, decoder, settings, self.project.seed)
        return [(type(each.sample).__name__, asdict(each.sample), each.refused) for each in made]


def _tokenizer(project: Project, model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the trained model: that of the base model with the chat template of the training."""
    from codetune.model.load import load_trained_tokenizer

    return load_trained_tokenizer(project.run_dir, model, project.model.chat_format)


def _kind(project: Project) -> PromptKind:
    """How the trained model is asked: as a chat, unless the project says otherwise."""
    return "chat" if project.generate.prompt == "auto" else project.generate.prompt


def _resolve(context: RunContext, request: StageRequest) -> Resolved:
    problems = tasks_apart(context)
    assert context.project.train.tasks is not None
    return Resolved(benchmark_digest(problems), open_whole_benchmark(context, context.project.train.tasks).file)


def _change(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    """Only where the tasks are on this machine: a missing file does not make a model stale."""
    try:
        problems = tasks_apart_at_hand(context)
    except InputError as why:
        return f"the tasks of train.tasks, by which {sealed.path} was chosen, cannot be read: {first_line(why)}"
    if problems is None or benchmark_digest(problems) == sealed.manifest.inputs[TASKS]:
        return ""
    return f"the tasks of train.tasks (or train.task_count) are not those by which {sealed.path} was chosen"
