"""The files of a data set -> those of one split, by their names: `train-00000-of-00004.parquet`, `test/part.jsonl`,
`evol_val.jsonl`. Files of which none names a split are all of the split `train`. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from codetune.errors import DataError
from codetune.project.sections import Dataset

WHOLE_SPLIT = "train"  # the default of dataset.split
# As the Hub has it: https://huggingface.co/docs/datasets/repository_structure
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), "test"),
}
SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")


def files_of_split(files: Mapping[str, Path], dataset: Dataset, location: str) -> dict[str, Path]:
    """The files whose names have the split; all files where no name has one, and a single file that the project names.

    Raises DataError where none has the split that the project asks for; the message lists those that there are."""
    wanted = SPLIT_OF_WORD.get(dataset.split, dataset.split)
    splits = {name: split_of(name) for name in files}
    taken = {name: path for name, path in files.items() if splits[name] == wanted}
    is_named = dataset.path in files
    if taken or (wanted == WHOLE_SPLIT and (is_named or not any(splits.values()))):
        return taken or dict(files)
    found = sorted({split for split in splits.values() if split})
    if not found:
        raise DataError(
            f"dataset.split is {dataset.split}, and no file name in {location} says a split. Expected: {WHOLE_SPLIT}, "
            "which is then all of them. Fix dataset.split, or name the files of that split in dataset.path."
        )
    raise DataError(
        f"dataset.split is {dataset.split}, and no file in {location} has it in its name; the names say "
        f"{', '.join(found)}. Expected: one of these. Set dataset.split, or name the files in dataset.path."
    )


def split_of(name: str) -> str | None:
    """The split that the name of a file has in it: its first or last word, numbers and versions aside, or a directory.

    >>> split_of("data/train-00000-of-00004.parquet"), split_of("evol_val.jsonl"), split_of("unit-test-writing.jsonl")
    ('train', 'validation', None)
    >>> split_of("train_sft-00000-of-00003.parquet"), split_of("test/a.jsonl"), split_of("evol_train1_v2.jsonl")
    ('train_sft', 'test', 'train')
    """
    path = PurePosixPath(name.lower())
    stem = re.split(r"\.(?:json|parquet|csv)", path.name)[0]
    unnumbered = (word.rstrip("0123456789") for word in re.split(r"[-_. ]", stem))
    words = [word for word in unnumbered if word not in ("", "of", "v")]
    ends = [word for word in (*words[:1], *words[-1:]) if word in SPLIT_OF_WORD]
    if ends:
        shard = SHARD.fullmatch(stem)
        return shard[1] if shard and shard[1] not in SPLIT_OF_WORD else SPLIT_OF_WORD[ends[0]]
    return next((SPLIT_OF_WORD[part] for part in reversed(path.parts[:-1]) if part in SPLIT_OF_WORD), None)
