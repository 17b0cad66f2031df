"""Settings: the environment, read once, checked whole, and explained.

The names are the public interface. ``.env.example`` is written from this model (``cryptique-rag config example``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deployments.environments import environment_problems
from tasks.domain.alerts import Limits
from tasks.domain.errors import InputError
from tasks.domain.incidents import WebhookKind
from tasks.domain.rows import VectorForm

EmbedderName = Literal["gemini", "local"]
DEMO_DATABASE = "cryptique_demo"
DEFAULT_CHILD_RUNS = 2
#: A key of HMAC with SHA-256 should be as long as what it makes (RFC 7518, 3.2).
_SHORTEST_JWT_SECRET = 32
_WEB_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9.-]+|[0-9a-f:]+")
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Settings(BaseSettings):
    """All settings of the pipeline; each is an environment variable of the same name in capitals.

    An empty variable counts as unset. Values are read from the environment and from a file ``.env`` in the current
    folder; the environment wins.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        case_sensitive=False,
    )

    cryptique_environment: Literal["development", "staging", "production"] = Field(
        default="development",
        description="Which of your environments this is. staging and production refuse to start with the embedded "
        "mongod, a database of another environment, or default secrets; production also without alerts and backups.",
    )
    cryptique_source_uri: SecretStr | None = Field(
        default=None,
        description="MongoDB of the application, read only. Unset: the embedded mongod serves, under CRYPTIQUE_HOME.",
        examples=["mongodb://reader:password@db.example:27017/?replicaSet=rs0"],
    )
    cryptique_source_database: str = Field(
        default=DEMO_DATABASE,
        min_length=1,
        description="Database that holds transactions, smartcontracts, teams, websites, sessions and the others.",
    )
    cryptique_pseudonym_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="By which the ids of users become pseudonyms, 16 characters at least. Keep it: another one gives "
        "every visitor another name. Unset: a random one, made once under CRYPTIQUE_HOME.",
        examples=["32-random-characters"],
    )
    cryptique_vectors_uri: SecretStr | None = Field(
        default=None,
        description="MongoDB of the vector store. Unset: the source's.",
        examples=["mongodb+srv://writer:password@cluster.example/"],
    )
    cryptique_vectors_database: str | None = Field(
        default=None, description="Database that takes vectordocuments and its books. Unset: the source's."
    )
    cryptique_vector_form: VectorForm = Field(
        default="float32",
        description="How vectors are stored from now on. float32: BSON binary vectors. int8: a quarter of the bytes. "
        "bits: a thirty-second, the signs alone. doubles: arrays, 2.6 times the bytes, for readers that know nothing "
        "else.",
    )
    cryptique_embedder: EmbedderName | None = Field(
        default=None,
        description="gemini, or local (offline, 256 numbers). Unset: gemini where GEMINI_API_KEY is set, else local.",
    )
    gemini_api_key: SecretStr | None = Field(
        default=None, description="Key of the Google project that pays for embeddings.", examples=["your-key"]
    )
    gemini_base_url: str = Field(
        default="https://generativelanguage.googleapis.com",
        description="Where Gemini answers; a proxy, or a test's server.",
    )
    cryptique_gemini_model: str = Field(
        default="gemini-embedding-001",
        description="gemini-embedding-001 or gemini-embedding-2. Vectors of two models never mix.",
    )
    cryptique_gemini_dimensions: int = Field(default=1536, ge=1, le=3072, description="Numbers per vector.")
    cryptique_gemini_client: Literal["rest", "genai", "generativeai"] = Field(
        default="rest",
        description="rest: our own calls, the least CPU. genai: google-genai. generativeai: the older "
        "google-generativeai (an extra).",
    )
    cryptique_gemini_texts_per_minute: int = Field(
        default=3_000,
        ge=0,
        description="Your project's quota of texts (not calls) a minute; tier 1 has 3,000. 0: no limit of ours.",
    )
    cryptique_gemini_tokens_per_minute: int = Field(
        default=1_000_000,
        ge=0,
        description="Your project's quota of tokens a minute; tier 1 has 1,000,000. 0: no limit of ours.",
    )
    cryptique_gemini_texts_per_day: int | None = Field(
        default=None,
        ge=1,
        description="How many texts all runs together may embed a day; the day ends at midnight Pacific time. The free "
        "tier has 1,000. Unset: no limit of ours.",
    )
    cryptique_gemini_usd_per_day: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="How many dollars all runs together may spend on embeddings a day, at Gemini's list price. Unset: "
        "no limit of ours.",
    )
    cryptique_gemini_chat_model: str = Field(
        default="gemini-2.5-flash",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Which model writes the answers of /api/rag/generate, where GEMINI_API_KEY is set. What it costs "
        "counts against CRYPTIQUE_GEMINI_USD_PER_DAY too.",
    )
    cryptique_gemini_chat_usd_in: float = Field(
        default=0.30, ge=0, allow_inf_nan=False, description="Its list price of a million tokens that it reads."
    )
    cryptique_gemini_chat_usd_out: float = Field(
        default=2.50, ge=0, allow_inf_nan=False, description="Its list price of a million tokens that it writes."
    )
    cryptique_gemini_chat_seconds: float = Field(
        default=30.0,
        gt=0,
        le=120,
        description="Seconds that an answer of it may take; then sentences of the documents are the answer.",
    )
    cryptique_gemini_concurrency: int = Field(default=4, ge=1, le=64, description="Requests in flight per process.")
    cryptique_gemini_batch_texts: int = Field(
        default=10_000, ge=1, le=50_000, description="Texts per batch job at most."
    )
    cryptique_gemini_batch_tokens: int = Field(
        default=1_500_000,
        ge=1,
        description="Tokens per batch job at most; tier 1 is refused larger jobs from about 2,000,000.",
    )
    slack_webhook_url: SecretStr | None = Field(
        default=None,
        description="Webhook that is told of failures. Unset: nobody is told; the Prefect UI shows them.",
        examples=["https://hooks.slack.com/services/T000/B000/your-token"],
    )
    cryptique_alert_webhook_kind: WebhookKind = Field(
        default="slack", description="What listens at the webhook: slack, discord, or generic (flat JSON)."
    )
    cryptique_alert_error_rate: float = Field(
        default=0.10, gt=0, le=1, description="Alert (critical) when a larger share of requests fails, of five minutes."
    )
    cryptique_alert_error_sample: int = Field(
        default=20, ge=1, description="Requests that must have been made before their share of failures counts."
    )
    cryptique_alert_slow_seconds: float = Field(
        default=5.0, gt=0, description="Alert (warning) when 95 % of responses take longer."
    )
    cryptique_alert_memory: float = Field(
        default=0.80,
        gt=0,
        le=1,
        description="Alert (warning) when more of the memory is used, of the container's limit.",
    )
    cryptique_alert_queue: int = Field(default=100, ge=0, description="Alert (warning) when more jobs wait.")
    cryptique_alert_ingest_lag_seconds: float = Field(
        default=900.0, gt=0, description="Alert (warning) when what changed in the source waits longer."
    )
    cryptique_alert_backup_hours: float = Field(
        default=26.0, gt=0, description="Alert (critical) when the newest good backup is older."
    )
    cryptique_alert_dead_letters: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Alert (warning) when a run refuses a larger share of 100 records and more.",
    )
    cryptique_alert_usd_per_day: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Alert (critical) when embedding costs more since midnight UTC. Unset: "
        "CRYPTIQUE_GEMINI_USD_PER_DAY.",
    )
    cryptique_alert_disk: float = Field(
        default=0.90, gt=0, le=1, description="Alert (critical) when more of the disk of CRYPTIQUE_HOME is used."
    )
    cryptique_alert_cpu: float = Field(
        default=0.95, gt=0, le=1, description="A line in the log when the processors are busier, over ten minutes."
    )
    cryptique_alert_replication_lag_seconds: float = Field(
        default=60.0, gt=0, description="Alert (warning) when a replica of MongoDB is further behind."
    )
    cryptique_alert_connections: float = Field(
        default=0.80, gt=0, le=1, description="Alert (warning) when more of MongoDB's connections are taken."
    )
    cryptique_alert_slow_operations: int = Field(
        default=5, ge=0, description="Alert (warning) when more operations of MongoDB run for over ten seconds."
    )
    cryptique_admin_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Password of the user admin on the operations pages, and bearer token of /metrics; 16 characters "
        "at least. Unset: these pages are closed; `cryptique-rag up` makes one under CRYPTIQUE_HOME.",
        examples=["32-random-characters"],
    )
    cryptique_http_host: str = Field(
        default="127.0.0.1",
        description="Address that `cryptique-rag serve` listens on; a proxy belongs before any other.",
    )
    cryptique_http_port: int = Field(default=8600, ge=1, le=65_535, description="Port that it listens on.")
    cryptique_http_watch: bool = Field(
        default=True, description="Whether `cryptique-rag serve` also watches all parts and tells what is wrong."
    )
    cryptique_http_rate_limit: int = Field(
        default=100, ge=1, description="Requests that one client may make per window, all processes together."
    )
    cryptique_http_rate_window_seconds: int = Field(default=900, ge=1, description="Seconds of that window.")
    cryptique_http_trusted_proxies: str | None = Field(
        default=None,
        description="Networks of proxies whose X-Forwarded-For says who asks, separated by commas. Unset: none.",
        examples=["10.0.0.0/8"],
    )
    cryptique_jwt_secret: SecretStr | None = Field(
        default=None,
        description="Secret by which the application signs its users' tokens (HS256), 32 characters at least; several, "
        "separated by commas, while one takes the other's place. Unset, with CRYPTIQUE_JWT_PUBLIC_KEYS: retrieval over "
        "HTTP is closed.",
        examples=["32-random-characters-and-some-more"],
    )
    cryptique_jwt_public_keys: Path | None = Field(
        default=None,
        description="File of public keys in PEM, where tokens are signed with private ones (RS256, ES256).",
        examples=["/etc/cryptique/jwt.pem"],
    )
    cryptique_jwt_issuer: str | None = Field(default=None, description="Issuer that tokens must name. Unset: any.")
    cryptique_jwt_audience: str | None = Field(default=None, description="Audience that they must name. Unset: any.")
    cryptique_api_rate_limit: int = Field(
        default=600, ge=1, description="Requests that one team may make to /api per minute, all processes together."
    )
    cryptique_api_timeout_seconds: float = Field(
        default=10.0, gt=0, le=120, description="Seconds that a request to /api may wait for the stores."
    )
    cryptique_search_by: Literal["auto", "index"] = Field(
        default="auto",
        description="What finds the nearest vectors: the server's vector search where it has one (auto), or the index.",
    )
    cryptique_api_requests_at_once: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Requests to /api that one process works on or keeps waiting; further ones come again (429).",
    )
    cryptique_cors_origins: str | None = Field(
        default=None,
        description="Origins whose pages may ask /api from a browser, separated by commas, each as a browser names it: "
        "scheme, host and port. Unset: none.",
        examples=["https://app.example,http://localhost:3000"],
    )
    cryptique_public_url: str | None = Field(
        default=None,
        description="Where people reach `cryptique-rag serve` in a browser; alerts link there. Unset: they name the "
        "runbook's file.",
        examples=["https://rag.example"],
    )
    cryptique_alert_allow_private: bool | None = Field(
        default=None,
        description="Whether the webhook may be an address inside your network. Unset: in development only; elsewhere "
        "one that leads inside is refused, so that whoever may set it can't reach what only this machine can.",
    )
    cryptique_child_runs: int = Field(
        default=DEFAULT_CHILD_RUNS,
        ge=1,
        le=16,
        description="Most partitions of migrations and backfills that run at once, on all workers together; each is a "
        "process of some 300 MB and more.",
    )
    cryptique_home: Path = Field(
        default=Path(".cryptique"),
        description="Folder for shard files, the embedded mongod and the local Prefect server.",
    )
    cryptique_logs: Path | None = Field(
        default=None,
        description="Folder of log files, one a day for each of combined, error, performance and security. Unset: logs "
        "under CRYPTIQUE_HOME. Workers take it from their own environment.",
    )
    cryptique_shards: str | None = Field(
        default=None,
        description="Where stages hand over and paid texts are kept. Unset: under CRYPTIQUE_HOME. A folder of this "
        "machine; shared:/folder, which several machines mount; or s3://bucket/prefix. Workers on several machines "
        "need one of the last two.",
        examples=["s3://bucket/prefix"],
    )
    cryptique_s3_endpoint: str | None = Field(
        default=None,
        description="Address of an S3-compatible server. Unset: AWS.",
        examples=["https://s3.example:9000"],
    )
    cryptique_s3_region: str | None = Field(
        default=None, description="Region of the bucket. Unset: what boto3 finds.", examples=["eu-central-1"]
    )
    cryptique_s3_access_key: SecretStr | None = Field(
        default=None,
        description="Access key of S3. Unset, with its secret: what boto3 finds on each machine, such as a role.",
        examples=["your-access-key"],
    )
    cryptique_s3_secret_key: SecretStr | None = Field(
        default=None, description="The access key's secret.", examples=["your-secret-key"]
    )
    aws_endpoint_url_s3: str | None = Field(
        default=None,
        description="The same address by the name that AWS's own tools know; CRYPTIQUE_S3_ENDPOINT wins.",
        examples=["https://s3.example:9000"],
    )
    cryptique_backups: str | None = Field(
        default=None,
        description="Where backups lie. Unset: under CRYPTIQUE_HOME, which a lost disk takes with it. A folder of this "
        "machine; shared:/folder, which several machines mount; or s3://bucket/prefix, by the same address and keys as "
        "shard files.",
        examples=["s3://bucket/backups"],
    )
    cryptique_backup_recipients: str | None = Field(
        default=None,
        description="Public keys of age, separated by commas, that backups are encrypted for before they leave this "
        "machine; `cryptique-rag backups new-key` makes one. Unset: not encrypted by us.",
        examples=["age1..."],
    )
    cryptique_backup_identities: SecretStr | None = Field(
        default=None,
        description="Private keys of age that open backups, separated by commas; each backup is read back with them. "
        "Keep them elsewhere too: without one an encrypted backup is lost.",
        examples=["AGE-SECRET-KEY-1..."],
    )
    cryptique_backup_storage_class: str | None = Field(
        default=None,
        description="Storage class of backups in S3, such as STANDARD_IA. Unset: the bucket's own.",
    )
    cryptique_backup_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None, description="How S3 encrypts backups: AES256, aws:kms or aws:kms:dsse. Unset: the bucket's own."
    )
    cryptique_backup_kms_key: str | None = Field(
        default=None, description="Key of AWS KMS for aws:kms and aws:kms:dsse. Unset: the account's own for S3."
    )
    cryptique_backup_keep_daily: int = Field(
        default=7, ge=1, description="How many daily backups are kept; the newest good one always is."
    )
    cryptique_backup_keep_weekly_days: int = Field(
        default=30, ge=1, description="How many days weekly backups are kept; the newest good one always is."
    )
    cryptique_backup_keep_monthly: int = Field(
        default=12, ge=1, description="How many monthly backups are kept; the newest good one always is."
    )
    cryptique_drill_uri: SecretStr | None = Field(
        default=None,
        description="MongoDB in which backups are restored to prove them, into a database of their own that is dropped "
        "again. Unset: the vector store's.",
        examples=["mongodb://drill:password@spare.example/"],
    )
    prefect_api_url: str | None = Field(
        default=None,
        description="A Prefect server of yours. Unset: a local one is started when needed, under CRYPTIQUE_HOME.",
        examples=["http://prefect.example:4200/api"],
    )

    @field_validator("cryptique_source_uri", "cryptique_vectors_uri", "cryptique_drill_uri")
    @classmethod
    def _require_mongo_uri(cls, uri: SecretStr | None) -> SecretStr | None:
        if uri is not None and not uri.get_secret_value().startswith(("mongodb://", "mongodb+srv://")):
            raise ValueError("must begin with mongodb:// or mongodb+srv://")
        return uri

    @field_validator("slack_webhook_url")
    @classmethod
    def _require_webhook(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url.get_secret_value())
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # its words may repeat the address
            usable = False
        if not usable or any(char.isspace() for char in url.get_secret_value()):
            raise ValueError("must be an address such as https://hooks.slack.com/services/...") from None
        return url

    @field_validator(
        "gemini_base_url", "prefect_api_url", "cryptique_s3_endpoint", "aws_endpoint_url_s3", "cryptique_public_url"
    )
    @classmethod
    def _require_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
        except ValueError:  # its words may repeat the address
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://host/") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user or a password: addresses are shown in logs")
        return url.rstrip("/")

    @field_validator("cryptique_jwt_secret")
    @classmethod
    def _require_long_secrets(cls, secrets: SecretStr | None) -> SecretStr | None:
        if secrets is not None and any(len(one) < _SHORTEST_JWT_SECRET for one in _split(secrets.get_secret_value())):
            raise ValueError(f"each secret must have {_SHORTEST_JWT_SECRET} characters at least")
        return secrets

    @field_validator("cryptique_http_trusted_proxies")
    @classmethod
    def _require_networks(cls, networks: str | None) -> str | None:
        for part in (networks or "").split(","):
            try:
                if part.strip():
                    ip_network(part.strip(), strict=False)
            except ValueError:
                raise ValueError("must be networks such as 10.0.0.0/8, separated by commas") from None
        return networks

    @field_validator("cryptique_cors_origins")
    @classmethod
    def _require_origins(cls, origins: str | None) -> str | None:
        for origin in _split(origins or ""):
            if not _is_origin(origin):
                raise ValueError(
                    "must be origins as browsers name them, such as https://app.example or http://localhost:3000, "
                    "separated by commas: no *, no path, no capital letters, no port where it is the scheme's own"
                )
        return origins

    @field_validator("cryptique_shards", "cryptique_backups")
    @classmethod
    def _require_place(cls, place: str | None) -> str | None:
        if place is None:
            return None
        scheme, colon, rest = place.partition(":")
        if place.startswith("s3://"):
            bucket, _, prefix = place.removeprefix("s3://").partition("/")
            if not _BUCKET_NAME.fullmatch(bucket):
                raise ValueError("s3://bucket/prefix: a bucket's name has 3 to 63 of a-z 0-9 . -")
            if any(part in ("", ".", "..") for part in prefix.strip("/").split("/")) and prefix.strip("/"):
                raise ValueError("s3://bucket/prefix: no part of the prefix may be empty, . or ..")
        elif scheme == "shared":
            if not Path(rest).is_absolute():
                raise ValueError("shared:/folder needs the whole path, the same on every machine")
        elif colon:
            raise ValueError("must be a folder, shared:/folder or s3://bucket/prefix")
        return place

    @field_validator("cryptique_backup_recipients")
    @classmethod
    def _require_public_keys(cls, keys: str | None) -> str | None:
        import pyrage

        for key in _split(keys or ""):
            try:
                pyrage.x25519.Recipient.from_str(key)
            except pyrage.RecipientError:
                raise ValueError(
                    "a public key of age begins with age1 and has 62 characters: `cryptique-rag backups new-key` makes "
                    "one"
                ) from None
        return keys

    @field_validator("cryptique_backup_identities")
    @classmethod
    def _require_private_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        import pyrage

        for key in _split(keys.get_secret_value() if keys is not None else ""):
            try:
                pyrage.x25519.Identity.from_str(key)
            except pyrage.IdentityError:  # its words may repeat the key
                raise ValueError(
                    "a private key of age begins with AGE-SECRET-KEY-1 and has 74 characters: `cryptique-rag backups "
                    "new-key` makes one"
                ) from None
        return keys

    @field_validator("cryptique_backup_storage_class")
    @classmethod
    def _refuse_archives(cls, storage_class: str | None) -> str | None:
        if storage_class in ("GLACIER", "DEEP_ARCHIVE"):
            raise ValueError(f"{storage_class} can't be read back at once, and every backup is: GLACIER_IR can")
        return storage_class

    @field_validator("cryptique_source_database", "cryptique_vectors_database")
    @classmethod
    def _require_database_name(cls, name: str | None) -> str | None:
        if name is not None and (len(name) > 63 or any(char in name for char in '/\\. "$*<>:|?')):
            raise ValueError('a MongoDB database name has at most 63 characters and none of / \\ . " $ * < > : | ?')
        return name

    @property
    def allows_private_webhook(self) -> bool:
        """Return whether the webhook may lead to an address inside the network."""
        if self.cryptique_alert_allow_private is not None:
            return self.cryptique_alert_allow_private
        return self.cryptique_environment == "development"

    def as_environment(self) -> dict[str, str]:
        """Return what was set, as variables with their secrets: for a process of ours, and nowhere else."""
        found = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                found[name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name in ("CRYPTIQUE_SHARDS", "CRYPTIQUE_BACKUPS"):
            # A folder is meant from here, wherever that process begins.
            if name in found and ":" not in found[name]:
                found[name] = str(_absolute(Path(found[name])))
        return found

    @property
    def is_production(self) -> bool:
        """Return whether people and money depend on it."""
        return self.cryptique_environment == "production"

    @property
    def limits(self) -> Limits:
        """Return from where on the monitor tells of something."""
        return Limits(
            error_rate=self.cryptique_alert_error_rate,
            error_sample=self.cryptique_alert_error_sample,
            slow_s=self.cryptique_alert_slow_seconds,
            memory=self.cryptique_alert_memory,
            queue=self.cryptique_alert_queue,
            ingest_lag_s=self.cryptique_alert_ingest_lag_seconds,
            backup_age_s=self.cryptique_alert_backup_hours * 3_600,
            dead_letters=self.cryptique_alert_dead_letters,
            usd_per_day=self.cryptique_alert_usd_per_day or self.cryptique_gemini_usd_per_day,
            disk=self.cryptique_alert_disk,
            cpu=self.cryptique_alert_cpu,
            replication_lag_s=self.cryptique_alert_replication_lag_seconds,
            connections=self.cryptique_alert_connections,
            slow_operations=self.cryptique_alert_slow_operations,
        )

    @property
    def embedder(self) -> EmbedderName:
        """Return the embedder that is meant."""
        return self.cryptique_embedder or ("gemini" if self.gemini_api_key else "local")

    @property
    def vectors_database(self) -> str:
        """Return the store's database."""
        return self.cryptique_vectors_database or self.cryptique_source_database

    @property
    def home(self) -> Path:
        """Return the home folder, absolute: workers run elsewhere."""
        return _absolute(self.cryptique_home)

    @property
    def takes_tokens(self) -> bool:
        """Return whether any token of the application can be good: then there is retrieval over HTTP."""
        return bool(self.jwt_secrets) or self.cryptique_jwt_public_keys is not None

    @property
    def jwt_secrets(self) -> list[str]:
        """Return the secrets of tokens; the first signs ours."""
        return _split(self.cryptique_jwt_secret.get_secret_value()) if self.cryptique_jwt_secret is not None else []

    @property
    def cors_origins(self) -> list[str]:
        """Return the origins whose pages may ask ``/api``."""
        return _split(self.cryptique_cors_origins or "")

    @property
    def logs_folder(self) -> Path:
        """Return the folder of log files, absolute."""
        return _absolute(self.cryptique_logs) if self.cryptique_logs is not None else self.home / "logs"

    @property
    def s3_endpoint(self) -> str | None:
        """Return the address of the S3 server, or None for AWS."""
        return self.cryptique_s3_endpoint or self.aws_endpoint_url_s3

    @property
    def shards_bucket(self) -> tuple[str, str] | None:
        """Return the bucket and the prefix where shard files lie, or None where they lie in a folder."""
        return _bucket_of(self.cryptique_shards)

    @property
    def shared_shards(self) -> Path | None:
        """Return the folder that several machines mount, or None."""
        return _mounted_of(self.cryptique_shards)

    @property
    def backups_bucket(self) -> tuple[str, str] | None:
        """Return the bucket and the prefix where backups lie, or None where they lie in a folder."""
        return _bucket_of(self.cryptique_backups)

    @property
    def mounted_backups(self) -> Path | None:
        """Return the folder for backups that several machines mount, or None."""
        return _mounted_of(self.cryptique_backups)

    @property
    def backups_folder(self) -> Path | None:
        """Return the folder where backups lie, absolute, or None where that is a bucket."""
        if self.backups_bucket is not None:
            return None
        if self.cryptique_backups is None:
            return self.home / "backups"
        return self.mounted_backups or _absolute(Path(self.cryptique_backups))

    @property
    def backup_recipients(self) -> list[str]:
        """Return the public keys that backups are encrypted for."""
        return _split(self.cryptique_backup_recipients or "")

    @property
    def backup_identities(self) -> SecretStr | None:
        """Return the private keys that open backups, one a line."""
        keys = self.cryptique_backup_identities
        return None if keys is None else SecretStr("\n".join(_split(keys.get_secret_value())))

    @property
    def shards_folder(self) -> Path:
        """Return this machine's folder for shard files, or, where they are shared, for its copies of them; absolute."""
        if self.shards_bucket is not None or self.shared_shards is not None:
            return self.home / "scratch"
        return self.home / "shards" if self.cryptique_shards is None else _absolute(Path(self.cryptique_shards))

    @property
    def embedded(self) -> bool:
        """Return whether the embedded mongod is the source."""
        return self.cryptique_source_uri is None

    def problems(self) -> list[str]:
        """Return everything about the settings that can't work together, each with what to do."""
        found = []
        if self.embedder == "gemini" and self.gemini_api_key is None:
            found.append(
                "CRYPTIQUE_EMBEDDER is gemini, but GEMINI_API_KEY is not set: set it, or CRYPTIQUE_EMBEDDER=local"
            )
        if self.cryptique_vectors_uri is not None and self.cryptique_source_uri is None:
            found.append("CRYPTIQUE_VECTORS_URI is set, but CRYPTIQUE_SOURCE_URI is not: set both, or neither")
        if (self.cryptique_s3_access_key is None) != (self.cryptique_s3_secret_key is None):
            found.append("CRYPTIQUE_S3_ACCESS_KEY and CRYPTIQUE_S3_SECRET_KEY go together: set both, or neither")
        if self.cryptique_shards is not None and not _is_writable(self.shards_folder):
            found.append(f"CRYPTIQUE_SHARDS {self.cryptique_shards} is no folder that can be written to")
        found.extend(self._backup_problems())
        found.extend(environment_problems(self))
        if self.home.exists() and not self.home.is_dir():
            found.append(f"CRYPTIQUE_HOME {self.cryptique_home} is not a folder")
        elif not os.access(_nearest_existing(self.home), os.W_OK):
            found.append(f"CRYPTIQUE_HOME {self.cryptique_home} can't be written to")
        return found

    def _backup_problems(self) -> list[str]:
        found = []
        folder = self.backups_folder
        if self.cryptique_backups is not None and folder is not None and not _is_writable(folder):
            found.append(f"CRYPTIQUE_BACKUPS {self.cryptique_backups} is no folder that can be written to")
        if self.cryptique_backup_kms_key is not None and self.cryptique_backup_encryption in (None, "AES256"):
            found.append("CRYPTIQUE_BACKUP_KMS_KEY needs CRYPTIQUE_BACKUP_ENCRYPTION=aws:kms (or aws:kms:dsse)")
        of_s3 = ("storage_class", "encryption", "kms_key")
        meant = [f"CRYPTIQUE_BACKUP_{name.upper()}" for name in of_s3 if getattr(self, f"cryptique_backup_{name}")]
        if meant and folder is not None:
            found.append(f"{' and '.join(meant)} would do nothing: CRYPTIQUE_BACKUPS is no s3://bucket/prefix")
        if self.backup_recipients and not self._can_open_backups():
            found.append(
                "CRYPTIQUE_BACKUP_IDENTITIES holds no private key that belongs to one of CRYPTIQUE_BACKUP_RECIPIENTS: "
                "each backup is read back, so set both, or neither"
            )
        return found

    def _can_open_backups(self) -> bool:
        import pyrage

        keys = self.backup_identities
        lines = [] if keys is None else keys.get_secret_value().splitlines()
        opened = {str(pyrage.x25519.Identity.from_str(line).to_public()) for line in lines}
        return bool(opened & set(self.backup_recipients))


def _split(text: str) -> list[str]:
    """Return what commas or white space separate; lines that begin with # are the comments of a file of keys."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return " ".join(lines).replace(",", " ").split()


def _is_origin(text: str) -> bool:
    """Return whether a browser may send this as ``Origin``: one that it never sends would allow nobody, unseen."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _WEB_PORTS or not parts.hostname or not _HOST.fullmatch(parts.hostname):
        return False
    shown_port = "" if port in (None, _WEB_PORTS[parts.scheme]) else f":{port}"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return text == f"{parts.scheme}://{host}{shown_port}"


def _bucket_of(place: str | None) -> tuple[str, str] | None:
    if place is None or not place.startswith("s3://"):
        return None
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def _mounted_of(place: str | None) -> Path | None:
    return Path(place.removeprefix("shared:")) if place is not None and place.startswith("shared:") else None


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _is_writable(folder: Path) -> bool:
    nearest = _nearest_existing(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def inspect_settings(**overrides: Any) -> tuple[Settings, list[str]]:
    """Return the settings and everything wrong with them, without any value; what is wrong has its default."""
    found: list[str] = []
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        wrong = {str(item["loc"][0]): str(item["msg"]) for item in error.errors()}
        found = [f"{name.upper()}: {says.removeprefix('Value error, ')}" for name, says in wrong.items()]
        defaults = {name: Settings.model_fields[name].get_default() for name in wrong}
        settings = Settings(**{**overrides, **defaults})
    return settings, found + settings.problems()


def load_settings(**overrides: Any) -> Settings:
    """Return the settings, or raise ``InputError`` that names everything wrong at once, without any value."""
    settings, problems = inspect_settings(**overrides)
    if problems:
        raise InputError("; ".join(problems))
    return settings


@dataclass(frozen=True, slots=True)
class SettingHelp:
    """One setting as a person reads it."""

    name: str
    description: str
    default: str
    example: str
    secret: bool


def describe_settings() -> list[SettingHelp]:
    """Return every setting in order, from the model."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        rows.append(
            SettingHelp(
                name=name.upper(),
                description=field.description or "",
                default="" if default is None else str(default),
                example=str((field.examples or [""])[0]),
                secret="SecretStr" in str(field.annotation),
            )
        )
    return rows


def env_example() -> str:
    """Return the text of ``.env.example``."""
    parts = [
        "# Settings of the pipeline. Copy this file to .env and fill in what you need; all of it is optional.",
        "# Written from the model: `cryptique-rag config example > .env.example`.",
    ]
    for row in describe_settings():
        parts.append("")
        parts.extend(f"# {line}" for line in _wrapped(row.description))
        parts.append(f"# {row.name}={row.example or row.default}")
    return "\n".join(parts) + "\n"


def _wrapped(text: str, width: int = 100) -> list[str]:
    lines: list[str] = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
