"""Control tokens (EOS, `<s>`, `<|im_start|>`, ...) that are written out in a content are text; in a template, in a
prompt's frame and from the tokenizer itself they stay control tokens.

    content    x = "<s>"       `mark` replaces a written-out token by surrogates, which no text has: a mark
    rendered   <s>[INST] x = "###" [/INST]      # for a character of the mark; all characters keep their offsets
    encoded    $$$[INST] x = "<s>" [/INST]      by a copy of the tokenizer in which the token `<s>` is spelled $$$

Text without a mark is encoded by the tokenizer as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

from codetune.data.chat import FAMILIES
from codetune.errors import CodetuneError, ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREADABLE = "a control token is written out beside private-use characters"
FIRST_NAME = 0x100000  # plane 16 of Unicode, for private use: the first characters of the copy's control tokens
# Tokenizers may call such a token an ordinary one: `<|fim_hole|>` (DeepSeek's have wide bars), `<pad>`, `[MASK]`. Other
# ordinary ones are part of what a model reads and writes: `<think>`, `<tool_call>`, `<table>`.
BETWEEN_BARS = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)
ROLES = r"pad|unk|mask|cls|sep|[be]os|eo[tdm]|s|(start|end)_?of_?(text|turn|sentence)|fim_?\w+|file_sep|repo_name"
OF_A_ROLE = re.compile(rf"[<\[]/?[|_]*({ROLES}|(unused|reserved|extra_id|special)[\w-]*)[|_]*[>\]]", re.IGNORECASE)
MARK = re.compile("[\ud800-\udbff][\udc00-\udfff]+")


class EncodedText(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # [start, end) of each token's characters


@lru_cache(maxsize=4)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The control tokens of a tokenizer; one object for each, because it makes a copy of the tokenizer."""
    return ControlTokens(tokenizer)


class ControlTokens:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.texts = frozenset(_control_texts(tokenizer))
        self._texts = sorted(self.texts, key=lambda text: (-len(text), text))
        self._index = {text: index for index, text in enumerate(self._texts)}
        # A token that begins with another one comes first. Without any, a pattern that matches nothing.
        self._pattern = re.compile("|".join(map(re.escape, self._texts)) or r"(?!)")

    def mark(self, content: str) -> str:
        """The content with a mark in the place of every control token that is written out in it."""
        return self._pattern.sub(lambda found: self._mark(found[0]), content)

    def encode(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[EncodedText | None]:
        """The tokens of each text, all in one call, because the tokenizer then uses all cores. None for a text with a
        mark and with characters that the copy uses as names of its control tokens."""
        marked = [index for index, text in enumerate(texts) if MARK.search(text)]
        if not marked:
            return [*_encode(self._tokenizer, texts, add_special_tokens)]
        others = [text for index, text in enumerate(texts) if index not in {*marked}]
        encoded = iter(_encode(self._tokenizer, others, add_special_tokens))
        return [
            self._encode_marked(text, add_special_tokens) if index in marked else next(encoded)
            for index, text in enumerate(texts)
        ]

    def _encode_marked(self, text: str, add_special_tokens: bool) -> EncodedText | None:
        if any(ord(character) >= FIRST_NAME for character in text):
            return None
        named = self._pattern.sub(lambda found: self._name(found[0]), text)
        unmarked = MARK.sub(lambda found: self._unmark(found[0]), named)
        with _tokenizer_errors(self._tokenizer):
            encoding = self._copy.encode(unmarked, add_special_tokens=add_special_tokens)
        return EncodedText(encoding.ids, encoding.offsets)

    def _mark(self, token: str) -> str:
        high, low = divmod(self._index[token], 1024)
        return chr(0xD800 + high) + chr(0xDC00 + low) * (len(token) - 1)

    def _unmark(self, mark: str) -> str:
        return self._texts[1024 * (ord(mark[0]) - 0xD800) + ord(mark[1]) - 0xDC00]

    def _name(self, token: str) -> str:
        return chr(FIRST_NAME + self._index[token]) * len(token)

    @cached_property
    def _copy(self) -> Tokenizer:
        return _renamed(self._tokenizer.backend_tokenizer, {text: self._name(text) for text in self._texts})


def count_marks(text: str) -> int:
    return sum(1 for _ in MARK.finditer(text))


def _control_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that the tokenizer calls special, and others that nobody writes as text. Without those of a single
    character: a mark takes two."""
    of_families = {token for family in FAMILIES.values() for token in family.special_tokens}
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or token.content in of_families}
    special |= {
        token.content for token in added if BETWEEN_BARS.fullmatch(token.content) or OF_A_ROLE.fullmatch(token.content)
    }
    return {text for text in special | {*map(str, tokenizer.all_special_tokens)} if len(text) > 1}


def _renamed(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """A copy with other spellings for some tokens, and the same ids. The old spelling is plain text for it: what made
    the token of its characters (an entry of the vocabulary, a merge) is not there either."""
    content = json.loads(backend.to_str())
    model = content["model"]
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:  # Unigram: pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    copy: Tokenizer = Tokenizer.from_str(json.dumps(content))
    copy.no_truncation()
    copy.no_padding()
    return copy


@contextmanager
def _tokenizer_errors(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Turns what a tokenizer raises at a text into ModelError: a plain Exception where it has no token for a character,
    and from a panic of the Rust code, at a pattern without end, an exception that is no Exception."""
    try:
        yield
    except (CodetuneError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust code derives from it directly
        raise ModelError(
            f"The tokenizer in {tokenizer.name_or_path} fails on a text ({type(error).__name__}: {first_line(error)}). "
            "Expected: a tokenizer that reads every text. Copy its files there again from its source."
        ) from error


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool) -> list[EncodedText]:
    if not texts:
        return []
    # Not verbose: the tokenizer would warn of its own maximum length, which does not apply here.
    with _tokenizer_errors(tokenizer):
        encoded = tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    return [EncodedText(*row) for row in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]
