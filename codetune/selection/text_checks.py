"""Checks of an answer's text, whatever its language: an answer that was cut off, that is in another language than the
one asked for, or that only repeats what its instruction says. A model cannot tell these from good pairs: the
instruction makes such an answer likely (method.md, section 1, measured)."""

from __future__ import annotations

import re

from codetune.records import Example

FENCE = re.compile(r"`{3,}")
MARKED = re.compile(r"^[ \t]*`{3,}[ \t]*([\w+#]+)", re.MULTILINE)
# A name of a language -> the language. C is C++ here, and TypeScript JavaScript: answers mark the one as the other.
LANGUAGES = {
    "python": "Python", "python3": "Python", "py": "Python", "java": "Java", "javascript": "JavaScript",
    "js": "JavaScript", "jsx": "JavaScript", "typescript": "JavaScript", "ts": "JavaScript", "tsx": "JavaScript",
    "c++": "C++", "cpp": "C++", "c": "C++", "c#": "C#", "csharp": "C#", "cs": "C#", "php": "PHP", "ruby": "Ruby",
    "rb": "Ruby", "swift": "Swift", "golang": "Go", "go": "Go", "rust": "Rust", "kotlin": "Kotlin", "scala": "Scala",
    "perl": "Perl",
}  # fmt: skip
# In an instruction `go`, `c` and the short names are words or file endings as well.
NAMED = re.compile(
    r"(?<![\w+#./-])(python|java|javascript|typescript|c\+\+|c#|php|ruby|swift|golang|rust|kotlin|scala|perl)(?![\w+#-])",
    re.IGNORECASE,
)
REPEATED_SHARE = 0.5  # of the instruction's characters, white space aside
SHORTEST_REPEATED = 5  # words


def closed(example: Example) -> str | None:
    """An answer whose last code block is not closed was cut off."""
    is_closed = len(FENCE.findall(example.answer)) % 2 == 0
    return None if is_closed else "a code block of the answer is not closed"


def language(example: Example) -> str | None:
    """Of an instruction that names one language and an answer with marked code blocks: one of them has the language."""
    asked = {LANGUAGES[name.lower()] for name in NAMED.findall(example.instruction)}
    marks = (mark.lower() for mark in MARKED.findall(example.answer))
    given = {LANGUAGES[mark] for mark in marks if mark in LANGUAGES}
    if len(asked) != 1 or not given or asked & given:
        return None
    return f"the instruction asks for {asked.pop()}, the code is {' and '.join(sorted(given))}"


def repeats(example: Example) -> str | None:
    """An answer that stands word for word in the instruction, as half of it or more."""
    answer, instruction = (" ".join(FENCE.sub(" ", text).split()) for text in (example.answer, example.instruction))
    is_long = answer.count(" ") + 1 >= SHORTEST_REPEATED and len(answer) >= REPEATED_SHARE * len(instruction)
    return "the answer only repeats the instruction" if is_long and answer in instruction else None
