"""Logs: what ``deployments/logging.yml`` makes, by the process's environment: where the files are, and the console."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.log_files import DatedLogHandler
from tasks.domain.log_lines import JsonFormatter, redacted

if TYPE_CHECKING:
    from deployments.settings import Settings

CONFIGURATION = Path(__file__).resolve().with_name("logging.yml")
FOLDER_SETTING, HOME_SETTING, ENVIRONMENT_SETTING = "CRYPTIQUE_LOGS", "CRYPTIQUE_HOME", "CRYPTIQUE_ENVIRONMENT"


def use_configuration(environment: MutableMapping[str, str], settings: Settings) -> None:
    """Let processes of this environment log by our configuration and these settings, unless it names others."""
    environment.setdefault("PREFECT_LOGGING_SETTINGS_PATH", str(CONFIGURATION))
    environment.setdefault(ENVIRONMENT_SETTING, settings.cryptique_environment)
    environment.setdefault(FOLDER_SETTING, str(settings.logs_folder))
    if settings.cryptique_logs is not None:
        # Its parents too; under the home nothing is made before there is one. What fails here, the first line tells.
        with suppress(OSError):
            settings.logs_folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def logs_folder() -> Path:
    """Return where the files are: CRYPTIQUE_LOGS, or ``logs`` under CRYPTIQUE_HOME."""
    chosen = os.environ.get(FOLDER_SETTING)
    return (Path(chosen) if chosen else Path(os.environ.get(HOME_SETTING) or ".cryptique") / "logs").absolute()


def make_files() -> DatedLogHandler:
    """Return the handler of the files."""
    return DatedLogHandler(logs_folder(), ui_url=_ui_url, facts=_run_facts)


def make_console_formatter(**words: Any) -> logging.Formatter:
    """Return Prefect's formatter for a person, or in production JSON for a collector."""
    if os.environ.get(ENVIRONMENT_SETTING) == "production":
        return JsonFormatter(ui_url=_ui_url, facts=_run_facts)
    from prefect.logging.formatters import PrefectFormatter

    class Readable(PrefectFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return redacted(super().format(record))

    return Readable(**words)


class RedactingFormatter(logging.Formatter):
    """The plain message and stack, without secrets: what the Prefect server keeps of a run."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text."""
        return redacted(super().format(record))


def _run_facts() -> dict[str, str]:
    """Return the run that this context is in, for lines of loggers that know of none."""
    # While Prefect itself is imported there is no run, and its module may be half made.
    context = sys.modules.get("prefect.context")
    if context is None or not hasattr(context, "TaskRunContext"):
        return {}
    found: dict[str, str] = {}
    of_flow, of_task = context.FlowRunContext.get(), context.TaskRunContext.get()
    if of_flow is not None and of_flow.flow_run is not None:
        found |= {"flow_run_id": str(of_flow.flow_run.id), "flow_run_name": of_flow.flow_run.name}
        if of_flow.flow is not None:
            found["flow_name"] = of_flow.flow.name
    if of_task is not None:
        run = of_task.task_run
        found |= {"task_run_id": str(run.id), "task_run_name": run.name, "task_name": of_task.task.name}
        if run.flow_run_id is not None:
            found["flow_run_id"] = str(run.flow_run_id)
    return found


@cache
def _ui_url() -> str | None:
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

    url = PREFECT_UI_URL.value() or (PREFECT_API_URL.value() or "").rstrip("/").removesuffix("/api")
    return url.rstrip("/") or None
