"""The nouns that flow from stage to stage, as frozen records. No behaviour beyond tiny derived properties, no I/O.

source --Example|Refusal--> score --Score|Refusal--> select --SelectedRows--> train
   +----------------------> embed --Embeddings-------+
problems --Problem--> generate --Completion--> sanitize --Solution--> evaluate --Verdict--> Report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of the processes that work together this one is, in torch's terms. The ranks of one machine follow each
    other; `local_rank` is also the index of the process's GPU."""

    rank: int
    world_size: int  # processes on all machines
    local_rank: int
    local_world_size: int  # processes on this machine


ALONE = Rank(0, 1, 0, 1)


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row of the instruction set: the conversation, ending with the assistant's answer."""

    id: str  # 16 hex digits, see `content_id`
    messages: tuple[Message, ...]
    at: str  # "FILE:LINE", or "FILE:row N" where a file has no lines
    source: str = ""  # the file's name as shown in `at` before the colon, or the name of a data set on the hub

    @property
    def instruction(self) -> str:
        """What the last answer answers: the contents of all earlier turns, a blank line between them."""
        return "\n\n".join(message.content for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that got no result, and why: never a zero. `at` stands in for the id of a row that has none of its own
    (a duplicate, or one that is not text)."""

    id: str | None
    reason: str  # counted by this text, so it holds nothing particular to the row but the place of its original
    at: str

    @property
    def kind(self) -> str:
        """The reason without the place that it may end in: what refusals are counted by.

        >>> Refusal(None, "duplicate of a.jsonl:3", "a.jsonl:9").kind
        'duplicate'
        """
        return self.reason.partition(" of ")[0] if self.reason.startswith("duplicate of ") else self.reason


@dataclass(frozen=True, slots=True)
class Score:
    """Instruction-following difficulty of one row and what it was made of; likelihoods in nats per answer token."""

    id: str
    ifd: float
    nll_conditional: float
    nll_unconditional: float
    answer_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit vectors of the instructions; row `i` of `vectors` belongs to `ids[i]`."""

    ids: NDArray[np.uint64]
    vectors: NDArray[np.float32]  # [rows, dim], may be memory-mapped


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """Selected rows in the order of the selection, as columns; None where the strategy knows no IFD, or no cluster."""

    ids: NDArray[np.uint64]
    ifd: NDArray[np.float64] | None
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
    contract: str = ""  # EvalPlus' assertions about valid inputs
    assertion: str = ""  # MBPP's visible assertion, part of its prompt


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for a task, as it came; `sample` counts from 0 where a task has several."""

    task_id: str
    completion: str
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """A whole program for a task: what the judge runs."""

    task_id: str
    solution: str
    sample: int = 0


Outcome = Literal["pass", "fail", "timeout"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one solution did; `plus` is `pass` only where the base tests and the plus tests pass. `failure` is the first
    call that went wrong, shortened, and how."""

    task_id: str
    base: Outcome
    plus: Outcome
    sample: int = 0
    failure: str = ""


def content_id(messages: Sequence[Message]) -> str:
    """First 16 hex digits of the SHA-256 of the messages' canonical JSON (product.md, Artefacts).

    >>> content_id([Message("user", "hi"), Message("assistant", "yo")])
    'c250886073cb6456'
    """
    canonical = json.dumps(
        [{"content": message.content, "role": message.role} for message in messages],
        sort_keys=True,
        ensure_ascii=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
