"""The console: what every command has in common; words in, servers around it, words and an exit code out.

Results go to standard output, all else to standard error. What is slow to import is imported where it is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from deployments.settings import Settings

DONE, FAILED, WRONG_INPUT = 0, 1, 2
_OBJECT_ID_DIGITS = 24

JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, for programs.")]


@dataclass(frozen=True, slots=True)
class Running:
    """What stands around a command."""

    settings: Settings
    blocks: list[str]


@contextmanager
def services() -> Iterator[Running]:
    """Yield the settings with their servers running and the blocks registered."""
    from deployments.local_services import running_services
    from deployments.register_blocks import protect_home, register_blocks
    from deployments.settings import load_settings

    settings = load_settings()
    protect_home(settings.home)
    if settings.prefect_api_url is None or settings.embedded:
        say("starting what the environment doesn't name: " + ", ".join(local_servers(settings)))
    with running_services(settings) as services:
        yield Running(settings, register_blocks(settings, embedded_uri=services.mongo_uri))


def local_servers(settings: Settings) -> list[str]:
    """Return which servers the environment does not name."""
    return ["mongod"] * settings.embedded + ["Prefect server"] * (settings.prefect_api_url is None)


def object_id(value: str, option: str) -> str:
    """Return an id in lower case, or end with what an id looks like."""
    lowered = value.strip().lower()
    if len(lowered) != _OBJECT_ID_DIGITS or any(digit not in "0123456789abcdef" for digit in lowered):
        wrong(f"{option} {value!r}: an id is 24 hexadecimal digits, as in teams._id")
    return lowered


def moment(value: str | None, option: str) -> datetime | None:
    """Return a date and time, or end with what one looks like."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        wrong(f"{option} {value!r}: write a date such as 2025-06-01 or 2025-06-01T12:00")


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(value, default=_as_json, ensure_ascii=False))


def _as_json(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def say(text: str) -> None:
    """Print a line for a person who looks on."""
    print(text, file=sys.stderr, flush=True)


def wrong(text: str) -> NoReturn:
    """End because of the input."""
    say(f"error: {text}")
    raise typer.Exit(WRONG_INPUT)


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yield a function that shows how far it is: a bar on a terminal, nothing in a log (the run's log tells it)."""
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn(f"     {label}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=total, rate="")

        def show(done: int, total: int | None = None) -> None:
            if total is not None:
                bars.update(bar, total=total)
            speed = bars.tasks[0].speed
            bars.update(bar, completed=done, rate=f"{speed:,.0f} rows/s" if speed else "")

        yield show


@contextmanager
def quiet_prefect() -> Iterator[None]:
    """On a terminal the progress bar speaks and Prefect's lines go to its server only; in a log they stay."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from deployments.logs import use_configuration
    from deployments.settings import inspect_settings

    use_configuration(os.environ, inspect_settings()[0])
    if sys.stderr.isatty():
        # Prefect reads its logging configuration from the environment when it is first imported.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from flows.progress import waiting_listener

        token = waiting_listener.set(lambda words: say(f"waiting: {words} Ctrl-C ends it; nothing finished is lost."))
        try:
            yield
        finally:
            waiting_listener.reset(token)
        return
    yield


@contextmanager
def reported() -> Iterator[None]:
    """Turn what was raised into one line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it stopped")
        raise typer.Exit(FAILED) from None
    except Exception as error:  # noqa: BLE001 - the outermost edge: words for what we know, the rest is raised
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    from tasks.domain.errors import BudgetSpentError, InputError, PipelineError

    if isinstance(error, InputError):
        wrong(str(error))
    if isinstance(error, BudgetSpentError):
        say(f"error: {error} Give the same command again to allow the same sum once more.")
        raise typer.Exit(FAILED) from None
    if isinstance(error, PipelineError):
        say(f"error: {error}")
        raise typer.Exit(FAILED) from None
    if type(error).__name__ in ("ParameterTypeError", "ValidationError"):
        wrong(str(error))
    raise error
