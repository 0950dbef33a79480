"""Settings of a project that are valid one by one and not together: the key to change and a message for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from codetune.project.sections import Project, StageName

# What each strategy can move to CPU memory; the others, nothing.
OFFLOADS = {
    "fsdp": ("none", "all"),
    "zero1": ("none", "optimizer"),
    "zero2": ("none", "optimizer"),
    "zero3": ("none", "optimizer", "all"),
}


def dataset_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    """A mistake for each data set of a list that has no path, or no name of its own."""
    if not isinstance(project.dataset, list):
        return
    names = [dataset.name for dataset in project.dataset]
    for index, dataset in enumerate(project.dataset):
        if dataset.path is None:
            yield f"dataset.{index}.path", "not set. Name a file, a directory, a glob or a Hub data set"
        if dataset.name is None:
            yield f"dataset.{index}.name", "not set. Give each data set a name: its rows are counted by it"
        elif dataset.name in names[:index]:
            yield f"dataset.{index}.name", f"{dataset.name} is the name of another data set. Give each one of its own"


def _scoring_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    if "{instruction}" not in project.score.prompt:
        expected = "expected a text that contains it, such as 'Question:\\n{instruction}\\n'"
        yield "score.prompt", f"holds no {{instruction}}; {expected}"


def _selection_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    if project.select.strategy == "sifd" and project.score.token_differences is False:
        yield "score.token_differences", "false, and select.strategy sifd needs them. Set auto, or another strategy"
    if project.select.strategy == "all" and project.select.count is not None:
        message = f"{project.select.count}, and select.strategy all takes every row. Set null, or another strategy"
        yield "select.count", message


def _training_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    train = project.train
    if train.save_minutes is None and train.save_steps is None:
        yield "train.save_steps", "null, and so is train.save_minutes: no checkpoint would ever be written. Set one"
    if not train.pack_isolation and train.pad_mode not in ("dynamic_pack", "paper_pack"):
        yield (
            "train.pack_isolation",
            f"false lets packed samples see each other, and train.pad_mode {train.pad_mode} packs none. Set "
            "train.pad_mode to dynamic_pack or paper_pack, or train.pack_isolation to true",
        )
    if train.method == "qlora" and train.quantization.bits == 8 and train.quantization.type == "fp4":
        message = "fp4 is a format of 4 bits, and train.quantization.bits is 8. Set train.quantization.bits to 4"
        yield "train.quantization.type", message
    if train.method == "full" and project.model.dtype == "float16":
        yield (
            "model.dtype",
            "float16 cannot train all weights (its gradients overflow). Set bfloat16 or float32, or train.method: lora",
        )
    if train.method != "full" and train.lora.dora and not train.merge:
        yield (
            "train.lora.dora",
            "true, and transformers would load such adapters without their trained lengths, as another model. Set "
            "train.merge: true (it keeps the adapters as well, for peft), or train.lora.dora: false",
        )
    if not train.is_evaluated:
        for name, value in (("evaluate_steps", train.evaluate_steps), ("patience", train.patience)):
            if value is not None:
                message = (
                    f"{value}, and train.holdout is 0: there are no rows to evaluate on. Set train.holdout, or null"
                )
                yield f"train.{name}", message
    yield from _task_conflicts(project)
    yield from _launch_conflicts(project)


def _task_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    """Of the tasks that pass@1 is measured on while the model is trained."""
    train, reported = project.train, project.evaluate.benchmarks
    if train.tasks is None:
        if train.keep_best == "pass@1":
            message = "pass@1, and train.tasks names no benchmark to measure it on. Set train.tasks to one that is not"
            yield "train.keep_best", f"{message} reported (expected: not among {', '.join(reported)}), or set loss"
        if train.task_count is not None:
            yield (
                "train.task_count",
                f"{train.task_count}, and train.tasks names no benchmark. Set train.tasks, or null",
            )
    elif train.keep_best != "pass@1":
        kept = train.keep_best or "null"
        yield "train.tasks", f"{train.tasks}, and train.keep_best is {kept}. Set train.keep_best: pass@1, or null here"
    elif train.tasks in reported and train.task_count is None:
        message = f"{train.tasks}, which evaluate.benchmarks reports: tasks that chose the weights prove nothing about"
        yield "train.tasks", f"{message} them. Name another benchmark, set train.task_count, or take it out there"
    elif project.launch.strategy in ("fsdp", "zero3"):
        message = f"{project.launch.strategy} leaves no process the whole model, and train.keep_best pass@1 generates"
        yield "launch.strategy", f"{message} with it. Set ddp or zero2, or train.keep_best: loss"


def _launch_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    strategy, offload = project.launch.strategy, project.launch.offload
    possible = OFFLOADS.get(strategy, ("none",))
    if strategy in ("fsdp", "zero3") and project.train.method == "qlora":
        yield "launch.strategy", f"{strategy} shards weights, and quantised weights cannot be sharded. Set ddp or zero2"
    elif offload not in possible:
        fix = f"Set {' or '.join(possible)}"
        yield "launch.offload", f"{offload} is not possible with launch.strategy {strategy}. {fix}"


def _generation_conflicts(project: Project) -> Iterator[tuple[str, str]]:
    generate = project.generate
    if generate.samples_per_task > 1 and generate.temperature == 0:
        yield (
            "generate.samples_per_task",
            f"{generate.samples_per_task} samples of a task are all the same with greedy decoding. Set "
            "generate.temperature above 0, or generate.samples_per_task to 1",
        )


# For each stage key and message of every pair of its settings that are valid one by one and not together.
CONFLICTS: Mapping[StageName, Callable[[Project], Iterator[tuple[str, str]]]] = {
    "score": _scoring_conflicts,
    "select": _selection_conflicts,
    "train": _training_conflicts,
    "generate": _generation_conflicts,
}
