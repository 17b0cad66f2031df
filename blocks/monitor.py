"""What the monitor goes by: where its book lies, and from where on something is told."""

from __future__ import annotations

from pathlib import Path

from prefect.blocks.core import Block
from pydantic import Field

from blocks.monitor_book import MonitorBook
from tasks.domain.alerts import Limits


class Monitor(Block):
    """The settings of the monitor; the same for the process that watches and for runs of the flow ``monitor``."""

    _block_type_name = "Cryptique monitor"
    _block_type_slug = "cryptique-monitor"

    folder: Path = Field(description="Folder of CRYPTIQUE_HOME; the book lies below it.")
    logs: Path = Field(description="Folder of the log files.")
    limits: Limits = Field(default_factory=Limits, description="From where on something is told.")
    public_url: str | None = Field(default=None, description="Where people reach the dashboard; alerts link there.")
    pool: str = Field(description="Work pool that must have a worker.")

    def open_book(self) -> MonitorBook:
        """Return the book. No file is opened yet."""
        return MonitorBook(self.folder / "monitor")
