"""Real rows -> the log-likelihood of every answer token after several contexts, for `mismatch.py`.

Contexts of an answer: nothing, the empty prompt, its own instruction, those of rows drawn at random, of a row in the
same cluster, of the nearest row by embedding, and its own instruction with another programming language in it. The
answer that only repeats its instruction is measured as an answer of its own. Finished groups of rows are kept in a
directory, and a second call continues with the next."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codetune.data.source import read_examples
from codetune.data.tokens import ScoringTokens, Span, scoring_tokens, text_tokens
from codetune.model.likelihood import bucket, padded_passes
from codetune.project.sections import Dataset, Scoring
from codetune.records import Example, Message, Refusal
from codetune.selection.cluster import cluster_rows
from codetune.selection.score import fill_prompt

GROUP_ROWS = 16  # measured together and kept together
TOKENS_PER_PASS = 4096
CLUSTERS = 10
LONGEST_ANSWER = 240  # tokens
LONGEST_PROMPT = 240
# A kind is measured for one row in so many; what no kind is about is measured for every row.
EVERY = {"random": 2, "similar": 1, "language": 2, "repeat": 8}
LANGUAGES = {
    "Python": "Java", "Java": "Python", "JavaScript": "C++", "C++": "JavaScript", "C#": "Python", "C": "JavaScript",
    "SQL": "Python", "HTML": "Python", "PHP": "Java", "Ruby": "Java", "Swift": "Python", "R": "JavaScript",
    "CSS": "Python", "TypeScript": "Ruby", "Go": "PHP", "Rust": "Python",
}  # fmt: skip
NAMED = re.compile(
    r"(?<![\w+#])(" + "|".join(map(re.escape, sorted(LANGUAGES, key=len, reverse=True))) + r")(?![\w+#])"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the experiment, and the instructions that its answer is measured after, by context."""

    example: Example
    instructions: Mapping[str, str]


def draw_rows(path: Path, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Row]:
    """Rows of a draw of `count` that are short enough, in random order."""
    draw, settings = random.Random(seed), Dataset(path=str(path), instruction="instruction", response="output")
    examples = [row for row in read_examples(settings, str(path)) if isinstance(row, Example)]
    pool = draw.sample(examples, min(len(examples), count))
    prompts = [fill_prompt(Scoring().prompt, row.instruction) for row in pool]
    tokens = scoring_tokens(tokenizer, prompts, pool, 10**6)
    pool = [row for row, found in zip(pool, tokens, strict=True) if _is_short(found)]
    return [Row(row, _first_instructions(row.instruction, pool, draw)) for row in pool]


def _is_short(tokens: ScoringTokens | Refusal) -> bool:
    is_scored = isinstance(tokens, ScoringTokens)
    return is_scored and len(tokens.context) <= LONGEST_PROMPT and len(tokens.answer) <= LONGEST_ANSWER


def _first_instructions(own: str, pool: Sequence[Example], draw: random.Random) -> dict[str, str]:
    """What needs no embedding."""
    found = {"own": own, "empty": ""}
    if draw.randrange(EVERY["random"]) == 0:
        found["random"] = draw.choice([row.instruction for row in pool if row.instruction != own])
    translated = other_language(own)
    if translated is not None and draw.randrange(EVERY["language"]) == 0:
        found["language"] = translated
    return found


def similar_instructions(rows: Sequence[Row], embedder: Path, seed: int) -> list[Row]:
    """Of one row in so many: the instruction of a row in its cluster, and of the row nearest to it."""
    draw = random.Random(seed)
    texts = [row.example.instruction for row in rows]
    encoder = SentenceTransformer(str(embedder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    vectors = encoder.encode(texts, batch_size=8, normalize_embeddings=True, convert_to_tensor=True).float().numpy()
    clusters = cluster_rows(vectors.copy(), CLUSTERS, seed)
    found = []
    for index in range(0, len(rows), EVERY["similar"]):
        is_other = np.array([text != texts[index] for text in texts])
        nearest = int(np.where(is_other, vectors @ vectors[index], -1).argmax())
        same = draw.choice(np.flatnonzero(is_other & (clusters == clusters[index])).tolist())
        found.append(Row(rows[index].example, {"cluster": texts[same], "near": texts[nearest]}))
    return found


def repeated_instructions(rows: Sequence[Row]) -> list[Row]:
    """Of one row in so many: the row whose answer only repeats the instruction."""
    repeats = []
    for row in rows[:: EVERY["repeat"]]:
        text = row.example.instruction
        messages = (Message("user", text), Message("assistant", text))
        repeats.append(Row(Example(row.example.id, messages, ""), {"own": text, "empty": ""}))
    return repeats


def other_language(instruction: str) -> str | None:
    """The instruction with its programming language replaced; None where it does not name exactly one."""
    if len(set(NAMED.findall(instruction))) != 1:
        return None
    return NAMED.sub(lambda found: LANGUAGES[found[1]], instruction)


def spans_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> dict[str, Span]:
    """The passes of a row by context; all predict the same answer tokens. With its own instruction the answer is
    measured after nothing as well."""
    prompt = Scoring().prompt
    own = scoring_tokens(tokenizer, [fill_prompt(prompt, row.example.instruction)], [row.example], 10**6)[0]
    assert isinstance(own, ScoringTokens)
    prompts = text_tokens(tokenizer, [fill_prompt(prompt, text) for text in row.instructions.values()])
    spans = {name: own.after(ids, 10**6) for name, ids in zip(row.instructions, prompts, strict=True)}
    return spans | {"none": own.unconditional} if "own" in spans else spans


@torch.inference_mode()
def token_nll(network: PreTrainedModel, spans: Sequence[Span]) -> list[NDArray[np.float32]]:
    """Nats of each predicted token of each span."""
    results: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(spans)
    for members in padded_passes([len(span.tokens) for span in spans], TOKENS_PER_PASS, bucket):
        length = bucket(max(len(spans[index].tokens) for index in members))
        rows = [[*spans[index].tokens, *[0] * (length - len(spans[index].tokens))] for index in members]
        ids = torch.tensor(rows)
        hidden = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for row, index in enumerate(members):
            start, end = spans[index].start, len(spans[index].tokens)
            logits = network.get_output_embeddings()(hidden[row, start - 1 : end - 1]).float()
            losses = torch.nn.functional.cross_entropy(logits, ids[row, start:end], reduction="none")
            results[index] = losses.numpy().astype(np.float32)
    return results


def measure(
    rows: Sequence[Row], network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kept: Path, name: str
) -> None:
    """Writes a file for each group of rows that has none yet: "id context" -> nats of each token."""
    kept.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows), GROUP_ROWS):
        path = kept / f"{name}-{first:05}.npz"
        if path.exists():
            continue
        spans = {
            f"{row.example.id} {context}": span
            for row in rows[first : first + GROUP_ROWS]
            for context, span in spans_of(row, tokenizer).items()
        }
        found = dict(zip(spans, token_nll(network, list(spans.values())), strict=True))
        np.savez(partial := path.with_suffix(".partial.npz"), **found)
        partial.rename(path)
