"""`python -m codetune` and the console script: what torchrun and accelerate re-enter. Ctrl-C while the modules are
still being read ends the process with status 130 and without a word; `main.main` says what it means from then on."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from codetune.launch.workers import exit_process
from codetune.main import main as run


def main() -> None:
    """Does not tear Python down: the exit status would be that of a killed process if Ctrl-C came in the meantime, or
    had come while Python compiled a text (`_Py_UnhandledKeyboardInterrupt`, CPython 3.11, pythonrun.c)."""
    at_once = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    try:
        run()
    except SystemExit as end:
        signal.signal(signal.SIGINT, at_once)
        exit_process(end.code if isinstance(end.code, int) else 0)


if __name__ == "__main__":
    main()
