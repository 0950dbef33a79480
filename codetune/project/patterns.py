"""The patterns of the texts that some keys of the project file take, and each one in words, for messages."""

from typing import Annotated

from pydantic import Field

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
# What stands in a line that Slurm reads: no blanks, quotes, backslashes or comments.
SLURM_WORD, SLURM_OPTION = r"^[^\s'\"\\#]+$", r"^--[a-z][^\s'\"\\#]*$"
SLURM_TIME = "^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$"
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "letters, digits, dot, dash or underscore, beginning with a letter or digit",
    SLURM_WORD: "a word without blanks, quotes, backslashes or #",
    SLURM_OPTION: "an option such as --mem=64G, without blanks, quotes, backslashes or #",
    SLURM_TIME: "a time such as 12:00:00 or 2-00:00:00",
}
SlurmWord = Annotated[str, Field(pattern=SLURM_WORD)]
SlurmOption = Annotated[str, Field(pattern=SLURM_OPTION)]
SlurmTime = Annotated[str, Field(pattern=SLURM_TIME)]
