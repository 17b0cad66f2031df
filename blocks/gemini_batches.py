"""Gemini's batch jobs: a file of texts goes up, hours later a file of vectors comes down, at half the price.

Always over our own REST client: google-genai says nothing of why a job failed nor of its counts, sends no keys
with texts, and calls its verb for this experimental. Nothing here waits or tries again: the caller polls.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import IO, Any, TypeVar

import orjson
import simdjson

from blocks.gemini_clients import RestClient, as_the_model_wants, embed_request, numbers_of
from blocks.gemini_errors import Asked, RefusedError, in_our_words, quoted
from tasks.domain.errors import PipelineError, RecordError, TerminalError, ThrottledError, TransientError
from tasks.domain.vectors import Matrix, checked_vectors

BATCH_USD_PER_MILLION_TOKENS: Mapping[str, float] = {"gemini-embedding-001": 0.075, "gemini-embedding-2": 0.10}

#: Results are some 20 kB a text at 1536 dimensions: 1 GB, of the 20 GB that a project may store.
MAX_TEXTS_PER_JOB = 50_000

#: A refused submission carries no ``RetryInfo``; users report that the next one passes after 15 to 20 minutes.
SUBMIT_AGAIN_SECONDS = 900.0

#: An upload's pieces, except the last, are multiples of 256 kB.
_UPLOAD_PIECE_BYTES = 8 * 1024 * 1024

#: The most that the list of jobs gives at once.
_JOBS_PER_PAGE = 100

#: A line of results: 3,072 numbers are some 70 kB, indented. What is longer is no line of ours.
_MAX_LINE_BYTES = 4 * 1024 * 1024

#: What a text is refused for, as google.rpc and as HTTP put it. Any other error is one of the service.
_REFUSALS = {3, 11, 400, 413, "INVALID_ARGUMENT", "OUT_OF_RANGE"}

#: What became of one text: its vector (float32, of length 1), its refusal, or a failure that another try may not have.
Answer = Matrix | RecordError | TransientError

#: Pairs of key and text.
Texts = Iterable[tuple[str, str]]

_Asked = TypeVar("_Asked")


class BatchGoneError(TerminalError):
    """The service no longer has the job or its results: what was not collected must be embedded again."""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What one job may hold, and its price."""

    max_texts_per_job: int
    max_tokens_per_job: int
    usd_per_million_tokens: float


class BatchState(StrEnum):
    """Where a job stands; the service expires what has not begun after 48 hours."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A job as the service described it. Counts are of texts; None where it gives no counts. Times are in UTC.

    ``reason`` says why a job failed, in the service's words, without the key and without what stands in quotation
    marks: that may be a text.
    """

    name: str
    display_name: str
    state: BatchState
    model: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    texts: int | None = None
    succeeded: int | None = None
    failed: int | None = None
    pending: int | None = None
    input_file: str | None = None
    results_file: str | None = None
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more."""
        return self.state not in (BatchState.PENDING, BatchState.RUNNING)

    @property
    def has_results(self) -> bool:
        """Whether ``collect`` has something to collect."""
        return self.state is BatchState.SUCCEEDED and self.results_file is not None


class GeminiBatches:
    """The batch jobs of one Google project.

    Every verb raises as ``GeminiEmbedder`` does: ``TransientError`` (``NotSentError``, ``ThrottledError``) if it
    may work later, ``QuotaSpentError``, ``TerminalError`` if a person must act; and ``BatchGoneError``. Vectors are
    those of ``GeminiEmbedder.embed_documents``, so both may fill one store.
    """

    def __init__(self, *, facts: BatchFacts, client: Callable[[], RestClient], asked: Asked, dimensions: int) -> None:
        self.facts = facts
        self._client = client
        self._asked = asked
        self._dimensions = dimensions

    def submit(self, texts: Texts, *, display_name: str) -> BatchJob:
        """Upload texts with their keys, start a job, and return it.

        Not safe to repeat: after a ``TransientError`` the job may run all the same; ``find`` it first. After a
        ``ThrottledError`` or ``NotSentError`` there is none. A text that holds nothing to embed is left out, and so
        gets no answer. ``ValueError`` if no text is left, if there are more than a job holds, or if a key is empty
        or comes twice. The texts are read once; memory stays flat.
        """
        with tempfile.TemporaryFile() as lines:
            self._write_lines(texts, lines)
            input_file = self._asking("the upload of a batch job", lambda: self._upload(lines, display_name))
        try:
            job = self._asking("the batch job", lambda: self._start(input_file, display_name))
        except ThrottledError as error:
            refusal = error
        else:
            return job if job.input_file else replace(job, input_file=input_file)
        with suppress(PipelineError):  # else every attempt would leave a file for 48 hours
            self._delete(input_file, "files")
        wait = refusal.retry_after_seconds
        raise ThrottledError(
            f"Gemini takes no further batch job now: {refusal}",
            retry_after_seconds=SUBMIT_AGAIN_SECONDS if wait is None else wait,
        )

    def submit_once(self, texts: Texts | Callable[[], Texts], *, display_name: str) -> BatchJob:
        """Return the job of exactly this display name that waits, runs or has succeeded; submit if there is none.

        A job of another model is none. Safe to repeat, by one caller at a time. Texts as a function are only asked
        for if they are submitted.
        """
        for job in self.find(display_name):
            is_alive = not job.is_over or job.state is BatchState.SUCCEEDED
            if is_alive and job.display_name == display_name and job.model in ("", self._asked.model):
                return job
        return self.submit(texts() if callable(texts) else texts, display_name=display_name)

    def find(self, display_name_prefix: str) -> list[BatchJob]:
        """Return the project's jobs whose display names begin so, in every state, newest first."""

        def find() -> list[BatchJob]:
            found: list[BatchJob] = []
            params = {"pageSize": str(_JOBS_PER_PAGE)}
            while True:
                page = orjson.loads(self._client().call("GET", "/v1beta/batches", params=params))
                jobs = map(self._job_of, page.get("operations") or [])
                found += [job for job in jobs if job.display_name.startswith(display_name_prefix)]
                if not page.get("nextPageToken"):
                    return found
                params["pageToken"] = page["nextPageToken"]

        undated = datetime.min.replace(tzinfo=UTC)
        found = self._asking("the list of batch jobs", find)
        return sorted(found, key=lambda job: job.created_at or undated, reverse=True)

    def read(self, name: str) -> BatchJob:
        """Return the job as it is now. ``BatchGoneError`` if there is none of this name."""
        path = _path_of(name, "batches")

        def read() -> BatchJob | None:
            try:
                return self._job_of(orjson.loads(self._client().call("GET", path)))
            except RefusedError as error:
                if error.status != 404:
                    raise
                return None

        job = self._asking(f"the batch job {name}", read)
        if job is None:
            raise BatchGoneError(f"Gemini has no batch job {name}: it was deleted, or is another project's.")
        return job

    def collect(self, job: BatchJob) -> Iterator[tuple[str, Answer]]:
        """Yield each key with what became of its text, as the results arrive, in the order of the service.

        A ``TransientError`` that is yielded is one text's: embed it again. One that is raised is the download's:
        collect again, from the beginning. A text without any answer is just missing. A key comes once: of two
        answers to it the first counts. ``BatchGoneError``: the results are kept for 48 hours only. ``ValueError``:
        the job has none. Safe to repeat; memory stays flat.
        """
        if job.results_file is None or not job.has_results:
            raise ValueError(f"the batch job {job.name} is {job.state} and has no results")
        path = f"/download{_path_of(job.results_file, 'files')}:download"
        failure: PipelineError
        try:
            with self._client().download(path) as pieces:
                yield from self._answers(pieces)
            return
        except PipelineError as error:
            failure = error
        except RefusedError as error:
            # A file that does not exist is refused as one that is not ours.
            failure = (
                BatchGoneError(f"Gemini no longer has the results of the batch job {job.name} ({error.status}).")
                if error.status in (403, 404)
                else in_our_words(error, self._about(f"the results of the batch job {job.name}"))
            )
        except Exception as error:  # noqa: BLE001 - whatever a client raises may hold the key in its request
            failure = in_our_words(error, self._about(f"the results of the batch job {job.name}"))
        raise failure

    def cancel(self, name: str) -> None:
        """Ask the service to stop a job; ``read`` tells when it has. One that is over stays what it is."""
        path = _path_of(name, "batches")

        def cancel() -> RefusedError | None:
            try:
                self._client().call("POST", f"{path}:cancel", {})
            except RefusedError as error:
                return error
            return None

        about = f"the cancellation of the batch job {name}"
        refusal = self._asking(about, cancel)
        if refusal is not None and not (refusal.status == 400 and self.read(name).is_over):
            raise in_our_words(refusal, self._about(about))

    def delete(self, job: BatchJob) -> None:
        """Delete a job with its files at the service, where they would stay for 48 hours. Safe to repeat.

        Only once its results are kept: they can't be had again.
        """
        # The job last: while it is there, a deletion that was cut short can be found and repeated.
        for file in filter(None, (job.results_file, job.input_file)):
            self._delete(file, "files")
        self._delete(job.name, "batches")

    # -- parts ---------------------------------------------------------------------------------------------

    def _asking(self, about: str, ask: Callable[[], _Asked]) -> _Asked:
        """Return what ``ask`` returns; what it raises becomes an error of this project that names ``about``."""
        failure: PipelineError
        try:
            return ask()
        except PipelineError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever a client raises may hold the key in its request
            failure = in_our_words(error, self._about(about))
        # Outside the except block: the client's error is not even the context of ours.
        raise failure

    def _delete(self, name: str, kind: str) -> None:
        path = _path_of(name, kind)

        def delete() -> None:
            try:
                self._client().call("DELETE", path)
            except RefusedError as error:
                # A file that does not exist is refused as one that is not ours.
                if error.status not in ((403, 404) if kind == "files" else (404,)):
                    raise

        self._asking(f"the deletion of {name}", delete)

    def _about(self, about: str) -> Asked:
        return replace(self._asked, job=about)

    def _write_lines(self, texts: Texts, lines: IO[bytes]) -> None:
        model, keys = self._asked.model, set[str]()
        for key, text in texts:
            if not key or key in keys:
                raise ValueError(f"keys must not be empty and must not come twice: {key!r}")
            keys.add(key)
            if len(keys) > self.facts.max_texts_per_job:
                raise ValueError(f"more texts than a batch job holds ({self.facts.max_texts_per_job:,})")
            try:
                (sent,), task = as_the_model_wants(model, [text], "RETRIEVAL_DOCUMENT")
            except RecordError:
                continue
            lines.write(orjson.dumps({"key": key, "request": embed_request(model, sent, task, self._dimensions)}))
            lines.write(b"\n")
        if not lines.tell():
            raise ValueError("a batch job needs a text that holds something to embed")

    def _upload(self, lines: IO[bytes], display_name: str) -> str:
        """Return the name of the uploaded file. Google's resumable protocol: a start, then pieces."""
        client, size = self._client(), lines.tell()
        lines.seek(0)
        start = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": "application/jsonl",
        }
        file = {"displayName": display_name, "mimeType": "application/jsonl"}
        url = client.upload("/upload/v1beta/files", start, orjson.dumps({"file": file})).headers["x-goog-upload-url"]
        offset = 0
        while True:
            piece = lines.read(_UPLOAD_PIECE_BYTES)
            last = offset + len(piece) >= size
            headers = {
                "X-Goog-Upload-Command": "upload, finalize" if last else "upload",
                "X-Goog-Upload-Offset": str(offset),
            }
            reply = client.upload(url, headers, piece)
            if last:
                return _path_of(orjson.loads(reply.content)["file"]["name"], "files").removeprefix("/v1beta/")
            offset += len(piece)

    def _start(self, input_file: str, display_name: str) -> BatchJob:
        batch = {"displayName": display_name, "inputConfig": {"fileName": input_file}}
        path = f"/v1beta/models/{self._asked.model}:asyncBatchEmbedContent"
        return self._job_of(orjson.loads(self._client().call("POST", path, {"batch": batch})))

    def _job_of(self, operation: Mapping[str, Any]) -> BatchJob:
        """Return the job behind an operation. What the operation says of its end outweighs its metadata."""
        metadata = operation.get("metadata") or {}
        response = operation.get("response") or {}
        error = operation.get("error") or {}
        counts = _counts(metadata.get("batchStats") or {})
        # The reference puts the output into the response, Google's client reads it in the metadata, and the
        # service has been seen to name the file in the response itself.
        outputs = (response.get("output"), response, metadata.get("output"))
        results_file = next((str(one["responsesFile"]) for one in outputs if one and one.get("responsesFile")), None)
        return BatchJob(
            name=str(operation["name"]),
            display_name=str(metadata.get("displayName") or ""),
            state=_state_of(operation, has_results=results_file is not None),
            model=str(metadata.get("model") or "").removeprefix("models/"),
            created_at=_moment(metadata.get("createTime")),
            updated_at=_moment(metadata.get("updateTime")),
            ended_at=_moment(metadata.get("endTime")),
            texts=counts.get("requestCount"),
            succeeded=counts.get("successfulRequestCount"),
            failed=counts.get("failedRequestCount"),
            pending=counts.get("pendingRequestCount"),
            input_file=(metadata.get("inputConfig") or {}).get("fileName"),
            results_file=results_file,
            reason=self._words_of(error) if error else "",
        )

    def _answers(self, pieces: Iterator[bytes]) -> Iterator[tuple[str, Answer]]:
        """Yield the answers in the lines. A line that can't be read is no answer, unless no line can be."""
        keys: set[str] = set()
        unreadable = 0
        for line, is_whole in _lines_of(pieces):
            try:
                document = simdjson.Parser().parse(line)
            except ValueError:
                if not is_whole:
                    raise TransientError("Gemini's batch results end within a line") from None
                unreadable += 1
                continue
            key, answer = self._answer_of(document)
            if key not in keys:
                keys.add(key)
                yield key, answer
        if unreadable and not keys:
            raise TransientError(f"Gemini's batch results can't be read ({unreadable} lines)")

    def _answer_of(self, document: Any) -> tuple[str, Answer]:
        try:
            key = document["key"]
        except (KeyError, TypeError):
            raise TerminalError("Gemini's batch results hold no keys: nobody can tell what they answer.") from None
        try:
            response = document.get("response") or {}
            error = document.get("error") or response.get("error")
            if error is not None:
                return str(key), self._refusal_of(error.as_dict())
            vector = numbers_of(response["embedding"]).reshape(1, -1)
            return str(key), checked_vectors(vector, count=1, dimensions=self._dimensions)[0]
        except TransientError as broken:
            return str(key), broken
        except (AttributeError, KeyError, TypeError, ValueError) as unreadable:
            return str(key), TransientError(f"Gemini's answer to a text can't be read ({type(unreadable).__name__})")

    def _refusal_of(self, error: Mapping[str, Any]) -> RecordError | TransientError:
        words = self._words_of(error)
        if _REFUSALS & {error.get("code"), error.get("status")}:
            return RecordError("embedding_refused", f"Gemini refuses the text ({words})")
        return TransientError(f"Gemini could not embed a text of a batch job ({words})")

    def _words_of(self, error: Mapping[str, Any]) -> str:
        """Return what the service says of an error, without the key and from the first quotation on cut off."""
        message = re.split(r"(?<!\w)['\"]", str(error.get("message") or "no reason given"), maxsplit=1)
        words = message[0].strip() + ("..." if len(message) > 1 else "")
        return quoted(f"{error.get('status') or error.get('code') or 'no code'}: {words}", self._asked)


def _state_of(operation: Mapping[str, Any], *, has_results: bool) -> BatchState:
    name = str((operation.get("metadata") or {}).get("state") or "")
    name = name.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_").lower()
    state = BatchState(name) if name in set(BatchState) else BatchState.PENDING
    if operation.get("done"):
        error = operation.get("error")
        if error and state not in (BatchState.CANCELLED, BatchState.EXPIRED):
            return BatchState.CANCELLED if error.get("code") == 1 else BatchState.FAILED
        if state in (BatchState.PENDING, BatchState.RUNNING):
            return BatchState.SUCCEEDED if has_results else BatchState.FAILED
    elif state is BatchState.SUCCEEDED and not has_results:
        return BatchState.RUNNING  # it will say in a moment where they are
    return state


def _lines_of(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each line that is not blank, and whether its end was seen."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line, True
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError("a line of results has no end")
    if rest.strip():
        yield rest, False


def _path_of(name: str, kind: str) -> str:
    """Return the path of a resource such as ``files/abc``; ``ValueError`` for a name of another kind or form."""
    if not re.fullmatch(rf"{kind}/[A-Za-z0-9._-]+", name) or ".." in name:
        raise ValueError(f"{name[:100]!r} is no name of the form {kind}/...")
    return f"/v1beta/{name}"


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None
    except ValueError:
        return None


def _counts(stats: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the counts, which the service writes as text and leaves out where they are zero."""
    names = ("requestCount", "successfulRequestCount", "failedRequestCount", "pendingRequestCount")
    return {name: int(stats.get(name) or 0) for name in names} if stats else {}
