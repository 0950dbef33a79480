"""`python -m codetune` and the console script: what torchrun and accelerate re-enter. Until a command begins its work
(`cli_app.perform`), Ctrl-C and SIGTERM end the process at once, with a line that says so and status 130; `main`
therefore imports the other modules inside."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Does not tear Python down: the exit status would be that of a killed process if Ctrl-C came in the meantime, or
    had come while Python compiled a text (`_Py_UnhandledKeyboardInterrupt`, CPython 3.11, pythonrun.c)."""
    from codetune.launch.workers import exit_process
    from codetune.main import main as run

    try:
        run()
    except SystemExit as end:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        exit_process(end.code if isinstance(end.code, int) else 0)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    if sys.argv[1:2] != ["worker"]:  # the command of a worker says it
        os.write(2, b"Interrupted. Nothing had begun.\n")
    os._exit(130)


for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
    if signal.getsignal(_number) is _default:  # not where it is ignored
        signal.signal(_number, _end_at_once)

if __name__ == "__main__":
    main()
