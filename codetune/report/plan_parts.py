"""The parts of a plan: what `plan.py` finds and `plan_text.py` shows. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codetune.data.mixture import SourceCounts
from codetune.project.sections import PadMode
from codetune.report.speed import Rate
from codetune.selection.cost import CostVariant, SelectionCost
from codetune.training.memory import DeviceMemory, LargestMicroBatch, TrainingSetup
from codetune.training.parallelism import StrategyChoice


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the user adds to the project: a price for an hour of a GPU, a card to plan for, and whether to measure."""

    price_per_hour: float | None
    card: str | None
    probe: bool


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Sums over the rows of a data set."""

    prompt: float
    answer: float

    @property
    def all(self) -> float:
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The rows of the data set. Of `tokenised` of them lengths are known; figures of all are scaled from these."""

    rows: int
    refused: Mapping[str, int]
    sources: Mapping[str, SourceCounts]  # of several data sets, by name
    tokenised: int
    dropped: Mapping[str, int]  # by train, with its settings
    truncated: int
    lost_tokens: int
    tokens: RowTokens  # of all rows
    longest: int


@dataclass(frozen=True, slots=True)
class StepsPlan:
    """The training. Without a selection `rows` is the most that there can be, and the padding that of all rows."""

    rows: int
    is_selected: bool  # the rows are those of a selection that is done
    token_share: float  # of the tokens of all rows
    samples_per_step: int
    steps: int
    padding_rates: Mapping[PadMode, float]
    largest: LargestMicroBatch
    doubts: Sequence[str]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of each GPU. `nearest` is None where the plan fits, where nothing does, or where no GPU is known."""

    choice: StrategyChoice
    processes: int
    memory: DeviceMemory
    gpu_bytes: int | None
    fits: bool | None
    nearest: tuple[TrainingSetup, DeviceMemory] | None


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Seconds of scoring and training at a rate; None where no rate is known."""

    rate: Rate | None
    score_seconds: float | None
    train_seconds: float | None
    price: float | None  # of both, on all GPUs


@dataclass(frozen=True, slots=True)
class CostPlan:
    """FLOPs of scoring all rows, and of a training of so many epochs on all and on the selected ones."""

    cost: SelectionCost
    epochs: float
    variants: Sequence[CostVariant]  # none where nothing is scored

    @property
    def train_all(self) -> float:
        return self.epochs * self.cost.training

    @property
    def train_selected(self) -> float:
        return self.epochs * self.cost.training_taken

    @property
    def saved_share(self) -> float:
        return self.cost.saved_share(self.epochs)


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """One row as the model is trained on it: its text in pieces, with the number of tokens of each."""

    id: str
    pieces: Sequence[tuple[bool, int, str]]  # whether it is learned


@dataclass(frozen=True, slots=True)
class MeasuredFigure:
    """A figure of the finished training beside the planned one."""

    what: str
    planned: float | None
    measured: float | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole plan. Parts that could not be found, because something is wrong, are None; `failures` say why. `doubts`
    are what works and is unusual."""

    rows: RowPlan | None
    steps: StepsPlan | None
    memory: MemoryPlan | None
    time: TimePlan | None
    cost: CostPlan | None
    tasks: Mapping[str, int]  # of each benchmark whose file is here
    least_differences: Mapping[str, float]
    example: RenderedRow | None
    command_lines: Mapping[str, str]
    disk_needed: int | None
    disk_free: int
    measured: Sequence[MeasuredFigure]
    failures: Sequence[str]
    doubts: Sequence[str]
