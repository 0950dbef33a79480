"""What all commands have in common: the application that `cli.py` registers them with, `--quiet`, and how a command is
performed: what goes to which stream, and what an interrupt and a full disk mean."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from codetune import console
from codetune.console import CommandResult
from codetune.errors import writing_failed

# The groups of `codetune --help`, in its order.
START, STAGES, PIPELINE, AROUND = "Start", "The stages, in their order", "Several stages at once", "Around a run"
GROUPS = (START, STAGES, PIPELINE, AROUND)
QUIET_HELP = "Show no progress and no notes: only the result, warnings and errors."
INTERRUPTED = "Interrupted. What was finished is kept. Run the same command to continue."
TABLE_WIDTH = 80  # characters; typer's table is that wide where TERM is dumb, and a narrow one cuts names of options


class _Commands(TyperGroup):
    """Gives every command `--quiet`, and help as plain text where the terminal is too narrow for a table."""

    def __init__(self, **settings: Any) -> None:  # click's types, which typer has a copy of
        super().__init__(**settings)
        width = shutil.get_terminal_size().columns
        for command in self._members():
            command.params.append(_quiet_option())
        for each in (self, *self._members()) if width < TABLE_WIDTH else ():
            each.rich_markup_mode = None
            each.context_settings["terminal_width"] = width

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Plain text has the groups of the table."""
        for group in GROUPS:
            members = [command for command in self._members() if command.rich_help_panel == group]
            with formatter.section(group):
                formatter.write_dl([(command.name, command.help) for command in members])

    def _members(self) -> list[Any]:
        return list(self.commands.values())


def _quiet_option() -> Any:
    """The option `--quiet` as typer makes it: the constructor of its options is another one in each version."""
    carrier = typer.Typer(add_completion=False)

    @carrier.command()
    def command(
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", help=QUIET_HELP, callback=_apply, expose_value=False)
        ] = False,
    ) -> None:
        """Never run."""

    return typer.main.get_command(carrier).params[0]


def _apply(quiet: bool) -> None:
    console.set_quiet(quiet)


app = typer.Typer(
    cls=_Commands,
    help="Fine-tune a code LLM on the part of an instruction set that is worth training on; measure what that bought.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def raise_interrupts() -> None:
    """SIGINT and SIGTERM, by which a scheduler stops a job, raise KeyboardInterrupt from here on. Where they are
    ignored, or nothing of codetune handles them yet, that stays so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler)


def perform(work: Callable[[], CommandResult], as_json: bool, *, changes_nothing: bool = False) -> None:
    """Does the work and shows what came of it; says what an interrupt and a full disk mean. `changes_nothing`: the work
    only looks."""
    try:
        raise_interrupts()
        with console.reserved_stdout() as output:
            result = work()
            console.show(result, as_json, output)
    except KeyboardInterrupt as why:
        meaning = "Interrupted. Nothing was changed." if changes_nothing else str(why) or INTERRUPTED
        console.say(meaning, always=True)
        raise typer.Exit(130) from None
    except OSError as why:
        if (failed := writing_failed(why)) is None:
            raise
        raise failed from why
    if result.exit_status:
        raise typer.Exit(result.exit_status)
