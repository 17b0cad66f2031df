"""Gemini's batch jobs and files, as ``LoopbackGemini`` serves them: uploads, operations, results as JSON lines.

It speaks Google's resumable upload, ``:asyncBatchEmbedContent`` with a file, ``batches`` (get, list, cancel,
delete), ``files`` (get, delete) and downloads. Jobs end as the plan says, which a test may change at any time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

Error = dict[str, Any]

#: What may happen to a submission, an upload or a download.
SUBMISSION_FAULTS = (
    "429",  # as users get it: with a link and no RetryInfo
    "429-wait",  # with RetryInfo
    "500",
    "drop",  # the connection is reset, and no job was made
    "accepted-drop",  # the connection is reset, and the job runs
)
UPLOAD_FAULTS = ("503", "drop")
DOWNLOAD_FAULTS = (
    "503",
    "drop",  # the connection is reset half way
    "cut",  # an answer without a length ends half way in a line
    "html",  # a proxy's page with status 200
    "keyless",  # lines without keys
)


@dataclass
class BatchPlan:
    """How the service behaves. Times are in seconds, of ``clock``."""

    #: How often a job is read as waiting, and then as running, before it ends.
    pending_reads: int = 0
    running_reads: int = 0
    #: How long a job takes at least.
    delay_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    #: The end of a job by its display name: SUCCEEDED, FAILED, CANCELLED, EXPIRED, or STUCK for none.
    ends: Mapping[str, str] | Callable[[str], str] = field(default_factory=dict)
    #: Where an operation names its results: response, response.output or metadata.
    results_in: str = "response"
    #: The error of a text, where it has one, as its line holds it.
    text_error: Callable[[str], Error | None] = lambda text: None
    #: Texts whose lines are left out, doubled, hold a vector that is broken, or no JSON.
    missing: Collection[str] = ()
    doubled: Collection[str] = ()
    broken: Collection[str] = ()
    unreadable: Collection[str] = ()
    #: The order of the results: None is that of the texts.
    shuffle_seed: int | None = None
    #: The limits of a project: jobs that wait or run, and texts in one job; beyond them is 429 without RetryInfo.
    max_jobs: int | None = None
    max_texts: int | None = None
    #: What happens to each submission, upload step and download, in order; after the end all goes well.
    submissions: Sequence[str | None] = ()
    uploads: Sequence[str | None] = ()
    downloads: Sequence[str | None] = ()
    page_size: int = 100


@dataclass
class Job:
    """A job at the service; ``lines`` are the pairs of key and request that it was given."""

    name: str
    model: str
    display_name: str
    input_file: str
    lines: list[tuple[str, dict[str, Any]]]
    created: float
    created_at: datetime
    reads: int = 0
    end: str | None = None
    results_file: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; ``stream`` instead of a body is sent in chunks, and an error in it resets the connection."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    stream: Iterator[bytes] | None = None
    #: A streamed body without chunks, whose end is that of the connection.
    is_unframed: bool = False


class DroppedError(Exception):
    """The connection is reset."""


class BatchService:
    """The jobs and files of one project. ``vector`` makes a text's vector, ``refuses`` says which text has none."""

    def __init__(
        self,
        plan: BatchPlan,
        *,
        models: Collection[str],
        vector: Callable[[str, str, int], NDArray[np.float32]],
        refuses: Callable[[str], bool],
        on_embedded: Callable[[list[str]], None],
        error: Callable[..., bytes],
    ) -> None:
        self.plan = plan
        self.jobs: dict[str, Job] = {}
        #: Every file that is there, by name; results are made when they are downloaded.
        self.files: dict[str, bytes] = {}
        #: Every file that ever was uploaded.
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.submissions = 0
        self.downloads = 0
        self.upload_steps = 0
        self._models = models
        self._vector = vector
        self._refuses = refuses
        self._on_embedded = on_embedded
        self._error = error
        self._pending: dict[str, bytearray] = {}
        self._lock = threading.RLock()
        self._made = 0

    @staticmethod
    def is_for(path: str) -> bool:
        """Return whether a path is one of batch jobs or files."""
        parts = urlsplit(path).path
        return parts.startswith(("/upload/", "/download/", "/v1beta/batches", "/v1beta/files")) or parts.endswith(
            ":asyncBatchEmbedContent"
        )

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Reply:
        """Return the answer to a request; raise ``DroppedError`` to reset its connection."""
        parts = urlsplit(path)
        with self._lock:
            self.requests.append(f"{method} {parts.path}")
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            if method == "POST" and parts.path == "/upload/v1beta/files":
                return self._upload(query, headers, body)
            if method == "GET" and parts.path.endswith(":download"):  # Google's client leaves out /download
                name = parts.path.removeprefix("/download").removeprefix("/v1beta/").removesuffix(":download")
                return self._download(name)
            if parts.path.startswith("/v1beta/files/"):
                return self._file(method, parts.path.removeprefix("/v1beta/"))
            if method == "POST" and parts.path.endswith(":asyncBatchEmbedContent"):
                model = parts.path.removeprefix("/v1beta/models/").removesuffix(":asyncBatchEmbedContent")
                return self._submit(model, orjson.loads(body))
            if method == "GET" and parts.path == "/v1beta/batches":
                return self._list(query)
            return self._job(method, parts.path.removeprefix("/v1beta/"))

    # -- files ---------------------------------------------------------------------------------------------

    def _upload(self, query: Mapping[str, str], headers: Any, body: bytes) -> Reply:
        fault = _nth(self.plan.uploads, self.upload_steps)
        self.upload_steps += 1
        if fault == "drop":
            raise DroppedError
        if fault == "503":
            return self._refusal(503, "UNAVAILABLE", "The service is currently unavailable.")
        commands = {command.strip() for command in (headers.get("x-goog-upload-command") or "").split(",")}
        if "start" in commands:
            if headers.get("x-goog-upload-protocol") != "resumable":
                return self._refusal(400, "INVALID_ARGUMENT", "Invalid upload protocol.")
            upload = self._name()
            self._pending[upload] = bytearray()
            # The real service names its own host, whatever proxy the request came through.
            url = (
                "https://generativelanguage.googleapis.com/upload/v1beta/files"
                f"?upload_id={upload}&upload_protocol=resumable"
            )
            return Reply(headers=(("X-Goog-Upload-Status", "active"), ("X-Goog-Upload-URL", url)))
        content = self._pending.get(query.get("upload_id", ""))
        if content is None or int(headers.get("x-goog-upload-offset") or -1) != len(content):
            return self._refusal(400, "INVALID_ARGUMENT", "Upload is unknown, or its offset is wrong.")
        content += body
        if "finalize" not in commands:
            return Reply(headers=(("X-Goog-Upload-Status", "active"),))
        name = f"files/{self._name()}"
        self.files[name] = self.uploaded[name] = bytes(content)
        del self._pending[query["upload_id"]]
        return Reply(
            body=orjson.dumps({"file": self._file_resource(name)}), headers=(("X-Goog-Upload-Status", "final"),)
        )

    def _file_resource(self, name: str) -> dict[str, Any]:
        generated = name.startswith("files/batch-")
        return {
            "name": name,
            "mimeType": "application/jsonl",
            "sizeBytes": str(len(self.files[name])),
            "state": "ACTIVE",
            "source": "GENERATED" if generated else "UPLOADED",
        }

    def _file(self, method: str, name: str) -> Reply:
        if name not in self.files:
            return self._no_file(name)
        if method == "DELETE":
            del self.files[name]
            return Reply()
        return Reply(body=orjson.dumps(self._file_resource(name)))

    def _no_file(self, name: str) -> Reply:
        message = f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
        return self._refusal(403, "PERMISSION_DENIED", message)

    def _download(self, name: str) -> Reply:
        if name not in self.files:
            return self._no_file(name)
        job = next((job for job in self.jobs.values() if job.results_file == name), None)
        if job is None:
            return self._refusal(400, "INVALID_ARGUMENT", "Only generated files can be downloaded.")
        fault = _nth(self.plan.downloads, self.downloads)
        self.downloads += 1
        if fault == "503":
            return self._refusal(503, "UNAVAILABLE", "The service is currently unavailable.")
        if fault == "html":
            return Reply(body=b"<html>\n<body>Sign in to this network</body>\n</html>\n")
        return Reply(stream=self._results(job, fault), is_unframed=fault == "cut")

    def _results(self, job: Job, fault: str | None) -> Iterator[bytes]:
        plan = self.plan
        lines = list(job.lines)
        if plan.shuffle_seed is not None:
            random.Random(plan.shuffle_seed).shuffle(lines)
        for number, (key, request) in enumerate(lines):
            line = self._result_line(job.model, key, request, is_keyless=fault == "keyless")
            if number == len(lines) // 2 and fault == "cut":
                yield line[: len(line) // 2]
                return
            if number == len(lines) // 2 and fault == "drop":
                raise DroppedError
            text = _text_of(request)
            if text in plan.missing:
                continue
            yield line
            if text in plan.doubled:
                yield self._result_line(job.model, key, {**request, "taskType": "RETRIEVAL_QUERY"})

    def _result_line(self, model: str, key: str, request: Mapping[str, Any], *, is_keyless: bool = False) -> bytes:
        plan, text = self.plan, _text_of(request)
        result: dict[str, Any] = {} if is_keyless else {"key": key}
        if text in plan.unreadable:
            return b'{"key": "' + key.encode() + b'", "response": {"embedding": {"values": [NaN]}}}\n'
        if (error := self._error_of(text)) is not None:
            return orjson.dumps(result | {"error": error}) + b"\n"
        values = self._vector(text, model, int(request.get("outputDimensionality") or 3072))
        if request.get("taskType") == "RETRIEVAL_QUERY":
            values = -values
        if text in plan.broken:
            values = values[:-1]
        result["response"] = {"embedding": {"values": values}}
        return orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)

    def _error_of(self, text: str) -> Error | None:
        if self._refuses(text):
            message = f"Request contains an invalid argument: '{text}'"
            return {"code": 3, "message": message, "status": "INVALID_ARGUMENT"}
        return self.plan.text_error(text)

    # -- jobs ----------------------------------------------------------------------------------------------

    def _submit(self, model: str, request: Mapping[str, Any]) -> Reply:
        plan = self.plan
        fault = _nth(plan.submissions, self.submissions)
        self.submissions += 1
        if fault == "drop":
            raise DroppedError
        if fault == "500":
            return self._refusal(500, "INTERNAL", "An internal error has occurred.")
        if fault in ("429", "429-wait"):
            return self._too_much(wait_seconds=41.0 if fault == "429-wait" else None)
        if model not in self._models:
            return self._refusal(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta.")
        batch = request["batch"]
        source = batch["inputConfig"].get("fileName") or batch["inputConfig"].get("file_name")
        if source not in self.files:
            return self._refusal(400, "INVALID_ARGUMENT", "Input file was not found.")
        lines = [orjson.loads(line) for line in self.files[source].splitlines()]
        alive = sum(self._state(job) in ("PENDING", "RUNNING") for job in self.jobs.values())
        if plan.max_jobs is not None and alive >= plan.max_jobs:
            return self._too_much(wait_seconds=None)
        if plan.max_texts is not None and len(lines) > plan.max_texts:
            return self._too_much(wait_seconds=None)
        job = Job(
            name=f"batches/{self._name()}",
            model=model,
            display_name=batch["displayName"],
            input_file=source,
            lines=[(line["key"], line["request"]) for line in lines],
            created=plan.clock(),
            # Jobs that are made at once still have an order.
            created_at=datetime.now(UTC) + timedelta(microseconds=self._made),
        )
        self.jobs[job.name] = job
        if fault == "accepted-drop":
            raise DroppedError
        return Reply(body=orjson.dumps(self._operation(job)))

    def _list(self, query: Mapping[str, str]) -> Reply:
        jobs = list(self.jobs.values())
        start = int(query.get("pageToken") or 0)
        size = min(int(query.get("pageSize") or 50), self.plan.page_size)
        page: dict[str, Any] = {"operations": [self._operation(job) for job in jobs[start : start + size]]}
        if start + size < len(jobs):
            page["nextPageToken"] = str(start + size)
        return Reply(body=orjson.dumps(page if page["operations"] else {}))

    def _job(self, method: str, path: str) -> Reply:
        name, _, verb = path.partition(":")
        job = self.jobs.get(name)
        if job is None:
            return self._refusal(404, "NOT_FOUND", "Requested entity was not found.")
        if method == "DELETE":
            del self.jobs[name]
            return Reply()
        if verb == "cancel":
            if self._state(job) not in ("PENDING", "RUNNING"):
                return self._refusal(400, "FAILED_PRECONDITION", "The batch is over and can't be cancelled.")
            job.end = "CANCELLED"
            return Reply()
        operation = self._operation(job)
        job.reads += 1
        return Reply(body=orjson.dumps(operation))

    def _state(self, job: Job) -> str:
        plan = self.plan
        if job.end is not None:
            return job.end
        ends = plan.ends
        end = ends(job.display_name) if callable(ends) else ends.get(job.display_name, "SUCCEEDED")
        if job.reads < plan.pending_reads:
            return "PENDING"
        if job.reads < plan.pending_reads + plan.running_reads or plan.clock() < job.created + plan.delay_seconds:
            return "RUNNING"
        if end == "STUCK":
            return "PENDING"
        job.end = end
        if end == "SUCCEEDED":
            job.results_file = f"files/batch-{job.name.removeprefix('batches/')}"
            self.files[job.results_file] = b""
            self._on_embedded([text for text in self._texts(job) if self._error_of(text) is None])
        return end

    def _operation(self, job: Job) -> dict[str, Any]:
        state = self._state(job)
        failed = sum(self._error_of(text) is not None for text in self._texts(job))
        over = state not in ("PENDING", "RUNNING")
        done = state == "SUCCEEDED"
        stats = {
            "requestCount": len(job.lines),
            "successfulRequestCount": len(job.lines) - failed if done else 0,
            "failedRequestCount": failed if done else 0,
            "pendingRequestCount": 0 if done else len(job.lines),
        }
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch",
            "model": f"models/{job.model}",
            "displayName": job.display_name,
            "inputConfig": {"fileName": job.input_file},
            "createTime": _timestamp(job.created_at),
            "updateTime": _timestamp(job.created_at),
            # The service leaves out a zero and writes numbers of 64 bits as text.
            "batchStats": {name: str(count) for name, count in stats.items() if count},
            "state": f"BATCH_STATE_{state}",
            "name": job.name,
        }
        operation: dict[str, Any] = {"name": job.name, "metadata": metadata}
        if over:
            operation["done"] = True
            metadata["endTime"] = _timestamp(job.created_at)
        if state == "FAILED":
            operation["error"] = {"code": 13, "message": "An internal error occurred while reading 'Transaction 1'."}
        if state == "CANCELLED":
            operation["error"] = {"code": 1, "message": "The operation was cancelled."}
        if done:
            output = {"responsesFile": job.results_file}
            if self.plan.results_in == "metadata":
                metadata["output"] = output
            else:
                operation["response"] = output if self.plan.results_in == "response" else {"output": output}
        return operation

    # -- parts ---------------------------------------------------------------------------------------------

    @staticmethod
    def _texts(job: Job) -> list[str]:
        return [_text_of(request) for _, request in job.lines]

    def _name(self) -> str:
        self._made += 1
        return f"{self._made:04d}{random.Random(self._made).randrange(16**10):010x}"

    def _refusal(self, status: int, name: str, message: str, details: Sequence[dict[str, Any]] = ()) -> Reply:
        return Reply(status=status, body=self._error(status, name, message, details))

    def _too_much(self, *, wait_seconds: float | None) -> Reply:
        help_ = {
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{"description": "Learn more about Gemini API quotas", "url": "https://ai.google.dev/"}],
        }
        details = [help_]
        if wait_seconds is not None:
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait_seconds:g}s"})
        message = "You exceeded your current quota, please check your plan and billing details."
        return self._refusal(429, "RESOURCE_EXHAUSTED", message, details)


def _text_of(request: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "") for part in request["content"]["parts"])


def _timestamp(moment: datetime) -> str:
    """Return a moment as Google writes it: with nine digits of a second."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z"


def _nth(faults: Sequence[str | None], index: int) -> str | None:
    return faults[index] if index < len(faults) else None
