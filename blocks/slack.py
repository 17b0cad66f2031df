"""Slack, Discord or any webhook: one POST a message, tried again where that can help, and never an error."""

from __future__ import annotations

import logging
import math
import random
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from prefect.blocks.core import Block
from pydantic import Field, SecretStr
from slack_sdk.http_retry import RetryHandler
from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, RateLimitErrorRetryHandler
from slack_sdk.http_retry.interval_calculator import RetryIntervalCalculator
from slack_sdk.http_retry.request import HttpRequest
from slack_sdk.http_retry.response import HttpResponse
from slack_sdk.http_retry.state import RetryState
from slack_sdk.webhook import WebhookClient, WebhookResponse

from tasks.domain.incidents import WebhookKind

_RETRIES = 3
_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, range(500, 600)
#: The client writes the address into its log, and the address is the secret: it gets a logger that nobody hears.
_SILENT = logging.Logger("slack_sdk.webhook.silent", level=logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Whether a message arrived, and in words why not; the words never hold the address."""

    delivered: bool
    says: str
    status: int | None = None


class SlackNotifier(Block):
    """A webhook that takes messages. A webhook that is down never raises: the result says so."""

    _block_type_name: ClassVar[str | None] = "Cryptique alerts"
    _block_type_slug: ClassVar[str | None] = "cryptique-alerts"
    _description: ClassVar[str | None] = "The webhook that is told of failures: Slack, Discord or another."

    url: SecretStr = Field(description="Address of the webhook; whoever has it can post, so it is never shown.")
    allow_private: bool = Field(
        default=True,
        description="Whether it may lead to an address inside the network; if not, such a one is not asked.",
    )
    kind: WebhookKind = Field(default="slack", description="The form of the messages: slack, discord or generic JSON.")
    timeout_seconds: int = Field(default=10, ge=1, le=60, description="How long one try may take to answer.")
    longest_wait_seconds: float = Field(
        default=30.0, ge=0, description="The longest pause between two tries; a webhook that asks for more is left."
    )
    backoff_seconds: float = Field(
        default=0.5, ge=0, description="The first pause after a server error or a lost connection; it doubles."
    )

    def send(self, payload: Mapping[str, Any]) -> Delivery:
        """Post one message. Tried four times at most: after 429 when it says, after 5xx or a lost connection soon.

        A time-out is not tried again: the message may have arrived.
        """
        if not self.allow_private and (refused := inside_address(self.url.get_secret_value())):
            return Delivery(False, refused)
        client = _Client(
            self.url.get_secret_value(),
            timeout=self.timeout_seconds,
            logger=_SILENT,
            retry_handlers=self._retry_handlers(),
        )
        # The client would send everything through the proxy of the environment, loopback too; urllib, left to
        # itself, knows which hosts need none.
        client.proxy = None
        try:
            answer = client.send_dict(dict(payload))
        except TimeoutError:
            return Delivery(False, f"the webhook did not answer within {self.timeout_seconds} s")
        except URLError as error:
            reason = error.reason
            says = (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__
            return Delivery(False, f"the webhook can't be reached: {says}")
        except Exception as error:  # noqa: BLE001 - a message that isn't sent must not fail a run, whatever the reason
            # Its words may repeat the address.
            return Delivery(False, f"the webhook can't be used ({type(error).__name__})")
        if 200 <= answer.status_code < 300:
            if answer.body.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
                return Delivery(False, "the address answers with a web page: it is no webhook", answer.status_code)
            return Delivery(True, "delivered", answer.status_code)
        return Delivery(False, f"the webhook answered {answer.status_code}", answer.status_code)

    def _retry_handlers(self) -> list[RetryHandler]:
        backoff = _Backoff(self.backoff_seconds)
        # Connections first: a URLError with an answer inside is one of the other two.
        return [
            _LostConnection(max_retry_count=_RETRIES, interval_calculator=backoff),
            _RateLimited(_RETRIES, longest_wait_s=self.longest_wait_seconds),
            _ServerError(max_retry_count=_RETRIES, interval_calculator=backoff),
        ]


class _NoRedirects(HTTPRedirectHandler):
    """Takes an answer that leads elsewhere for what it is: a webhook that moved is told, and nobody else is asked."""

    def redirect_request(self, *given: Any, **also: Any) -> None:
        """Follow nothing."""
        return


class _Client(WebhookClient):
    """slack_sdk's own, but for redirects: it would ask whatever address an answer names."""

    def _perform_http_request_internal(self, url: str, req: Request) -> WebhookResponse:
        opener = build_opener(_NoRedirects, HTTPSHandler(context=self.ssl))
        with opener.open(req, timeout=self.timeout) as answer:
            charset = answer.headers.get_content_charset() or "utf-8"
            body = answer.read().decode(charset)
            return WebhookResponse(url=url, status_code=answer.status, body=body, headers=answer.headers)


def inside_address(url: str) -> str | None:
    """Return why a webhook is refused: its host is, or is resolved to, an address that only this network reaches.

    Asked before each message, for a name may lead elsewhere today. All of its addresses must be public.
    """
    host = urlsplit(url).hostname or ""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return "the webhook's host has no address"
    for text in found:
        address = ip_address(str(text).partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if not (mapped or address).is_global or (mapped or address).is_multicast:
            return "the webhook leads to an address inside the network, which is not allowed here"
    return None


class _Backoff(RetryIntervalCalculator):
    """The first pause, doubled each time, and longer by up to a half."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s

    def calculate_sleep_duration(self, current_attempt: int) -> float:
        """Return the seconds before the next try."""
        seconds: float = self._first_s * 2**current_attempt
        return seconds * random.uniform(1.0, 1.5)


class _LostConnection(ConnectionErrorRetryHandler):
    """Tries a connection again that was refused or reset, but not one that timed out."""

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        if isinstance(error, HTTPError) or (isinstance(error, URLError) and isinstance(error.reason, TimeoutError)):
            return False
        return super()._can_retry(state=state, request=request, response=response, error=error)


class _ServerError(RetryHandler):
    """Tries again after every 5xx; slack_sdk's own knows two of them."""

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        return response is not None and response.status_code in _SERVER_ERRORS


class _RateLimited(RateLimitErrorRetryHandler):
    """Waits as long as the 429 asks for; slack_sdk's own takes ``Retry-After`` for a whole number and dies of 0.5."""

    def __init__(self, max_retry_count: int, *, longest_wait_s: float) -> None:
        super().__init__(max_retry_count)
        self._longest_wait_s = longest_wait_s

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        return (
            response is not None
            and response.status_code == _TOO_MANY_REQUESTS
            and _retry_after_s(response) <= self._longest_wait_s
        )

    def prepare_for_next_attempt(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> None:
        assert response is not None
        state.next_attempt_requested = True
        asked = _retry_after_s(response)
        # A little more than asked for, so that many senders don't come back at the same moment.
        threading.Event().wait(asked + min(asked, 1.0) * random.random())
        state.increment_current_attempt()


def _retry_after_s(response: HttpResponse) -> float:
    """Return the pause that is asked for; a second where the header is missing, a date or nonsense."""
    for name, values in response.headers.items():
        if name.lower() == "retry-after" and values:
            try:
                seconds = float(values[0])
            except ValueError:
                continue
            if math.isfinite(seconds) and seconds >= 0:
                return seconds
    return 1.0
