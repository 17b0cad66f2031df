"""Case: one question with whose documents it is put to; whose figures are meant, and what is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.domain.answers.asking import ALL_TIME_SPAN, Asked, Span
from tasks.domain.answers.lexicon import MONEY, Topic
from tasks.domain.answers.lookups import Lookup
from tasks.domain.answers.model import Collector, RefusedError, Scope
from tasks.domain.answers.subjects import Named, Subject
from tasks.domain.answers.values import told
from tasks.domain.retrieval.filters import AnyOf
from tasks.domain.retrieval.understanding import Understood
from tasks.domain.retrieval.words import stem_of

#: A question that names more gets answers to these.
MOST_ANSWERS = 5
_TOGETHER = re.compile(
    r"\ball (?:\w+ )?(?:web ?sites|sites)\b|\btogether\b|\bacross (?:\w+ )*(?:web ?sites|sites)\b|\bwhole team\b"
)
_PROPER = re.compile(
    r"(?<![\w.])(?:0x[0-9a-fA-F]+|[A-Z][\w&-]*(?:\.[a-z]{2,})?|[\w-]+\.(?:com|io|xyz|net|org|example|eth)\b)"
)
_NAME = re.compile(r"[A-Z][\w&-]*(?:[:]? [A-Z][\w&-]*){0,5}")
_FIRST_WORD = re.compile(r"^\W*\w+")
#: Capitals that name nothing of the tenant's.
_NAMING_NOTHING = """
I UTC GMT CET ROI CAC CPA DAO NFT NFTs NFTS DEX KPI KPIS FAQ URL ENS Web3 Monday Tuesday Wednesday Thursday Friday
Saturday Sunday Mondays Tuesdays Wednesdays Thursdays Fridays Saturdays Sundays And In On Of For The
Cryptique CQ App Google Twitter Telegram Discord X Tx TX
"""
_COMMON = frozenset(_NAMING_NOTHING.split())


#: Names of what visits are told apart by, which a question may write with a capital.
_VISITS_ARE_TOLD_APART_BY = """
chrome firefox safari brave edge opera android ios windows macos linux metamask rabby coinbase walletconnect
phantom trust ledger rainbow desktop mobile tablet paid email
"""
_WORDS_OF_VISITS = frozenset(_VISITS_ARE_TOLD_APART_BY.split())

_STEMS_OF_VISITS = frozenset(stem_of(word) for word in _WORDS_OF_VISITS - {"edge", "trust", "ledger", "paid", "email"})


@dataclass(slots=True)
class Case:
    """``strong`` holds for questions that beyond doubt ask for a figure, and not for texts.

    ``over`` is the time of a question that names none.
    """

    asked: Asked
    understood: Understood
    subjects: Sequence[Subject]
    lookup: Lookup
    strong: bool
    over: Span = ALL_TIME_SPAN
    found: Collector = field(default_factory=Collector)

    @property
    def times(self) -> list[Span]:
        """Return the times that figures are asked of."""
        return list(self.asked.spans)[:MOST_ANSWERS] or [self.over]

    def told_kinds(self, kinds: frozenset[str]) -> frozenset[str]:
        """Return the kinds of what is named; of a name that several things share, the one that the words are about."""
        if len(kinds) < 2:
            return kinds
        said = self.asked.said
        if "campaign" in kinds and re.search(r"\bcampaigns?\b|\bcost\b|\broi\b|\bconversions?\b", said) is None:
            kinds -= {"campaign"}
        if {"contract", "site"} <= kinds:
            if re.search(r"\btoken\b|\bcontracts?\b|\btransactions?\b|\bgas\b", said):
                kinds -= {"site"}
            elif all(named.of("site") for named in self.asked.named):
                kinds -= {"contract"}
        return kinds

    def scopes(self, topic: Topic) -> list[Scope]:
        """Return whose figures are meant. Raises ``RefusedError`` where nothing of that name is known."""
        if topic == "campaign":
            campaigns = self.asked.subjects("campaign")
            if not campaigns:
                self.refuse_strangers(())
                raise RefusedError("no campaign of that name is known", "the name of one of the campaigns")
            return [campaign_scope(one) for one in campaigns]
        if topic in ("transactions", "staking"):
            contracts = self._contracts()
            if contracts:
                wrong = self.asked.chain is not None and all(one.chain != self.asked.chain for one in contracts)
                if wrong:
                    raise RefusedError(
                        f"{contracts[0].name.rpartition(' on ')[0] or contracts[0].name} is not on {self.asked.chain}",
                        "the chain that the contract is on",
                    )
                return [contract_scope(one) for one in contracts][:MOST_ANSWERS]
            if self.asked.chain is not None:
                chain = AnyOf("chain", (self.asked.chain,))
                return [Scope("chain", f"all contracts of the team on {self.asked.chain}", (chain,), (chain,))]
            return [Scope("team", "all contracts of the team")]
        sites = {one.key: one for one in self.asked.subjects("site")}
        if sites and not _TOGETHER.search(self.asked.said) and not any(one.shared for one in sites.values()):
            return [site_scope(one) for one in sites.values()][:MOST_ANSWERS]
        own = {one.key: one for one in self.subjects if one.kind == "site"}
        bound = self.lookup.library.site_id
        if not sites and not _TOGETHER.search(self.asked.said) and bound in own:
            return [site_scope(own[bound])]
        if len(own) == 1:
            return [site_scope(next(iter(own.values())))]
        return [Scope("team", "all websites of the team")]

    def _contracts(self) -> list[Subject]:
        """Return the contracts that are named; a website's name may be a token's too."""
        found = [
            one
            for named in self.asked.named
            if not named.of("site") or _is_contract(named, self.asked.said)
            for one in self.asked.on_chain(named.of("contract"))
        ]
        return list({one.key: one for one in found}.values())

    def refuse_strangers(self, taken: Sequence[str]) -> None:
        """Refuse where a name stands that nothing of the tenant's has: the figures of something else are no answer."""
        text = self.asked.left
        first = _FIRST_WORD.match(text)
        words = {part.lower() for value in taken for part in re.findall(r"\w+", value)}
        known = {one.symbol for one in self.subjects if one.symbol} | {"ETH", "BNB", "MATIC"}
        for match in _PROPER.finditer(text):
            said = match.group()
            if (first is not None and match.start() < first.end()) or said in _COMMON or said in known:
                continue
            if said.lower() in words or said.lower() in _WORDS_OF_VISITS or said.removesuffix("'s").lower() in words:
                continue
            if re.search(r"[.?!:]\s+$", text[: match.start()]):
                continue
            whole = _NAME.match(text, match.start())
            called = (said if whole is None else whole.group())[:60]
            raise RefusedError(
                f"nothing is called {called} among the websites, contracts, campaigns and tokens that may be seen",
                "its name as it is known here",
                about=None if self.strong else called,
            )

    def refuse_unheard(self, values: Sequence[str]) -> None:
        """Refuse what visits could be told apart by, and are not: a figure of all of them is no answer."""
        words = {stem_of(word) for word in re.findall(r"[^\W_]+", self.asked.left.lower())}
        heard = {stem_of(word) for word in told(values)}
        for word in sorted(words & _STEMS_OF_VISITS - heard):
            raise RefusedError(f"no visits are told apart by {word} here", "the same question without it")

    def refuse_money(self, topic: Topic) -> None:
        """Refuse what asks for money, where only tokens are counted."""
        match = MONEY.search(self.asked.left)
        if match is None or topic == "campaign":
            return
        said = match.group().split()[-1].strip()
        if any(one.symbol and one.symbol.lower() == said.lower() for one in self.subjects):
            return
        raise RefusedError(
            f"amounts are kept in the tokens that moved, and no price of them in {said}", "a source of prices"
        )


def site_scope(subject: Subject) -> Scope:
    """Return the scope of a website."""
    chosen = (AnyOf("site", (subject.key,)),)
    return Scope("site", subject.name, chosen, chosen)


def contract_scope(subject: Subject) -> Scope:
    """Return the scope of a contract."""
    chosen = (AnyOf("facts.contractId", (subject.key,)),)
    return Scope("contract", subject.name, chosen, chosen, subject.symbol)


def campaign_scope(subject: Subject) -> Scope:
    """Return the scope of a campaign."""
    return Scope("campaign", subject.name, (AnyOf("facts.campaignId", (subject.key,)),))


def _is_contract(named: Named, said: str) -> bool:
    return bool(named.of("contract")) and re.search(r"\btoken\b|\bcontract\b", said) is not None
