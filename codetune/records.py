"""The records that flow from stage to stage, and the rank of a process. No behaviour beyond derived properties, no I/O.

data set --Example|Refusal--> score --Score|Refusal--> select --SelectedRows--> train
   +------------------------> embed --Embeddings-------+
problems --Problem--> generate --Completion--> sanitize --Solution--> evaluate --Verdict--> Report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, Self, TypedDict

from codetune.project.sections import ChatFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Rank:
    """The index of a process among those that work together, as torch counts them. The ranks of one machine are
    consecutive; `local_rank` is also the index of the process's GPU."""

    rank: int
    world_size: int  # processes on all machines
    local_rank: int
    local_world_size: int  # processes on this machine


ALONE = Rank(0, 1, 0, 1)


class MessageDocument(TypedDict):
    """A message as JSON."""

    role: Role
    content: str
    tool_calls: NotRequired[list[dict[str, object]]]  # of OpenAI's form
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[int]  # 0 of an answer that is not learned, as OpenAI has it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Of an assistant's turn `calls` are its tool calls, as the JSON text of a list of
    OpenAI's objects with their arguments as objects, and `learned` is false where its data set excludes it from the
    loss; `call_id` and `name` say which call a tool's turn answers."""

    role: Role
    content: str
    calls: str = ""
    call_id: str = ""
    name: str = ""
    learned: bool = True

    @property
    def text(self) -> str:
        """The content, and the name and arguments of each call as a line of JSON below it."""
        if not self.calls:
            return self.content
        lines = [json.dumps(call["function"], ensure_ascii=False) for call in json.loads(self.calls)]
        return "\n".join([self.content, *lines] if self.content else lines)

    @property
    def document(self) -> MessageDocument:
        """The message as other programs read it, without what it does not have."""
        document: MessageDocument = {"role": self.role, "content": self.content}
        if self.calls:
            document["tool_calls"] = json.loads(self.calls)
        if self.call_id:
            document["tool_call_id"] = self.call_id
        if self.name:
            document["name"] = self.name
        if not self.learned:
            document["weight"] = 0
        return document


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row of the data set: a conversation that ends with the assistant's answer."""

    id: str  # 16 hex digits, see `content_id`
    messages: tuple[Message, ...]
    at: str  # "FILE:LINE", or "FILE:row N" where a file has no lines
    source: str = ""  # the file's name as shown in `at` before the colon, or the name of a data set on the Hub
    left_out: tuple[tuple[str, str], ...] = ()  # columns with context that no message has, and their values as text
    tools: str = ""  # that the assistant may call, as the JSON text of a list of objects
    row_format: str = field(default="", compare=False)  # by which it was read; examples.jsonl does not keep it

    @property
    def instruction(self) -> str:
        """The texts of all turns before the answer, with blank lines between them."""
        return "\n\n".join(message.text for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return self.messages[-1].text


DUPLICATE_OF = "duplicate of "  # begins the reason of a row with the messages of an earlier one; its position follows


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row without a result, and the reason; a missing result is never a zero. A duplicate has no id of its own, nor
    has a row that is not text: both are known by `at`."""

    id: str | None
    reason: str  # one of a few texts, so that they can be counted; only a duplicate's names a row
    at: str

    @property
    def kind(self) -> str:
        """The reason without the row that this one repeats: refusals are counted by kind.

        >>> Refusal(None, "duplicate of a.jsonl:3", "a.jsonl:9").kind
        'duplicate'
        """
        for before, after in (("duplicate", ""), ("differs", "only in columns beside its messages")):
            if self.reason.startswith((f"{before} of ", f"{before} from ")) and self.reason.endswith(after):
                return f"{before} {after}".strip()
        return self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Instruction-following difficulty (IFD) of one row, and negative log-likelihoods of its answer: means over the
    same tokens, in nats a token. None for what was not measured."""

    id: str
    ifd: float  # exp(nll_conditional - nll_unconditional)
    pmi: float | None = None  # nll_empty - nll_conditional; above 0 the instruction helps
    nll_conditional: float  # of the answer after its prompt
    nll_unconditional: float  # of the answer alone
    nll_empty: float | None = None  # of the answer after the prompt with an empty instruction
    answer_tokens: int
    truncated: bool
    nll_shuffled: float | None = None  # of the answer after the prompt of another row
    shuffled_with: str | None = None  # the id of that row
    token_differences: bytes | None = None  # nats after the prompt less those alone, float32, of each answer token


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """The scores of all rows that have an id, in the order of scores.jsonl; NaN for what a row lacks."""

    ids: NDArray[np.uint64]
    ifd: NDArray[np.float64]
    pmi: NDArray[np.float64]
    shuffled_pmi: NDArray[np.float64]  # nll_empty - nll_shuffled
    answer_tokens: NDArray[np.float64]
    nll_conditional: NDArray[np.float64]

    def only(self, rows: NDArray[np.bool_]) -> Self:
        """The columns of the rows that are true in `rows`."""
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit vectors of the instructions; row `i` of `vectors` belongs to `ids[i]`."""

    ids: NDArray[np.uint64]
    vectors: NDArray[np.float32]  # [rows, dim], may be memory-mapped


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The selected rows as columns, in the order of the selection. None where the strategy does not use a column."""

    ids: NDArray[np.uint64]
    ifd: NDArray[np.float64] | None
    pmi: NDArray[np.float64] | None
    cluster: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One benchmark task in EvalPlus format; inputs are argument lists, one list a call."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    base_input: list[list[object]]
    plus_input: list[list[object]]
    atol: float
    contract: str = ""  # EvalPlus' assertions about valid inputs: part of the task's digest, and not run
    assertion: str = ""  # MBPP's visible assertion, part of its prompt
    stated: Sequence[object] = ()  # what the base calls return by the benchmark's own tests, where it has such
    is_close: bool = False  # these tests compare by `math.isclose`
    statements: Sequence[str] = ()  # the texts of the task alone, where its prompt says more
    prelude: str = ""  # code before every program
    callee: str = ""  # the expression that is called, where it is not the entry point
    date: str = ""  # YYYY-MM-DD, when the task was published


PromptKind = Literal["completion", "chat"]
BASE, TUNED = "base", "tuned"  # names of models: the one that training starts from, and the one that it made


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a benchmark sees it."""

    name: str  # as the user says it: tuned, base, a path or a Hub id
    label: str
    directory: Path
    tokenizer: Path  # its directory: a checkpoint has no tokenizer of its own
    digest: str
    kind: PromptKind | None  # how it is prompted; None where nothing tells, and only `generate` needs to know
    chat_format: ChatFormat | None  # what it was trained with, where codetune trained it


@dataclass(frozen=True, slots=True)
class Completion:
    """The text that a model generated for a task, unchanged. The samples of a task are counted from 0."""

    task_id: str
    completion: str
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """A whole program for a task, which can be run."""

    task_id: str
    solution: str
    sample: int = 0


Outcome = Literal["pass", "fail", "timeout"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one solution: of the base tests, and of base and plus tests together. `failure` is the first call
    that went wrong, shortened, and how it did."""

    task_id: str
    base: Outcome
    plus: Outcome
    sample: int = 0
    failure: str = ""


def content_id(messages: Sequence[Message]) -> str:
    """The id of a row: the first 16 hex digits of the SHA-256 of its messages as canonical JSON (sorted keys, ASCII, no
    white space): of each the role and the content, and the tool calls, their ids, the name and the weight 0 where it
    has them. The tools that could be called are no part of it.

    >>> content_id([Message("user", "hi"), Message("assistant", "yo")])
    'c250886073cb6456'
    """
    documents = [message.document for message in messages]
    canonical = json.dumps(documents, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
