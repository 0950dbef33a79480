"""Steps of a tokenizer that make a text longer without end, refused before anything runs them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from codetune.errors import ModelError
from codetune.model.pretrained import read_tokenizer
from codetune.model.tokenizer_check import require_bounded_steps

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LONG_TABLE = base64.b64encode(b"\4\0\0\0" + bytes(4) + b"a" * 5000 + b"\0").decode()


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(name: str, *steps: object) -> dict[str, object]:
    return {"type": "Sequence", name: list(steps)}


DOUBLE = replace({"String": "a"}, "aa")


@pytest.mark.parametrize(
    ("component", "value", "found"),
    [
        ("normalizer", sequence("normalizers", *[DOUBLE] * 40), r"41 steps of its normalizer .* 1\.1e\+12 times"),
        ("normalizer", sequence("normalizers", sequence("normalizers", *[DOUBLE] * 40)), r"42 steps .* 1\.1e\+12"),
        ("normalizer", sequence("normalizers", *[replace({"Regex": ""}, "x")] * 40), r"1\.1e\+12"),
        ("normalizer", sequence("normalizers", *[replace({"String": ""}, "x")] * 40), r"1\.1e\+12"),
        ("normalizer", replace({"String": "a"}, "a" * 5000), r"5e\+03"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 5000}, r"5e\+03"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": LONG_TABLE}, r"5e\+03"),
        ("normalizer", sequence("normalizers", *[{"type": "NFC"}] * 1001), "1,002 steps"),
        ("pre_tokenizer", sequence("pretokenizers", *[BYTES] * 30), r"steps of its pre_tokenizer .* 1\.15e\+18"),
        ("decoder", sequence("decoders", *[DOUBLE] * 40), "steps of its decoder"),
    ],
)
def test_steps_that_make_a_text_longer_without_end_are_refused(
    saved: Path, component: str, value: object, found: str
) -> None:
    file = saved / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), component: value}))
    with pytest.raises(ModelError, match=rf"tokenizer\.json: the .*{found}"):
        read_tokenizer(saved)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        sequence("normalizers", {"type": "Prepend", "prepend": "\u2581"}, replace({"String": " "}, "\u2581")),
        sequence("normalizers", *[replace({"String": "ab"}, "c")] * 50, *[{"type": "NFKD"}] * 9),
    ],
    ids=["none", "Llama's", "shorter"],
)
def test_ordinary_steps_are_allowed(tmp_path: Path, normalizer: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"normalizer": normalizer, "pre_tokenizer": BYTES}))
    require_bounded_steps(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, json.dumps({"normalizer": {"type": "Replace"}})])
def test_what_cannot_be_read_is_left_to_the_library(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    require_bounded_steps(tmp_path)
