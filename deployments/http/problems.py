"""Problem: what went wrong with a request, as RFC 9457 has it, with the id by which the log knows the request."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

#: Of a request's errors this many are told.
_SHOWN = 10


class ProblemError(Exception):
    """A request can't be answered; ``detail`` is for whoever sent it and holds no internals."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more


def too_many(detail: str, retry_after_s: int) -> ProblemError:
    """Return the refusal of who asks too often, with when to come again."""
    after = str(retry_after_s)
    return ProblemError(429, f"{detail}: try again in {after} s", headers={"Retry-After": after})


def problem_response(
    status: int, detail: str, *, path: str, request_id: str, headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return the answer; ``more`` are members of its own. ``error`` is where the application looks for the detail."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": path[:200],
        "requestId": request_id,
        "success": False,
        "error": detail,
        **more,
    }
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def brief_errors(errors: Any) -> list[dict[str, str]]:
    """Return what is wrong with a request's input: where and what, never the input itself."""
    return [
        {"at": ".".join(str(part) for part in one.get("loc", ()))[:200], "says": str(one.get("msg", ""))[:200]}
        for one in list(errors)[:_SHOWN]
    ]
