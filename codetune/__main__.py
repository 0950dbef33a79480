"""`python -m codetune`: what torchrun and accelerate re-enter."""

from codetune.cli import main

main()
