"""`evalplus.sanitize` (0.3.1) as functions of a text, byte for byte, with two differences: the longest program is found
without its cubic search (`longest_program.py`), and of a function that this program defines twice the last counts, as
for Python (`without_overwritten`)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, ModuleType

from codetune.benchmark import longest_program as search
from codetune.benchmark.dependency_slice import parse, without_overwritten


@lru_cache(maxsize=32)  # several sources of an answer may be equal
def evalplus_program(written: str, entry_point: str) -> str:
    """The entry point and what it needs of the longest program in a text."""
    return _or_text(lambda: SANITIZE(written, entry_point), written)


@lru_cache(maxsize=32)
def longest_program(text: str) -> str:
    return without_overwritten(text) if parse(text) else _or_text(lambda: _find_program(text), text)


def _find_program(text: str) -> str:
    return without_overwritten(search.longest_program(text))


def _or_text(extract: Callable[[], str], text: str) -> str:
    """The result of an extracting function, or the unchanged text if it raises. EvalPlus handles a SyntaxError only;
    null bytes, lone surrogates and deep nesting raise other errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            return extract()
    except (ValueError, RecursionError):
        return text


def _light_import() -> ModuleType:
    """The module without `evalplus.data`, which only its own command needs: that loads pandas and datasets, which take
    three seconds in every process."""
    absent = ModuleType("evalplus.data")
    absent.__getattr__ = lambda name: None  # type: ignore[method-assign]  # PEP 562: any name can be imported from it
    loaded = {name: module for name, module in sys.modules.items() if name.startswith("evalplus.")}
    sys.modules["evalplus.data"] = absent
    try:
        import evalplus.sanitize

        module: ModuleType = evalplus.sanitize
        return module
    finally:
        for name in [name for name in sys.modules if name.startswith("evalplus.")]:
            del sys.modules[name]
        sys.modules.update(loaded)


def _with_our_search(module: ModuleType) -> Callable[[str, str], str]:
    """Its `sanitize`, in which `code_extract` is ours; the module itself stays as it is."""
    names = {**vars(module), "code_extract": _find_program}
    names["extract_target_code_or_empty"] = FunctionType(module.extract_target_code_or_empty.__code__, names)
    sanitize: Callable[[str, str], str] = FunctionType(module.sanitize.__code__, names)
    return sanitize


SANITIZE = _with_our_search(_light_import())
