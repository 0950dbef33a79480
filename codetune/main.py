"""The entry of every process of codetune: the command that a user called, a worker that a command started, or a rank
of the user's launcher other than 0, which runs the jobs of rank 0. Turns errors into messages and exit statuses."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer

from codetune import console
from codetune.cli import app
from codetune.cli_app import raise_interrupts
from codetune.cli_options import completed_assignments, require_unicode, with_project_option
from codetune.errors import BusyError, CodetuneError, UsageError
from codetune.launch import dispatch
from codetune.launch.environment import begun_assignment, current_rank, prepare_process, worker_task
from codetune.launch.library_messages import make_messages_visible
from codetune.launch.workers import JSON, empty_standard_input, exit_process

_WrongUsage: Any = typer.BadParameter.__base__  # click's UsageError, which typer 0.29 has a copy of


def main() -> None:
    """The console script; `python -m codetune` for workers and ranks of a launcher."""
    prepare_process()
    make_messages_visible()
    sys.excepthook = console.show_traceback
    try:
        _run_process()
    except KeyboardInterrupt:  # of a worker or rank; the command says what it means
        exit_process(130)


def _run_process() -> None:
    try:
        if (task := worker_task()) is not None:
            raise_interrupts()
            dispatch.run_worker(task, _run_job)
            return
        empty_standard_input()
        if current_rank().rank > 0:
            raise_interrupts()
            dispatch.run_follower(_run_job)
        else:
            _run_command()
    except CodetuneError as error:
        # A lock is held by another command, which is named as it was given.
        message = str(error) if isinstance(error, BusyError) else with_project_option(str(error))
        console.show_error(type(error)(message))
        sys.exit(error.exit_status)


def _run_job(job: dispatch.Job, worker: dispatch.WorkerContext) -> JSON:
    if job.stage == dispatch.NODES_JOB:
        from codetune.report.nodes import examine_rank

        return examine_rank(job, worker)
    if job.stage == dispatch.SWEEP_JOB:
        from codetune.sweep.perform import train_one

        return train_one(job)
    from codetune.stages.pipeline import run_job

    return run_job(job, worker)


def _run_command() -> None:
    try:
        require_unicode(sys.argv)
        sys.exit(_exit_status())
    finally:
        dispatch.release_followers()


def _exit_status() -> int:
    """Runs the command. Typer's errors about the command line become UsageError, so that all errors look alike."""
    try:
        if (begun := begun_assignment()) is not None:
            sys.stdout.write("\n".join(word.partition("=")[2] for word in completed_assignments(begun)))
            return 0
        status = app(prog_name="codetune", standalone_mode=False)
        sys.stdout.flush()
    except _WrongUsage as why:
        if type(why).__name__ == "NoArgsIsHelpError":  # its message is the help
            why.show()
            return int(why.exit_code)
        command = why.ctx.command_path if why.ctx else "codetune"
        message = why.format_message()
        message += "" if message[-1] in ".?" else "."
        if type(why).__name__ == "NoSuchOption" and " " not in command:
            message += " Options come after the command, as in: codetune COMMAND -p PATH."
        raise UsageError(f"{message} See: {command} --help") from None
    except OSError as why:  # of standard output, while help was written to it
        if why.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left in the buffer
        if why.errno == errno.EPIPE:
            return 1
        raise CodetuneError(f"Writing failed: {why.strerror} (standard output). Send it somewhere else") from None
    return status if isinstance(status, int) else 0
