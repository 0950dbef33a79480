from __future__ import annotations

import warnings

from evalplus.sanitize import code_extract
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.benchmark.longest_program import longest_program

WORDS = """x = 1|   |Sure!|Note|it's|- one|# why|  # why|\tx|\f|x = 1 \\|\\|\r|def f(x):|    return x|    y = 1|class A:
@f|if x:|else:|try:|except E:|finally:|(|)|[1,|]|{|}|'''|'''a'''|'|f(|    x)|x = = 1|match x:|    case 1:
        pass|  pass|x = '''|for x in y: pass|async def g():|    await z|lambda|x = (yield)|return 1|x; y|a b|;
f'{x'|f'{x!r}'|f'''{|}'''|1_|0777|é = 1|x = “1”|print x"""
LINES = st.sampled_from(["", '"""', '"""a"""', *(word for line in WORDS.split("\n") for word in line.split("|"))])


@settings(max_examples=1500, deadline=None)
@given(st.lists(LINES, max_size=12))
def test_the_run_is_that_of_evalplus(lines: list[str]) -> None:
    text = "\n".join(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert longest_program(text) == code_extract(text)
