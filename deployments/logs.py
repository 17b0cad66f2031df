"""Logs: what ``deployments/logging.yml`` makes, by the process's environment: where the files are, and the console."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.log_files import DatedLogHandler
from tasks.domain.log_lines import JsonFormatter

if TYPE_CHECKING:
    from deployments.settings import Settings

CONFIGURATION = Path(__file__).resolve().with_name("logging.yml")
FOLDER_SETTING, HOME_SETTING, ENVIRONMENT_SETTING = "CRYPTIQUE_LOGS", "CRYPTIQUE_HOME", "CRYPTIQUE_ENVIRONMENT"


def use_configuration(environment: MutableMapping[str, str], settings: Settings) -> None:
    """Let processes of this environment log by our configuration and these settings, unless it names others."""
    environment.setdefault("PREFECT_LOGGING_SETTINGS_PATH", str(CONFIGURATION))
    environment.setdefault(ENVIRONMENT_SETTING, settings.cryptique_environment)
    environment.setdefault(FOLDER_SETTING, str(settings.logs_folder))


def logs_folder() -> Path:
    """Return where the files are: CRYPTIQUE_LOGS, or ``logs`` under CRYPTIQUE_HOME."""
    chosen = os.environ.get(FOLDER_SETTING)
    return (Path(chosen) if chosen else Path(os.environ.get(HOME_SETTING) or ".cryptique") / "logs").absolute()


def make_files() -> DatedLogHandler:
    """Return the handler of the files."""
    return DatedLogHandler(logs_folder(), ui_url=_ui_url)


def make_console_formatter(**words: Any) -> logging.Formatter:
    """Return Prefect's formatter for a person, or in production JSON for a collector."""
    if os.environ.get(ENVIRONMENT_SETTING) == "production":
        return JsonFormatter()
    from prefect.logging.formatters import PrefectFormatter

    return PrefectFormatter(**words)


@cache
def _ui_url() -> str | None:
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

    url = PREFECT_UI_URL.value() or (PREFECT_API_URL.value() or "").rstrip("/").removesuffix("/api")
    return url.rstrip("/") or None
