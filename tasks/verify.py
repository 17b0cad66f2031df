"""Verify: one part of a backup, read back from where it lies."""

from __future__ import annotations

from bson.errors import InvalidBSON
from prefect import task

from blocks.backups import BackupStore
from blocks.memory import release_memory
from tasks.domain.backups import BackupDamagedError, Part, StoredBackup, Verification
from tasks.domain.bson_documents import DocumentSplitter
from tasks.policy import STAGE


@task(name="read part back", task_run_name="read back {part.name}", **STAGE)
def read_part_back(backup_id: str, part: Part, backups: BackupStore) -> str | None:
    """Return what is wrong with a part, or None if it is, to the byte, what was written.

    Raises ``TransientError`` where the store does not answer: that says nothing of the part.
    """
    splitter = DocumentSplitter()
    documents = 0

    def take(block: bytes) -> None:
        nonlocal documents
        documents += len(splitter.split(block))

    try:
        backups.read_part(backup_id, part, take)
        splitter.require_end()
    except BackupDamagedError as error:
        return str(error)
    except InvalidBSON as error:
        return f"{part.name} holds what is no BSON: {error}"
    finally:
        release_memory()
    return None if documents == part.documents else f"{part.name} holds {documents:,} documents of {part.documents:,}"


@task(name="find backup", task_run_name="find {backup_id}", **STAGE)
def find_backup(backup_id: str, backups: BackupStore) -> tuple[StoredBackup | None, str]:
    """Return a backup as it stands, or None, and the SHA-256 of its manifest as it is stored."""
    found = backups.find(backup_id)
    return found, "" if found is None else backups.manifest_sha256(backup_id)


@task(name="save verification", task_run_name="save verification of {backup_id}", **STAGE)
def save_verification(backup_id: str, verification: Verification, backups: BackupStore) -> None:
    """Put down what reading a backup back found. Safe to repeat."""
    backups.save_verification(backup_id, verification)
