"""Runs a program and the examples that come with it, interactive sessions (`>>> f(1)`) and assertions, in the sandbox.

Says which example fails, not whether the program is right. The program shares its process with the examples, and can
pretend that they hold: what it says of itself is no verdict."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from codetune.sandbox.launcher import CallReport, Sandbox
from codetune.sandbox.program import RAISED, TIMED_OUT, CallTimeoutError, ExecutionRequest

EXAMPLE_SECONDS, LOAD_SECONDS = 5.0, 10.0  # for all examples of a program; for the program before them
EXAMPLE_BYTES = 2 * 2**30
LONGEST_REASON = 200  # characters
ENTRY_POINT = "_codetune_run_examples"
FAILED = "failed: "
TIMEOUT = CallTimeoutError.__name__
# Runs after a program, in its namespace. What the sandbox forbids or lacks (files, packages, input) is no failure. A
# value that is written in another way (quotes, the order of a set) is the same value. A failure is told as the name of
# an exception, which comes back as plain text: no value of the program's is decoded.
RUNNER = f'''

def {ENTRY_POINT}(sessions, assertions):
    import ast, doctest

    class Checker(doctest.OutputChecker):
        def check_output(self, want, got, flags):
            if super().check_output(want, got, flags):
                return True
            try:
                return ast.literal_eval(want.strip()) == ast.literal_eval(got.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return False

    failures = []

    class Runner(doctest.DocTestRunner):
        def report_failure(self, out, test, example, got):
            want = example.want.strip() or "nothing"
            failures.append(f"{{example.source.strip()}} gives {{got.strip()}}, not {{want}}")

        def report_unexpected_exception(self, out, test, example, error):
            if error[0].__name__ == "{TIMEOUT}":
                raise error[1]
            if not issubclass(error[0], (ImportError, OSError, EOFError)):
                failures.append(f"{{example.source.strip()}} raises {{error[0].__name__}}")

    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

    def fail(why):
        raise type(f"{FAILED}{{why}}", (Exception,), {{}})

    for session in sessions:
        try:
            test = doctest.DocTestParser().get_doctest(session, dict(globals()), "example", None, 0)
        except ValueError:
            continue
        Runner(Checker(), verbose=False, optionflags=flags).run(test, out=lambda text: None, clear_globs=False)
        if failures:
            fail(failures[0])
    for assertion in assertions:
        try:
            exec(assertion, dict(globals()))
        except (ImportError, OSError, EOFError):
            pass
        except AssertionError:
            fail(f"{{assertion}} does not hold")
        except Exception as error:  # whatever the program raises
            if type(error).__name__ == "{TIMEOUT}":
                raise
            fail(f"{{assertion}} raises {{type(error).__name__}}")
'''


def failed_example(sandbox: Sandbox, code: str, sessions: Sequence[str], assertions: Sequence[str]) -> str | None:
    """The first example that fails, and how, in one line; None where none does. A program that does not load by itself
    (a package is missing, it asks for input) is not judged. Raises SandboxError where it could not be confined."""
    request = ExecutionRequest(
        code=code + RUNNER,
        entry_point=ENTRY_POINT,
        calls=pickle.dumps([[list(sessions), list(assertions)]]),
        seconds=(EXAMPLE_SECONDS,),
        wall_factor=1,
        memory_bytes=EXAMPLE_BYTES,
        returns="value",
        imports=("doctest",),
    )
    with sandbox.run(request, LOAD_SECONDS + EXAMPLE_SECONDS) as running:
        report = next(running.reports())
    if not isinstance(report, CallReport):
        return None
    if report.kind == TIMED_OUT:
        return f"its examples take over {EXAMPLE_SECONDS:g} s"
    said = report.content.decode(errors="replace")
    if report.kind != RAISED or not said.startswith(FAILED):
        return None
    return " ".join(said.removeprefix(FAILED).split())[:LONGEST_REASON]
