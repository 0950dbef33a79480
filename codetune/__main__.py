"""`python -m codetune` and the console script: what torchrun and accelerate re-enter. Ctrl-C while the modules are
still being read ends the process with status 130 and without a word; `main.main` says what it means from then on."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from codetune.main import main

if __name__ == "__main__":
    main()
