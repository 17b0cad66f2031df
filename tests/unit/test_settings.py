"""Settings: names that are a public interface, every problem told at once, and no secret told ever."""

from __future__ import annotations

import os
from pathlib import Path

import pyrage
import pytest

from deployments.register_blocks import make_blocks
from deployments.settings import Settings, describe_settings, env_example, load_settings
from tasks.domain.errors import TerminalError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2-very-secret"
#: The names that the README promises and that no release may change.
PUBLIC = [
    "CRYPTIQUE_SOURCE_URI",
    "CRYPTIQUE_SOURCE_DATABASE",
    "CRYPTIQUE_VECTORS_URI",
    "CRYPTIQUE_VECTORS_DATABASE",
    "CRYPTIQUE_EMBEDDER",
    "GEMINI_API_KEY",
    "GEMINI_BASE_URL",
    "SLACK_WEBHOOK_URL",
    "CRYPTIQUE_ALERT_WEBHOOK_KIND",
    "CRYPTIQUE_HOME",
    "CRYPTIQUE_SHARDS",
    "CRYPTIQUE_S3_ENDPOINT",
    "CRYPTIQUE_S3_REGION",
    "CRYPTIQUE_S3_ACCESS_KEY",
    "CRYPTIQUE_S3_SECRET_KEY",
    "AWS_ENDPOINT_URL_S3",
    "CRYPTIQUE_BACKUPS",
    "CRYPTIQUE_BACKUP_RECIPIENTS",
    "CRYPTIQUE_BACKUP_IDENTITIES",
]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment of this machine nor a file ``.env`` of the checkout."""
    for name in [*os.environ, *Settings.model_fields]:
        if name.upper() in {field.upper() for field in Settings.model_fields}:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def problem(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TerminalError) as failed:
        load_settings()
    return str(failed.value)


def test_the_public_names_are_there_and_the_others_follow_their_pattern() -> None:
    names = [row.name for row in describe_settings()]
    assert set(PUBLIC) <= set(names)
    assert all(name.startswith(("AWS_", "CRYPTIQUE_", "GEMINI_", "PREFECT_", "SLACK_")) for name in names)


def test_the_example_file_is_the_one_that_the_model_writes() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example()


def test_the_example_names_every_setting_commented_out_and_explained() -> None:
    lines = env_example().splitlines()
    assert all(not line or line.startswith("# ") for line in lines)
    for row in describe_settings():
        assert row.description
        assert sum(line.startswith(f"# {row.name}=") for line in lines) == 1


def test_the_example_can_be_used_as_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(env_example(), encoding="utf-8")
    assert load_settings().embedded


def test_without_any_setting_the_embedded_database_and_the_local_embedder_serve() -> None:
    settings = load_settings()
    assert settings.embedded
    assert settings.embedder == "local"
    assert settings.vectors_database == settings.cryptique_source_database
    assert settings.home == Path.cwd() / ".cryptique"


def test_a_key_alone_chooses_gemini_and_a_choice_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    assert load_settings().embedder == "gemini"
    monkeypatch.setenv("CRYPTIQUE_EMBEDDER", "local")
    assert load_settings().embedder == "local"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PUBLIC:
        monkeypatch.setenv(name, "")
    assert load_settings() == Settings()


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CRYPTIQUE_SOURCE_DATABASE=from_file\nCRYPTIQUE_HOME=from_file\n", encoding="utf-8")
    monkeypatch.setenv("CRYPTIQUE_HOME", "from_environment")
    settings = load_settings()
    assert settings.cryptique_source_database == settings.vectors_database == "from_file"
    assert settings.home.name == "from_environment"


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = problem(
        monkeypatch,
        CRYPTIQUE_SOURCE_URI=f"postgres://user:{SECRET}@host/",
        CRYPTIQUE_SOURCE_DATABASE="a/b",
        CRYPTIQUE_EMBEDDER="openai",
        GEMINI_BASE_URL="generativelanguage",
        CRYPTIQUE_GEMINI_DIMENSIONS="0",
    )
    for name in (
        "CRYPTIQUE_SOURCE_URI",
        "CRYPTIQUE_SOURCE_DATABASE",
        "CRYPTIQUE_EMBEDDER",
        "GEMINI_BASE_URL",
        "CRYPTIQUE_GEMINI_DIMENSIONS",
    ):
        assert name in told
    assert SECRET not in told


def test_every_combination_that_cannot_work_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    told = problem(
        monkeypatch,
        CRYPTIQUE_EMBEDDER="gemini",
        CRYPTIQUE_VECTORS_URI=f"mongodb://user:{SECRET}@host/",
        CRYPTIQUE_HOME="file",
    )
    for name in ("GEMINI_API_KEY", "CRYPTIQUE_SOURCE_URI", "CRYPTIQUE_HOME"):
        assert name in told
    assert SECRET not in told


@pytest.mark.parametrize("name", ["a" * 64, "a b", "a.b", "$a", 'a"b'])
def test_a_database_name_that_mongodb_refuses_is_refused_here(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert "CRYPTIQUE_VECTORS_DATABASE" in problem(monkeypatch, CRYPTIQUE_VECTORS_DATABASE=name)


@pytest.mark.parametrize("url", ["hooks.example", "ftp://host/", "https:///", "https://host:x/", "https://host/a b"])
def test_a_webhook_that_is_no_address_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    told = problem(monkeypatch, SLACK_WEBHOOK_URL=f"{url}{SECRET}", CRYPTIQUE_ALERT_WEBHOOK_KIND="teams")
    assert "SLACK_WEBHOOK_URL" in told
    assert "CRYPTIQUE_ALERT_WEBHOOK_KIND" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    ("place", "folder", "shared", "bucket"),
    [
        (None, ".cryptique/shards", None, None),
        ("shards", "shards", None, None),
        ("/data/shards", "/data/shards", None, None),
        ("shared:/mnt/shards", ".cryptique/scratch", "/mnt/shards", None),
        ("s3://shards.of-us", ".cryptique/scratch", None, ("shards.of-us", "")),
        ("s3://shards/a/b/", ".cryptique/scratch", None, ("shards", "a/b")),
    ],
)
def test_shard_files_lie_in_a_folder_in_one_that_machines_share_or_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch,
    place: str | None,
    folder: str,
    shared: str | None,
    bucket: tuple[str, str] | None,
) -> None:
    if place is not None:
        monkeypatch.setenv("CRYPTIQUE_SHARDS", place)
    monkeypatch.setenv("CRYPTIQUE_S3_ENDPOINT", "http://127.0.0.1:8333/")
    settings = load_settings()
    assert settings.shards_folder == Path.cwd() / folder
    assert settings.shared_shards == (shared and Path(shared))
    assert settings.shards_bucket == bucket
    store = make_blocks(settings).shards
    assert store.folder == settings.shards_folder
    assert store.shared == settings.shared_shards
    if bucket is None:
        assert store.bucket is None
    else:
        assert store.bucket is not None
        assert (store.bucket.bucket, store.bucket.prefix) == bucket
        assert store.bucket.endpoint == "http://127.0.0.1:8333"


@pytest.mark.parametrize(
    "place",
    ["s3://", "s3://B/x", "s3:///x", "s3://shards/a//x", "s3://shards/../x", "shared:relative", "shared:", "gs://b/x"],
)
def test_a_place_for_shard_files_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    assert "CRYPTIQUE_SHARDS" in problem(monkeypatch, CRYPTIQUE_SHARDS=place)


def test_a_shard_folder_that_is_a_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "CRYPTIQUE_SHARDS" in problem(monkeypatch, CRYPTIQUE_SHARDS="file/shards")


def test_one_key_of_s3_without_the_other_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told = problem(monkeypatch, CRYPTIQUE_S3_SECRET_KEY=SECRET, CRYPTIQUE_S3_ENDPOINT="s3.example")
    assert "CRYPTIQUE_S3_ENDPOINT" in told
    assert "CRYPTIQUE_S3_ACCESS_KEY" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    ("place", "folder", "mounted", "bucket"),
    [
        (None, ".cryptique/backups", False, None),
        ("/data/backups", "/data/backups", False, None),
        ("shared:/mnt/backups", "/mnt/backups", True, None),
        ("s3://backups/a/b/", None, False, ("backups", "a/b")),
    ],
)
def test_backups_lie_in_a_folder_in_one_that_machines_share_or_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch,
    place: str | None,
    folder: str | None,
    mounted: bool,
    bucket: tuple[str, str] | None,
) -> None:
    if place is not None:
        monkeypatch.setenv("CRYPTIQUE_BACKUPS", place)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:8333/")
    monkeypatch.setenv("CRYPTIQUE_BACKUP_KEEP_DAILY", "3")
    store = make_blocks(load_settings()).backups
    assert store.folder == (folder and Path.cwd() / folder)
    assert (store.mounted, store.keep_daily, store.keep_weekly_days, store.keep_monthly) == (mounted, 3, 30, 12)
    if bucket is not None:
        assert store.bucket is not None
        assert (store.bucket.bucket, store.bucket.prefix) == bucket
        assert store.bucket.endpoint == "http://127.0.0.1:8333"
        monkeypatch.setenv("CRYPTIQUE_S3_ENDPOINT", "http://127.0.0.1:9000/")
        chosen = make_blocks(load_settings()).backups.bucket
        assert chosen is not None
        assert chosen.endpoint == "http://127.0.0.1:9000"


def test_what_s3_does_with_backups_and_their_keys_reach_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    key = pyrage.x25519.Identity.generate()
    variables = {
        "CRYPTIQUE_BACKUPS": "s3://backups",
        "CRYPTIQUE_BACKUP_STORAGE_CLASS": "STANDARD_IA",
        "CRYPTIQUE_BACKUP_ENCRYPTION": "aws:kms",
        "CRYPTIQUE_BACKUP_KMS_KEY": "alias/backups",
        "CRYPTIQUE_BACKUP_RECIPIENTS": f"{key.to_public()}",
        "CRYPTIQUE_BACKUP_IDENTITIES": f"# public key: {key.to_public()}\n{key}",
        "CRYPTIQUE_DRILL_URI": f"mongodb://drill:{SECRET}@spare/",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    blocks = make_blocks(load_settings())
    bucket = blocks.backups.bucket
    assert bucket is not None
    assert (bucket.storage_class, bucket.encryption, bucket.kms_key_id) == ("STANDARD_IA", "aws:kms", "alias/backups")
    assert blocks.shards.bucket is None
    assert blocks.backups.recipients == [str(key.to_public())]
    assert blocks.backups.identities is not None
    assert blocks.backups.identities.get_secret_value() == str(key)
    for shown in (repr(load_settings()), repr(blocks.backups), str(blocks.backups.model_dump())):
        assert SECRET not in shown
        assert str(key) not in shown


def test_every_wrong_word_about_backups_is_named_and_no_key_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    told = problem(
        monkeypatch,
        CRYPTIQUE_BACKUPS="gs://backups",
        CRYPTIQUE_BACKUP_RECIPIENTS="ssh-ed25519",
        CRYPTIQUE_BACKUP_IDENTITIES=SECRET,
        CRYPTIQUE_BACKUP_STORAGE_CLASS="DEEP_ARCHIVE",
        CRYPTIQUE_BACKUP_ENCRYPTION="rot13",
        CRYPTIQUE_BACKUP_KMS_KEY="alias/backups",
        CRYPTIQUE_BACKUP_KEEP_MONTHLY="0",
        CRYPTIQUE_DRILL_URI=f"postgres://{SECRET}/",
    )
    for words in (
        "CRYPTIQUE_BACKUPS: must be a folder",
        "begins with age1",
        "begins with AGE-SECRET-KEY-1",
        "GLACIER_IR can",
        "CRYPTIQUE_BACKUP_ENCRYPTION: ",
        "needs CRYPTIQUE_BACKUP_ENCRYPTION=aws:kms",
        "CRYPTIQUE_BACKUP_KEEP_MONTHLY",
        "CRYPTIQUE_DRILL_URI: must begin with mongodb://",
    ):
        assert words in told
    assert SECRET not in told


def test_backups_that_nobody_here_could_open_are_refused_before_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    recipients = f"{one.to_public()}"
    for identities in ("", str(other)):
        told = problem(monkeypatch, CRYPTIQUE_BACKUP_RECIPIENTS=recipients, CRYPTIQUE_BACKUP_IDENTITIES=identities)
        assert "no private key that belongs to one of CRYPTIQUE_BACKUP_RECIPIENTS" in told
        assert str(other) not in told
    monkeypatch.setenv("CRYPTIQUE_BACKUP_IDENTITIES", f"{other}, {one}")
    assert load_settings().backup_recipients == [recipients]


def test_what_s3_would_do_is_refused_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "would do nothing" in problem(monkeypatch, CRYPTIQUE_BACKUP_ENCRYPTION="AES256")


def test_no_secret_is_in_what_settings_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTIQUE_SOURCE_URI", f"mongodb://user:{SECRET}@host/")
    monkeypatch.setenv("CRYPTIQUE_VECTORS_URI", f"mongodb+srv://user:{SECRET}@host/")
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    monkeypatch.setenv("CRYPTIQUE_S3_ACCESS_KEY", SECRET)
    monkeypatch.setenv("CRYPTIQUE_S3_SECRET_KEY", SECRET)
    monkeypatch.setenv("SLACK_WEBHOOK_URL", f"https://hooks.slack.example/services/{SECRET}")
    settings = load_settings()
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in shown
    assert settings.gemini_api_key is not None
    assert settings.gemini_api_key.get_secret_value() == SECRET


def test_what_holds_a_password_or_a_key_is_marked_as_a_secret() -> None:
    secret = {row.name for row in describe_settings() if row.secret}
    assert {"CRYPTIQUE_SOURCE_URI", "CRYPTIQUE_VECTORS_URI", "GEMINI_API_KEY", "SLACK_WEBHOOK_URL"} <= secret
    assert {"CRYPTIQUE_S3_ACCESS_KEY", "CRYPTIQUE_S3_SECRET_KEY"} <= secret


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example",
        "https://*.app.example",
        "https://app.example/",
        "https://app.example/page",
        "https://App.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://user@app.example",
        "https://app.example:99999",
        "ftp://app.example",
        "https://",
        "https://a.example https://b.example?x",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    assert "as browsers name them" in problem(monkeypatch, CRYPTIQUE_CORS_ORIGINS=f"https://good.example,{origin}")


def test_origins_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().cors_origins == []
    given = ["https://app.example", "http://localhost:3000", "http://127.0.0.1:5173", "https://[::1]:8443"]
    monkeypatch.setenv("CRYPTIQUE_CORS_ORIGINS", ", ".join(given))
    assert load_settings().cors_origins == given
