"""Instructions -> unit vectors by a sentence-transformers model (the paper's: all-mpnet-base-v2, mean pooling).

Apart from `embed.py`, because the library takes many seconds to import, which the offline encoder need not wait for.
Reads safetensors only and runs no code that comes with a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from codetune.errors import ModelError
from codetune.selection.embed import Encoder

CPU_BATCH = 8  # a CPU gains nothing from more but padding: 96 real instructions took 2.4 s by 8, and 3.6 s by 32


def load_encoder(directory: Path, device: str) -> Encoder:
    """The encoder in a directory that `find_encoder` gave."""
    try:
        model = SentenceTransformer(
            str(directory),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as why:
        raise ModelError(
            f"The embedding model {directory} cannot be loaded ({type(why).__name__}: "
            f"{str(why).partition(chr(10))[0]}). Expected: a sentence-transformers model. Copy it again, or set "
            "embed.model to `hashing`, which needs none."
        ) from why
    return SentenceEncoder(model.eval())


class SentenceEncoder:
    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        # A copy: which texts are cut is asked from another thread than the one that encodes, and a tokenizer whose
        # truncation is switched on and off cannot serve two.
        self._uncut = copy.deepcopy(model.tokenizer)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        batch = CPU_BATCH if self._model.device.type == "cpu" else max(1, len(texts))
        vectors = self._model.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def cut(self, texts: Sequence[str]) -> Sequence[bool]:
        longest = self._model.max_seq_length
        if longest is None:
            return [False] * len(texts)
        ids = self._uncut(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(tokens) > longest for tokens in ids]
