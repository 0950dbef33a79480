"""What is known of a trained model -> the text of its card, in Markdown with the front matter that the Hub reads.

The results have places of their own, between marks, so that they can be filled in when they come: whatever a user
writes around them stays. Text of the user is escaped; names of files come without their directories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codetune.console import percent, quantity
from codetune.data.hub_upload import TASK, MeasuredResult, front_matter, results_matter
from codetune.records import BASE, TUNED
from codetune.store.manifest import Manifest
from codetune.text import markdown

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import ModelComparison, PairedTest, Report
    from codetune.benchmark.likelihood import LikelihoodReport

MARKS = ("# codetune: results", "# codetune: end of results")  # in the front matter
TEXT_MARKS = ("<!-- codetune: results -->", "<!-- codetune: end of results -->")
COMMAND = "codetune run"
TITLES = {BASE: "the base model", TUNED: "this model"}
VERSIONS = "versions"  # fact of train: package -> the version that trained


@dataclass(frozen=True, slots=True)
class Source:
    """A data set, or the base model, by the name that others know it by."""

    name: str
    is_on_hub: bool


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What is known when the training ends. None for an artefact that is no longer what the model was made of."""

    name: str
    base: Source
    datasets: Sequence[Source]
    licence: Mapping[str, str]  # fields of the front matter
    training: Manifest
    selection: Manifest | None
    reading: Manifest | None  # of examples.jsonl
    project_file: str


@dataclass(frozen=True, slots=True)
class BenchmarkResults:
    """The reports of one benchmark, of this model last and of its base before it, if there is one."""

    reports: Sequence[Report]
    how: Mapping[str, Mapping[str, object]]  # label -> the settings that made the model answer
    comparison: Sequence[ModelComparison]  # one, where there are two reports

    @property
    def own(self) -> Report:
        """That of this model."""
        return self.reports[-1]

    @property
    def part(self) -> str:
        """How many tasks of how many it is of; empty for the whole benchmark."""
        tasks, whole = self.own["tasks"], self.own["tasks_in_benchmark"]
        return "" if tasks == whole else f"{tasks:,} of {whole:,}"


def card(facts: CardFacts, is_adapter: bool) -> str:
    """The card without results. `is_adapter`: of adapters alone, which peft loads over the base model."""
    fields = {
        "base_model": facts.base.name if facts.base.is_on_hub else "",
        "datasets": [source.name for source in facts.datasets if source.is_on_hub],
        **facts.licence,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": TASK,
        "tags": ["codetune", "code", *([str(facts.training.settings["train.method"])] if is_adapter else [])],
    }
    places = "\n".join(MARKS)
    sections = [
        f"---\n{front_matter(fields)}{places}\n---",
        f"# {markdown(facts.name)}",
        _introduction(facts, is_adapter),
        f"## Results\n\n{TEXT_MARKS[0]}\n{TEXT_MARKS[1]}",
        f"## Data\n\n{_lines(_data(facts))}",
        f"## Selection\n\n{_lines(_selection(facts))}",
        f"## Training\n\n{_lines(_training(facts.training))}\n\n{_settings(facts.training)}",
        f"## How to repeat it\n\n{_repetition(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def with_results(
    text: str, model: str, results: Sequence[BenchmarkResults], losses: Mapping[str, LikelihoodReport]
) -> str:
    """A card with these results in the places for them; a place whose marks somebody has removed is left out.
    `losses`: of the models `base` and `tuned` on the held-out rows."""
    measured = [
        MeasuredResult(found.own["benchmark"], _tests(found, suite), name, round(value, 6))
        for found in results
        for suite, values in found.own["pass_at_k"].items()
        for name, value in values.items()
    ]
    filled = _between(text, MARKS, results_matter(model, measured))
    return _between(filled, TEXT_MARKS, "\n".join(_results(results, losses)) + "\n")


def _tests(found: BenchmarkResults, suite: str) -> str:
    """What the Hub shows beside the benchmark's name, so that a part is not taken for the whole."""
    return f"{found.part} tasks, {suite} tests" if found.part else f"{suite} tests"


def _between(text: str, marks: tuple[str, str], content: str) -> str:
    """`text` with `content` instead of all lines between the two marks, which are lines of their own."""
    begin, end = map(re.escape, marks)
    return re.sub(f"(?ms)^{begin}$.*?^{end}$", lambda _: f"{marks[0]}\n{content}{marks[1]}", text, count=1)


def _introduction(facts: CardFacts, is_adapter: bool) -> str:
    training = facts.training
    data = ", ".join(markdown(source.name) for source in facts.datasets)
    adapters = f" These are adapters: load them over {markdown(facts.base.name)} with peft." if is_adapter else ""
    return (
        f"{markdown(facts.base.name)}, fine-tuned (method {training.settings['train.method']}) on "
        f"{quantity(training.rows, 'row')} of {data} by codetune {training.version} on {training.day}.{adapters} "
        f"Prompts are chats: the template of the tokenizer writes them as in the training (format "
        f"{training.settings.get('model.chat_format')})."
    )


def _results(results: Sequence[BenchmarkResults], losses: Mapping[str, LikelihoodReport]) -> Iterator[str]:
    if not results and not losses:
        yield "Not evaluated yet."
    if results:
        yield "| benchmark | tasks | tests | figure | base | this model | difference |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        yield from (row for found in results for row in _benchmark_rows(found))
        yield ""
        yield "In brackets: 95 % intervals. A difference is told apart if these tasks can show one of its size."
        if any(found.part for found in results):
            yield "Where a part of the tasks is counted, the others chose the weights (train.tasks)."
        yield ""
        yield from (line for found in results for line in _ways(found))
    for label, title in TITLES.items():
        if label in losses:
            found, (low, high) = losses[label], losses[label]["interval_95"]
            rows = quantity(found["rows"], "held-out row")
            yield f"- Loss of {title} on {rows}: {found['nats_per_token']:.4f} ({low:.4f} to {high:.4f}) nats a token"


def _benchmark_rows(found: BenchmarkResults) -> Iterator[str]:
    tests: dict[str, PairedTest] = {}
    for compared in found.comparison:
        tests = {"base": compared["base"], "plus": compared["plus"]}
    for suite, values in found.own["pass_at_k"].items():
        for name in values:
            base = _figure(found.reports[0], suite, name) if tests else ""
            difference = _difference(tests[suite]) if tests and name == "pass@1" else ""
            tasks = found.part or f"{found.own['tasks']:,}"
            about = [markdown(found.own["benchmark"]), tasks, suite, name]
            yield f"| {' | '.join([*about, base, _figure(found.own, suite, name), difference])} |"


def _figure(report: Report, suite: str, name: str) -> str:
    if name not in report["pass_at_k"][suite]:  # the two were judged with another k
        return ""
    low, high = report["interval_95"][suite][name]
    return f"{percent(report['pass_at_k'][suite][name])} ({100 * low:.1f} to {100 * high:.1f})"


def _difference(found: PairedTest) -> str:
    low, high = found["interval_95"]
    points = f"{100 * found['difference']:+z.1f} points ({100 * low:+z.1f} to {100 * high:+z.1f})"
    return f"{points}, {'' if found['told_apart'] else 'not '}told apart"


def _ways(found: BenchmarkResults) -> Iterator[str]:
    """How each model was made to answer: the two may have been prompted in different ways."""
    for label, settings in found.how.items():
        said = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in sorted(settings.items()))
        yield f"- {markdown(found.own['benchmark'])}, {TITLES[label]}: {markdown(said)}"


def _data(facts: CardFacts) -> Iterator[str]:
    reading = facts.reading
    for source in facts.datasets:
        yield f"{markdown(source.name)}, {'on the Hugging Face Hub' if source.is_on_hub else 'of local files'}"
    if reading is None:
        yield "The rows as they were read are no longer in the run directory."
        return
    yield f"SHA-256 over files (or commit) and split: `{reading.inputs['dataset']}`"
    yield f"{quantity(reading.rows, 'usable row')}; refused: {_counts(reading.refused)}"
    for name, count in reading.facts.get("row_formats", {}).items():
        yield f"row format {name}: {quantity(count, 'row')}"


def _selection(facts: CardFacts) -> Iterator[str]:
    selection = facts.selection
    if selection is None:
        yield "The selection that this model was trained on is no longer in the run directory."
        return
    settings = {key.partition(".")[2]: value for key, value in selection.settings.items() if key.startswith("select.")}
    yield f"strategy `{settings.pop('strategy')}`: {quantity(selection.rows, 'row')} taken"
    yield f"set aside: {_counts(selection.refused)}"
    if test := selection.facts.get("mismatch_test"):
        power = "" if test["has_power"] else ", too few to be used"
        caught, mismatched = percent(test["caught"]), percent(test["estimated_mismatched"])
        yield f"mismatch test: finds {caught} of {test['pairs']:,} shuffled pairs{power}"
        yield f"mismatched rows, estimated: {mismatched}"
    for name, count in selection.facts.get("taken_by_source", {}).items():
        yield f"taken from {markdown(name)}: {quantity(count, 'row')}"
    yield f"settings: {', '.join(f'{key} {_value(value)}' for key, value in settings.items())}"


def _training(training: Manifest) -> Iterator[str]:
    facts = training.facts
    loss = f", last loss {facts['last_loss']:.4f}" if facts["last_loss"] is not None else ""
    padding = percent(facts["padding_rate"])
    yield f"{quantity(facts['steps'], 'step')}, {facts['tokens']:,} tokens, padding {padding}{loss}"
    yield f"rows left out: {_counts(training.refused)}; truncated: {facts['truncated_rows']:,}"
    if held := facts.get("holdout"):
        yield (
            f"loss on {quantity(held['rows'], 'held-out row')}: {held['loss']:.4f} nats a token, with the weights of "
            f"step {held['step']:,}"
        )
    if apart := facts.get("tasks_apart"):
        tasks = f"{quantity(apart['tasks'], 'task')} of {markdown(training.names['train.tasks'])}"
        yield f"pass@1 {percent(apart['pass_rate'])} on {tasks} chose the weights of step {apart['step']:,}"
    yield f"{facts['seconds']:,.0f} s in the steps, processes: {facts['processes']} ({facts['strategy']})"
    versions = {"codetune": training.version, **facts.get(VERSIONS, {})}
    yield f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"
    yield f"SHA-256 over the files of the base model: `{training.inputs['base']}`"


def _settings(training: Manifest) -> str:
    """All that the model depends on, beside the rows and the base model."""
    rows = [f"| {key} | {_value(value)} |" for key, value in training.settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _repetition(facts: CardFacts) -> str:
    local = [markdown(source.name) for source in (*facts.datasets, facts.base) if not source.is_on_hub]
    beside = f", beside {' and '.join(dict.fromkeys(local))}" if local else ""
    said = (
        f"With codetune {facts.training.version} and the versions above, save this as `codetune.yaml`{beside}, and run "
        f"`{COMMAND}` there."
    )
    folded = f"<details><summary>codetune.yaml</summary>\n\n```yaml\n{facts.project_file}```\n\n</details>"
    return f"{said}\n\n{folded}"


def _value(value: object) -> str:
    return markdown(json.dumps(value, ensure_ascii=False))


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{markdown(reason)} {count:,}" for reason, count in reasons.items()) or "none"


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
