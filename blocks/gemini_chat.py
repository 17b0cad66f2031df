"""Gemini as a writer: one text for one prompt, within the day's dollars that embedding has too.

Nothing here waits or tries again: who waits for an answer gets one from the texts themselves instead.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import SecretStr

from blocks.gemini_clients import RestClient
from blocks.gemini_errors import Asked, in_our_words, usable_key
from blocks.meters import METER
from blocks.quota import GEMINI_QUOTA, StoreClock
from blocks.vector_store import VectorStore
from tasks.domain.errors import NotSentError, PipelineError, QuotaSpentError, ThrottledError, TransientError
from tasks.domain.quotas import NANO_USD, Allowance, Quota, cost_nano_usd, wait_before

#: English has four bytes a token; what is reserved should not be less than what is paid.
_BYTES_PER_TOKEN = 3
_RUN = "generate"


@dataclass(frozen=True, slots=True)
class Said:
    """What the model wrote, and how many tokens question and answer had together."""

    text: str
    tokens: int


class GeminiChat:
    """One chat model of one Google project. Safe to share between threads.

    Prices are dollars for a million tokens. Errors are ``PipelineError``s, none of which holds the key or the prompt:
    ``QuotaSpentError`` where the day's dollars are spent, ``ThrottledError`` where Gemini asked for a pause,
    ``TransientError`` for no answer or one without text, ``TerminalError`` for key or model.
    """

    def __init__(
        self,
        store: VectorStore,
        *,
        api_key: SecretStr,
        model: str,
        base_url: str,
        timeout_seconds: float,
        usd_in: float,
        usd_out: float,
        usd_per_day: float | None,
    ) -> None:
        self.model = model
        self._store, self._api_key, self._timeout_s = store, api_key, timeout_seconds
        self._base_url = base_url.rstrip("/")
        self._usd_in, self._usd_out = usd_in, usd_out
        self._allowance = Allowance.of(Quota(usd_per_day=usd_per_day))
        self._now = StoreClock(store)
        self._lock = threading.Lock()
        self._client: RestClient | None = None

    def write(self, *, rules: str, message: str, max_tokens: int, temperature: float) -> Said:
        """Return the model's answer of at most ``max_tokens``. It is paid for once, whatever becomes of it."""
        prompt_tokens = (len(rules.encode()) + len(message.encode())) // _BYTES_PER_TOKEN + 1
        reserved = self._cost(prompt_tokens, max_tokens)
        day = self._reserve(prompt_tokens + max_tokens, reserved)
        began = self._now()
        try:
            said, used_in, used_out = self._ask(rules, message, max_tokens, temperature)
        except (NotSentError, ThrottledError, QuotaSpentError) as error:
            self._give_back(day, prompt_tokens + max_tokens, reserved)
            self._note(began, error=type(error).__name__)
            raise
        except PipelineError as error:
            # It may have been written, and then it is paid for.
            self._note(began, error=type(error).__name__)
            raise
        if not used_in + used_out:
            # An answer that doesn't say what it cost is counted as what it may have.
            used_in, used_out = prompt_tokens, max_tokens
        paid = self._cost(used_in, used_out)
        self._note(began, tokens=used_in + used_out, usd=paid / NANO_USD)
        self._give_back(day, prompt_tokens + max_tokens - used_in - used_out, reserved - paid)
        if not said.strip():
            raise TransientError("Gemini's answer holds no text")
        return Said(said, used_in + used_out)

    def _ask(self, rules: str, message: str, max_tokens: int, temperature: float) -> tuple[str, int, int]:
        config: dict[str, Any] = {"maxOutputTokens": max_tokens, "temperature": temperature, "candidateCount": 1}
        if "2.5-flash" in self.model:
            # Its thoughts count against maxOutputTokens, and nothing here needs them.
            config["thinkingConfig"] = {"thinkingBudget": 0}
        body = {
            "systemInstruction": {"parts": [{"text": rules}]},
            "contents": [{"role": "user", "parts": [{"text": message}]}],
            "generationConfig": config,
        }
        failure: PipelineError
        try:
            reply = orjson.loads(self._connected().call("POST", f"/v1beta/models/{self.model}:generateContent", body))
            return _read(reply)
        except PipelineError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever a client raises may hold the key in its request
            asked = Asked(
                self._api_key,
                model=self.model,
                timeout_seconds=self._timeout_s,
                texts=(message,),
                job=f"the chat model {self.model}",
            )
            failure = in_our_words(error, asked)
        raise failure

    def _connected(self) -> RestClient:
        with self._lock:
            if self._client is None:
                self._client = RestClient(usable_key(self._api_key), self._base_url, self._timeout_s)
            return self._client

    def _cost(self, tokens_in: int, tokens_out: int) -> int:
        return cost_nano_usd(tokens_in, self._usd_in) + cost_nano_usd(tokens_out, self._usd_out)

    def _reserve(self, tokens: int, nano_usd: int) -> str:
        """Return the day on which it was counted."""
        now = self._now()
        counted, spending = self._store.reserve_spending(
            GEMINI_QUOTA, _RUN, texts=0, tokens=tokens, nano_usd=nano_usd, allowance=self._allowance, now=now
        )
        if not counted:
            wait_s = wait_before(spending, self._allowance, texts=0, nano_usd=nano_usd, now=now)
            raise ThrottledError("Gemini asked for a pause, which lasts", retry_after_seconds=wait_s)
        return spending.day

    def _give_back(self, day: str, tokens: int, nano_usd: int) -> None:
        """Correct the day's count to what was used, which may be more than was reserved."""
        self._store.give_back_spending(
            GEMINI_QUOTA, None, day=day, texts=0, tokens=tokens, nano_usd=nano_usd, now=self._now()
        )

    def _note(self, began: datetime, *, error: str | None = None, tokens: int = 0, usd: float = 0.0) -> None:
        now = self._now()
        METER.count(
            "embed", at=now, seconds=max(0.0, (now - began).total_seconds()), error=error, tokens=tokens, usd=usd
        )


def _read(reply: Any) -> tuple[str, int, int]:
    """Return text and tokens in and out of an answer; a refusal has no text. Any error means a broken answer."""
    usage = reply.get("usageMetadata") or {}
    tokens_in = int(usage.get("promptTokenCount") or 0)
    tokens_out = int(usage.get("candidatesTokenCount") or 0) + int(usage.get("thoughtsTokenCount") or 0)
    candidates = reply.get("candidates") or [{}]
    parts = (candidates[0].get("content") or {}).get("parts") or []
    return "".join(str(part.get("text") or "") for part in parts if not part.get("thought")), tokens_in, tokens_out
