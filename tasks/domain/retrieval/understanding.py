"""Understanding: what a question says exactly becomes conditions; what is left is searched for.

Only what can be decided exactly becomes a condition: identifiers, times, chains, amounts with their unit, gas, blocks,
statuses, tokens. What something is about (claimed rewards, a bridge, Uniswap) stays with the search, because names and
methods are said in many ways. Every condition carries the words that it was read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from math import inf
from typing import Literal

from tasks.domain.chains import Chain, find_chain
from tasks.domain.retrieval.entries import SHORT_CHARS
from tasks.domain.retrieval.filters import AnyOf, Between, Filter, NumberField, overlapping
from tasks.domain.retrieval.timeframes import TimeFrame, find_time_frames
from tasks.domain.retrieval.words import words_of
from tasks.domain.transaction_documents import is_unlabelled

#: What a question wants to see: documents of records, or figures over a time.
Wanted = Literal["rows", "figures"]

ZERO_ADDRESS = "0x" + "0" * 40
LONGEST_QUESTION = 2_000

_HASH = re.compile(r"\b0x[0-9a-f]{64}\b", re.IGNORECASE)
_SHORTENED = re.compile(r"\b0x[0-9a-f]{6,39}(?:…|\.{2,3})(?:[0-9a-f]{2,8}\b)?", re.IGNORECASE)
_ADDRESS = re.compile(
    r"\b(?:the )?(?P<value>0x[0-9a-f]{40}|zero address|null address|0x0(?![0-9a-fx])|burn address)\b", re.IGNORECASE
)
_FROM = re.compile(
    r"\b(?:from|by|sender|sent by|signed by)(?: the)?(?: (?:wallet|address|account))?:?\s*$", re.IGNORECASE
)
_TO = re.compile(
    r"\b(?:to|into|towards|recipient|receiver|received by)(?: the)?(?: (?:wallet|address|account))?:?\s*$",
    re.IGNORECASE,
)
_NUMBER = (
    r"(?P<{0}>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?|\.\d+|half an?|(?:a )?quarter(?: of)?(?: an?)?|an?|one|"
    r"two|three|five|ten|twenty|fifty|"
    r"(?:a |one )?hundred)"
    r"(?: ?(?P<{0}_times>k|m|bn|thousand|million|billion)(?![a-z]))?"
)
_MORE = r"more than|greater than|larger than|bigger than|longer than|higher than|over|above|exceeding|exceeds|beyond|>"
_LEAST = r"at least|no less than|not less than|a minimum of|minimum|min|from|>=|≥"
_LESS = r"less than|lower than|smaller than|fewer than|shorter than|under|below|<"
_MOST = r"at most|no more than|not more than|a maximum of|maximum|max|up to|<=|≤"
_EXACT = r"exactly|of exactly|equal to|="
_SIGN = rf"(?:(?P<more>{_MORE})|(?P<least>{_LEAST})|(?P<less>{_LESS})|(?P<most>{_MOST})|(?P<exact>{_EXACT}))"
_BEHIND = (
    r"(?:\s+(?P<behind>or (?:more|larger|bigger|above|over|higher|up|less|below|under|lower|fewer)|"
    r"and (?:more|up|above|below)))"
)
_UNIT = r"(?P<unit>[^\W\d_][\w.$+-]{0,19})"
_QUANTITY = re.compile(
    rf"(?<![\w.,])(?:between (?P<between>)|{_SIGN} )?{_NUMBER.format('low')}"
    rf"(?: ?(?:and|to|-|–) ?{_NUMBER.format('high')})?(?P<plus>\+)?"
    rf"(?: ?(?!or |and )(?:of )?{_UNIT})?{_BEHIND}?(?![\w])",
    re.IGNORECASE,
)
_TIMES = {
    "k": 1_000,
    "thousand": 1_000,
    "m": 1_000_000,
    "million": 1_000_000,
    "bn": 1_000_000_000,
    "billion": 1_000_000_000,
}
_SAID = {
    "half a": "0.5",
    "half an": "0.5",
    **dict.fromkeys(
        (f"{a}quarter{of}{an}" for a in ("", "a ") for of in ("", " of") for an in ("", " a", " an")), "0.25"
    ),
    "a": "1",
    "an": "1",
    "one": "1",
    "two": "2",
    "three": "3",
    "five": "5",
    "ten": "10",
    "twenty": "20",
    "fifty": "50",
    "hundred": "100",
    "a hundred": "100",
    "one hundred": "100",
}
_COINS = {
    "ether": "ETH",
    "ethers": "ETH",
    "eth": "ETH",
    "bnb": "BNB",
    "bnbs": "BNB",
    "matic": "MATIC",
    "matics": "MATIC",
}
_BLOCK = re.compile(
    r"\bblocks?(?: numbers?| no\.?| height| #)? ?#?(?P<first>\d[\d,]{2,})"
    r"(?: ?(?:to|and|-|–|until) ?(?P<last>\d[\d,]{2,}))?",
    re.IGNORECASE,
)
_GAS_BEFORE = re.compile(
    r"\bgas(?: (?:used|use|usage|consumption|consumed|costs?|limit|spent|burned))?(?: (?:of|was|is))?\s*$",
    re.IGNORECASE,
)
_CALL_DATA = re.compile(
    r"\b(?:call ?data|input(?: data)?|payload)(?: (?:of|is|was|with|size|length))*\s*$", re.IGNORECASE
)
_SIZES = {"character": 0.5, "char": 0.5, "byte": 1.0, "kb": 1_000.0, "kilobyte": 1_000.0, "kib": 1_024.0}
_MISSING: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (
        name,
        re.compile(
            rf"\b(?:(?:without|lacking|missing|no|unknown)(?: an?| any| known)? (?:{said})\b|"
            rf"(?:whose|with|where|the|a)? ?(?:{said}) (?:is |are |was )?"
            rf"(?:missing|unknown|absent|not known|not set|empty|not recorded)\b|{alone})",
            re.IGNORECASE,
        ),
    )
    for name, said, alone in (
        ("start", r"block time|timestamp|date|time", r"\bundated\b"),
        ("status", r"status|result|outcome", r"\bstatus unknown\b"),
        ("gasUsed", r"gas(?: used| figure)?", r"\bgas not known\b"),
        ("amount", r"amount|value", r"\bamount not known\b"),
    )
)
_NOT_FAILED = re.compile(
    r"\b(?:(?:not|never|didn't|did not|don't|doesn't|without)\s+(?:fail\w*|revert\w*)|non-failed)\b", re.IGNORECASE
)
_STATUSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (status, re.compile(rf"\b(?:{said})\b", re.IGNORECASE))
    for status, said in (
        (
            "failed",
            r"failed|failing|fails?|failures?|reverted|reverts?|reverting|unsuccessful(?:ly)?|not successful|errored|"
            r"did not (?:succeed|go through)|didn't go through|went wrong",
        ),
        ("success", r"succeeded|successful(?:ly)?|succeed|went through|confirmed"),
        ("pending", r"pending"),
    )
)
_ESCROW = re.compile(r"\b(?:staking(?: \(escrow\))?|escrow|gauge) contracts?\b", re.IGNORECASE)
_NATIVE = re.compile(r"\bnative (?:coin |currency |asset )?(?:transfers?|payments?|movements?)\b", re.IGNORECASE)
_UNLIMITED = re.compile(r"\b(?:unlimited|infinite|without (?:a )?limit)\b", re.IGNORECASE)
_APPROVAL = re.compile(r"\b(?:approv\w*|allowances?|spending|spend)\b", re.IGNORECASE)
_REVOKED = re.compile(r"\b(?:revoked|revocations?|revoking|withdrawn approvals?)\b", re.IGNORECASE)
#: What stands beside a token's symbol.
_BESIDE_SYMBOL = (
    r"transfers?|transferred|tokens?|coins?|mints?|minted|burns?|burned|burnt|approvals?|spending|holders?|movements?|"
    r"moved|volumes?|payments?|sent|deposits?|deposited|withdrawals?|loans?|borrowed|supplied|repaid|swaps?|"
    r"allowances?|amounts?"
)
_SYMBOL = r"[^\W_][\w.$+-]{1,19}"
_IN_BRACKETS = re.compile(rf"\((?P<symbol>{_SYMBOL})\)")
_BEFORE_NOUN = re.compile(rf"(?<![\w(])\$?(?P<symbol>{_SYMBOL}) (?:{_BESIDE_SYMBOL})\b", re.IGNORECASE)
_AFTER_NOUN = re.compile(
    r"\b(?:transfers?|approvals?|mints?|burns?|payments?|movements?|deposits?|withdrawals?|spending|token) "
    rf"(?:of|in|for) \$?(?P<symbol>{_SYMBOL})(?![\w])",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\([^()]*\)|0x[0-9a-f]+(?:…|\.\.\.)[0-9a-f]*", re.IGNORECASE)
#: Words in names of contracts that tell none from another.
_OF_ALL_CONTRACTS = frozenset({"contract", "token", "old", "new", "proxy", "implementation"})
_CHAIN_WORDS = re.compile(
    r"\b(?:ethereum(?: mainnet)?|eth mainnet|mainnet|bnb (?:smart )?chain|binance smart chain|bsc|polygon(?: pos)?|"
    r"arbitrum(?: one)?|optimism|op mainnet)\b",
    re.IGNORECASE,
)
_BASE = re.compile(
    r"\b(?:(?:on|at|to|from|via|the) base(?: chain| network| mainnet)?\b(?! (?:of|layer|fee|token))|"
    r"base (?:chain|network|mainnet)\b)",
    re.IGNORECASE,
)
_BASE_NAMED = re.compile(r"\bBase\b(?! (?:of|layer|fee|token))")
_ON = re.compile(r"\b(?:on|over|via)(?: the)?\s+$", re.IGNORECASE)
_CHAINS_AS_PEOPLE_MISTYPE = ("ethereum", "polygon", "arbitrum", "optimism")
#: Words of people's sentences that tell no document from another. Those of a direction (out, back) do tell.
_FILLERS = frozenset(
    words_of(
        "another other others else somebody someone something anybody people person persons those who everybody "
        "just only simply whole entire go going got get gets getting later good plain kind kinds type types "
        "thing things"
    )
)
_FIGURES = re.compile(
    r"^(?:how (?:many|much|often|long|busy|big|large|high)|what (?:was|is|were|are|share|percentage|number|part)|"
    r"which .{1,40}\b(?:most|least|fewest|highest|lowest|largest|biggest|top)\b|"
    r"(?:total|average|median|number|sum|count|share)\b|compare\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the tenant's documents name, casefolded: symbols and units of amounts, and contracts by the stems of a name.

    Of a name counts what a person would say: not a symbol in brackets, a number behind it or what every contract is.
    """

    tokens: frozenset[str] = frozenset()
    contracts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, *, tokens: Iterable[str], contracts: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of these symbols and these names."""
        named = {name: _core(name) for name in contracts if not is_unlabelled(name)}
        return cls(
            frozenset(token.casefold() for token in tokens),
            {name: core for name, core in named.items() if len(core) > 1},
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing that was understood: the question's words, and what they were taken for."""

    words: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Understood:
    """A question as conditions and a rest.

    ``preferred`` are conditions that put a document before others without choosing it; ``words`` are the stems that are
    searched for and ``text`` is what is embedded.
    ``readings`` explain every condition in words. ``wanted`` says whether figures over a time are asked for.
    """

    question: str
    wanted: Wanted
    where: Filter
    preferred: tuple[AnyOf, ...]
    frames: tuple[TimeFrame, ...]
    text: str
    words: tuple[str, ...]
    readings: tuple[Reading, ...]


def understand(question: str, vocabulary: Vocabulary, *, now: datetime) -> Understood:
    """Return what a question asks for. Pure, and the same for the same question, vocabulary and moment."""
    reader = _Reader(question[:LONGEST_QUESTION], vocabulary, now)
    reader.read()
    text = " ".join(reader.searched.split())
    return Understood(
        question=question,
        wanted="figures" if _FIGURES.search(question.strip()) else "rows",
        where=Filter(tuple(reader.any_of), tuple(reader.between)),
        preferred=tuple(reader.preferred),
        frames=tuple(reader.frames),
        text=text or " ".join(question.split()),
        words=tuple(word for word in dict.fromkeys(words_of(text)) if word not in _FILLERS),
        readings=tuple(reader.readings),
    )


@dataclass(slots=True)
class _Reader:
    """Reads a question from the narrowest expressions to the widest; what was read is not read again."""

    question: str
    vocabulary: Vocabulary
    now: datetime
    any_of: list[AnyOf] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)
    preferred: list[AnyOf] = field(default_factory=list)
    frames: list[TimeFrame] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    #: The question, with spaces where something was read.
    left: str = ""
    #: The same for what is searched for: some words are both a condition and a subject.
    searched: str = ""

    def read(self) -> None:
        self.left = self.searched = self.question
        for step in (
            self._identifiers,
            self._blocks,
            self._missing,
            self._quantities,
            self._times,
            self._contracts,
            self._chains,
            self._statuses,
            self._approvals,
            self._escrow,
            self._native,
            self._tokens,
        ):
            step()

    def _take(self, span: tuple[int, int], meaning: str, *, search: bool = False) -> None:
        start, end = span
        self.readings.append(Reading(self.question[start:end].strip(), meaning))
        blank = " " * (end - start)
        self.left = self.left[:start] + blank + self.left[end:]
        if not search:
            self.searched = self.searched[:start] + blank + self.searched[end:]

    def _matches(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Yield matches one after the other in what is left, which taking changes."""
        position = 0
        while (match := pattern.search(self.left, position)) is not None:
            position = match.end()
            yield match

    def _identifiers(self) -> None:
        hashes = list(self._matches(_HASH))
        if hashes:
            self.any_of.append(AnyOf("hash", tuple(match.group().lower() for match in hashes)))
            for match in hashes:
                self._take(match.span(), f"the transaction {match.group().lower()}")
        for match in self._matches(_SHORTENED):
            self.any_of.append(AnyOf("short", (match.group()[:SHORT_CHARS],)))
            self._take(match.span(), f"a hash or an address that begins with {match.group()[:SHORT_CHARS].lower()}")
        found: dict[str, list[str]] = {}
        for match in self._matches(_ADDRESS):
            value = match.group("value").lower()
            address = value if len(value) == 42 else ZERO_ADDRESS
            before = self.question[: match.start()]
            by = _FROM.search(before)
            to = None if by else _TO.search(before)
            side, said = ("facts.from", "sent by") if by else ("facts.to", "sent to") if to else ("address", "with")
            found.setdefault(side, []).append(address)
            start = by.start() if by else to.start() if to else match.start()
            self._take((start, match.end()), f"{said} {address}")
        for side, addresses in found.items():
            self.any_of.append(AnyOf(side, tuple(dict.fromkeys(addresses))))

    def _blocks(self) -> None:
        for match in self._matches(_BLOCK):
            first = int(match.group("first").replace(",", ""))
            last = int((match.group("last") or match.group("first")).replace(",", ""))
            self.between.append(Between("blockNumber", min(first, last), max(first, last)))
            self._take(match.span(), f"block {first}" if first == last else f"blocks {first} to {last}")

    def _missing(self) -> None:
        for name, pattern in _MISSING:
            match = pattern.search(self.left)
            if match is not None:
                self.any_of.append(AnyOf("missing", (name,)))
                what = {"start": "time", "gasUsed": "gas"}.get(name, name)
                self._take(match.span(), f"without a known {what}")

    def _quantities(self) -> None:
        for match in self._matches(_QUANTITY):
            found = {name: value for name, value in match.groupdict().items() if value is not None}
            bounds = _bounds(found)
            if bounds is None:
                continue
            low, high, above, below = bounds
            before = self.question[: match.start()]
            unit = found.get("unit", "")
            limits = (low, high, above, below)
            gas = _GAS_BEFORE.search(before)
            call_data = _CALL_DATA.search(before)
            size = _SIZES.get(unit.lower().removesuffix("s"))
            coin = _COINS.get(unit.lower(), unit if unit.lower() in self.vocabulary.tokens else None)
            if unit.lower() == "gas" or (gas is not None and coin is None):
                self._limit(
                    "gasUsed", limits, match, gas.start() if gas else None, "gas", with_unit=unit.lower() == "gas"
                )
            elif call_data is not None and (size is not None or not unit):
                # Call data is counted in bytes; two characters write one, after the two of 0x.
                scale = size or 1.0
                shift = 1.0 if scale == 0.5 else 0.0
                moved = (low * scale - shift, high * scale - shift, above, below)
                self._limit("callDataBytes", moved, match, None, "bytes of call data", with_unit=True, search=True)
            elif coin is not None:
                self.any_of.append(AnyOf("token", (coin,)))
                self._limit("amount", limits, match, None, coin, with_unit=True)
            elif unit.lower() in ("tokens", "token", "coins", "units"):
                self._limit("amount", limits, match, None, "of any unit", with_unit=True, search=True)

    def _limit(
        self,
        name: NumberField,
        limits: tuple[float, float, bool, bool],
        match: re.Match[str],
        start: int | None,
        unit: str,
        *,
        with_unit: bool,
        search: bool = False,
    ) -> None:
        low, high, above, below = limits
        self.between.append(Between(name, low, high, above, below))
        end = match.end() if with_unit or not match.group("unit") else match.start("unit")
        self._take((match.start() if start is None else start, end), f"{_said(limits)} {unit}", search=search)

    def _times(self) -> None:
        frames = find_time_frames(self.left, now=self.now)
        self.frames.extend(frames)
        for frame in frames:
            self._take(frame.span, f"{frame}{f' ({frame.assumed})' if frame.assumed else ''}")
        bounded = [frame for frame in frames if frame.start is not None or frame.end is not None]
        if bounded:
            starts, ends = zip(*(frame.seconds() for frame in bounded), strict=True)
            # What several windows name is looked for from the first to the last.
            where = overlapping(min(starts), max(ends))
            self.between.extend(where.between)

    def _chains(self) -> None:
        named: list[tuple[tuple[int, int], Chain, bool]] = []
        for pattern in (_CHAIN_WORDS, _BASE, _BASE_NAMED):
            for match in self._matches(pattern):
                if any(span[0] < match.end() and match.start() < span[1] for span, _, _ in named):
                    continue
                base = pattern is not _CHAIN_WORDS
                chain = find_chain("base" if base else match.group())
                if chain is None or chain.chain_id is None:
                    continue
                placed = pattern is _BASE or _ON.search(self.question[: match.start()]) is not None
                named.append((match.span(), chain, placed))
        if not named:
            named.extend(self._mistyped_chains())
        # "the Polygon bridge on Ethereum" is on Ethereum.
        chosen = [one for one in named if one[2]] or named
        if not chosen:
            return
        names = tuple(dict.fromkeys(chain.name for _, chain, _ in chosen))
        self.any_of.append(AnyOf("chain", names))
        for span, chain, placed in chosen:
            start = span[0]
            if placed and (before := _ON.search(self.question[: span[0]])) is not None:
                start = before.start()
            self._take((start, span[1]), f"on {chain.name}")

    def _mistyped_chains(self) -> Iterator[tuple[tuple[int, int], Chain, bool]]:
        for match in re.finditer(r"[a-z]{6,10}", self.left.lower()):
            close = get_close_matches(match.group(), _CHAINS_AS_PEOPLE_MISTYPE, n=1, cutoff=0.85)
            chain = find_chain(close[0]) if close else None
            if chain is not None:
                yield match.span(), chain, _ON.search(self.question[: match.start()]) is not None

    def _statuses(self) -> None:
        match = _NOT_FAILED.search(self.left)
        if match is not None:
            self.any_of.append(AnyOf("facts.status", ("failed",), negated=True))
            self._take(match.span(), "not failed")
            return
        found: list[str] = []
        for status, pattern in _STATUSES:
            for match in self._matches(pattern):
                found.append(status)
                self._take(match.span(), f"status {status}")
        if found:
            self.any_of.append(AnyOf("facts.status", tuple(dict.fromkeys(found))))

    def _approvals(self) -> None:
        if _APPROVAL.search(self.left) is None:
            return
        for pattern, value in ((_UNLIMITED, "unlimited"), (_REVOKED, "revoked")):
            match = pattern.search(self.left)
            if match is not None:
                self.any_of.append(AnyOf("facts.allowance", (value,)))
                self._take(match.span(), f"an allowance that is {value}", search=True)

    def _escrow(self) -> None:
        match = _ESCROW.search(self.left)
        if match is not None:
            self.any_of.append(AnyOf("missing", ("staking",), negated=True))
            self._take(match.span(), "calls of a staking contract", search=True)

    def _native(self) -> None:
        match = _NATIVE.search(self.left)
        if match is not None:
            self.any_of.append(AnyOf("missing", ("token",)))
            self._take(match.span(), "the chain's own coin, and no token", search=True)

    def _tokens(self) -> None:
        if any(one.field == "token" for one in self.any_of):
            return
        found: dict[str, tuple[int, int]] = {}
        for pattern in (_IN_BRACKETS, _BEFORE_NOUN, _AFTER_NOUN):
            for match in pattern.finditer(self.left):
                if self._is_symbol(match.group("symbol"), bracketed=pattern is _IN_BRACKETS):
                    found.setdefault(match.group("symbol"), match.span("symbol"))
            if found:
                break
        if found:
            self.any_of.append(AnyOf("token", tuple(found)))
            for symbol, span in found.items():
                self._take(span, f"token {symbol}", search=True)
            self._amount_without_unit()

    def _is_symbol(self, word: str, *, bracketed: bool) -> bool:
        """Return whether a word is a token's symbol: one that is known, and written as one, and no chain's name."""
        written = bracketed or any(char.isupper() or char.isdigit() for char in word[1:]) or word.istitle()
        chain = find_chain(word)
        a_chain = chain is not None and chain.chain_id is not None and word not in _COINS.values()
        return written and not a_chain and word.lower() in self.vocabulary.tokens

    def _amount_without_unit(self) -> None:
        """Read the one comparison that is left: where a token is named, its unit is that token."""
        compared = [
            (match, bounds)
            for match in _QUANTITY.finditer(self.left)
            if (bounds := _bounds({name: value for name, value in match.groupdict().items() if value is not None}))
        ]
        if len(compared) == 1 and not any(one.field == "amount" for one in self.between):
            match, limits = compared[0]
            self._limit("amount", limits, match, None, "of that token", with_unit=False)

    def _contracts(self) -> None:
        said = set(words_of(self.question))
        whole = [(name, core) for name, core in self.vocabulary.contracts.items() if core <= said]
        # The name that says more is meant: a router's, and not that of all that is Uniswap's.
        best = max((len(core) for _, core in whole), default=0)
        names = tuple(sorted(name for name, core in whole if len(core) == best))
        if names:
            self.preferred.append(AnyOf("facts.contractName", names))
            told = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
            self.readings.append(Reading(" ".join(sorted(whole[0][1])), f"the contract {told} before others"))


def _core(name: str) -> frozenset[str]:
    spoken = _BRACKETED.sub(" ", name)
    return frozenset(word for word in words_of(spoken) if not word.isdigit() and word not in _OF_ALL_CONTRACTS)


def _bounds(found: Mapping[str, str]) -> tuple[float, float, bool, bool] | None:
    """Return the lower and the upper bound and whether each lies outside; None where no comparison is said."""
    low = _figure(found["low"], found.get("low_times"))
    if "high" in found and "low_times" not in found:
        # "1 and 2.5m" are millions both, and "100 and 5k" are not thousands both.
        shared = _figure(found["low"], found.get("high_times"))
        low = shared if shared <= _figure(found["high"], found.get("high_times")) else low
    behind = found.get("behind", "").lower()
    if "high" in found:
        high = _figure(found["high"], found.get("high_times"))
        if "between" not in found and "least" not in found:
            return None
        return min(low, high), max(low, high), False, False
    if any(word in behind for word in ("less", "below", "under", "lower", "fewer")):
        return -inf, low, False, False
    if behind or "plus" in found:
        return low, inf, False, False
    if "more" in found:
        return low, inf, True, False
    if "least" in found:
        return low, inf, False, False
    if "less" in found:
        return -inf, low, False, True
    if "most" in found:
        return -inf, low, False, False
    if "exact" in found:
        return low, low, False, False
    return None


def _figure(text: str, times: str | None) -> float:
    value = Decimal(_SAID.get(text.lower(), text.replace(",", "")))
    return float(value * _TIMES.get((times or "").lower(), 1))


def _said(limits: tuple[float, float, bool, bool]) -> str:
    low, high, above, below = limits
    if low == high:
        return f"exactly {low:,g}"
    if high == inf:
        return f"{'more than' if above else 'at least'} {low:,.12g}"
    if low == -inf:
        return f"{'less than' if below else 'at most'} {high:,.12g}"
    return f"{low:,.12g} to {high:,.12g}"
