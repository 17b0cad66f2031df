"""A backup whose S3 server fails: a retry that succeeds and a good backup, or a clear failure and none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from blocks.backups import BackupStore
from blocks.s3 import S3Bucket
from blocks.slack import SlackNotifier
from flows.backup import backup
from flows.blocks import ALERTS
from tests.contracts.test_s3 import changed, spoiled
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline
from tests.loopback.slack import LoopbackSlack

ROWS = 40


@pytest.fixture(scope="module")
def filled(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pipeline]:
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("home"), separate_store=True) as opened:
        opened.load(source_data, source_data.some(ROWS))
        opened.migrate()
        opened.store.vectordocuments.update_many({}, {"$set": {"padding": "s" * 30_000}})
        with LoopbackSlack() as slack:
            opened.use(cryptique_embedder="local", slack_webhook_url=slack.url)
            opened.register()
            opened.slack = slack  # type: ignore[attr-defined]
            yield opened
    SlackNotifier.delete(ALERTS, _sync=True)  # type: ignore[call-arg]


def backed_up(pipeline: Pipeline, bucket: S3Bucket, **parameters: Any) -> Any:
    """Return the state of a backup into this bucket."""
    pipeline.register()
    BackupStore(bucket=bucket).save("backups", overwrite=True, _sync=True)  # type: ignore[call-arg]
    return pipeline.run(backup, **parameters)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("cut up once", id="cut up", marks=pytest.mark.long),
        pytest.param("cut once", id="cut down"),
        pytest.param((503, 5), id="storm of 503", marks=pytest.mark.long),
    ],
)
def test_what_passes_ends_in_a_good_backup(filled: Pipeline, bucket: S3Bucket, fault: Any) -> None:
    with spoiled(bucket, fault, attempts=3) as (through, server):
        state = backed_up(filled, through, retries=1)
        assert server.fault in ("", fault)
    assert state.is_completed(), state.message
    (found,) = BackupStore(bucket=bucket).list_backups()
    assert found.state == "good"


@pytest.mark.parametrize(
    ("fault", "changes", "words"),
    [
        pytest.param(503, {}, "503", marks=pytest.mark.long),
        pytest.param("spoil up", {}, "BadDigest", marks=pytest.mark.long),
        ("", {"secret_key": SecretStr("wrong")}, "CRYPTIQUE_S3_ACCESS_KEY"),
        ("", {"bucket": "nowhere-at-all"}, "there is no bucket"),
    ],
    ids=["storm that stays", "every byte spoiled", "wrong keys", "no bucket"],
)
def test_what_stays_is_one_critical_alert_with_what_to_do_and_no_backup(
    filled: Pipeline, bucket: S3Bucket, fault: Any, changes: dict[str, Any], words: str
) -> None:
    slack: LoopbackSlack = filled.slack  # type: ignore[attr-defined]
    told = len(slack.taken)
    filled.store.ragincidents.delete_many({})
    with spoiled(bucket, fault) as (through, _):
        state = backed_up(filled, changed(through, **changes), **({"retries": 1} if fault else {}))
    assert state.is_failed()
    assert words in str(state.message)
    assert [one.state for one in BackupStore(bucket=bucket).list_backups()] in ([], ["unfinished"])
    (alert,) = slack.taken[told:]
    assert "backup failed" in alert.text
    if not fault:  # the command can't say how often is tried
        assert "cryptique-rag backup" in alert.text
