"""Lexicon: by which words analysts ask for which figures, and what they ask for that nobody keeps.

A rule is about a figure and never about a question. Figures that say how far another one can be trusted come with it: a
rate with its counts, an amount with how many are unknown. Rules see a question in lower case, without the names of its
subjects, its times and its places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Topic = Literal["visits", "funnel", "campaign", "transactions", "staking"]


@dataclass(frozen=True, slots=True)
class FigureRule:
    """All of ``needs`` must be said, and nothing of ``unless``; ``reads`` are paths into the facts of a document.

    ``{n}`` in a path is how many are asked for, ``{unit}`` the unit. With ``alone`` no rule below it is looked at.
    ``measure`` is the field of what is counted, where it can be told apart by country, device and the like.
    """

    topic: Topic
    reads: tuple[str, ...]
    needs: tuple[re.Pattern[str], ...]
    unless: re.Pattern[str] | None = None
    alone: bool = False

    def fits(self, text: str) -> bool:
        """Return whether a text in lower case asks for these figures."""
        return all(one.search(text) for one in self.needs) and (self.unless is None or not self.unless.search(text))


@dataclass(frozen=True, slots=True)
class Dimension:
    """What visits are told apart by: the fact of a session, the lists of a document, and the words that ask for it."""

    name: str
    fact: str
    lists: tuple[tuple[str, str], ...]
    asks: re.Pattern[str]


def _any(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})")


def _rule(topic: Topic, reads: str, *needs: str, unless: str | None = None, alone: bool = False) -> FigureRule:
    return FigureRule(
        topic,
        tuple(reads.split()),
        tuple(_any(one) for one in needs),
        None if unless is None else _any(unless),
        alone,
    )


DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        "country",
        "country",
        (("figures.topCountries", "sessions"), ("figures.walletCountries", "sessions")),
        _any(r"countr(?:y|ies)\b|nations?\b|where in the world|geograph\w+"),
    ),
    Dimension(
        "source",
        "trafficSource",
        (("figures.topSources", "sessions"), ("figures.walletSources", "sessions")),
        _any(r"sources?\b|channels?\b|referrers?\b|mediums?\b"),
    ),
    Dimension("device", "device", (("figures.devices", "sessions"),), _any(r"devices?\b")),
    Dimension("system", "system", (("figures.systems", "sessions"),), _any(r"operating systems?\b|systems?\b|os\b")),
    Dimension("browser", "browser", (("figures.browsers", "sessions"),), _any(r"browsers?\b")),
    Dimension(
        "walletType",
        "walletType",
        (("figures.walletTypes", "sessions"),),
        _any(r"wallet (?:software|types?|apps?|brands?|kinds?|providers?)\b"),
    ),
    Dimension("page", "pages", (("figures.topPages", "views"),), _any(r"pages?\b")),
)

_PEOPLE = r"visitors?\b|users?\b|people\b|persons?\b|audience\b"
_CONNECTED = r"connect\w* (?:\w+ ){0,2}wallets?|wallets? (?:\w+ ){0,3}connect|wallet connections?|with (?:a )?(?:connected )?wallets?\b"
_RATE = r"per ?cent|percentage|share\b|rate\b|%|proportion|fraction"
_SUPERLATIVE = r"most\b|top\b|main\b|best\b|popular|largest|biggest|highest|leading|favou?rite|busiest|least\b"
_DONE = r"transact\w*|bought|swapped|on-?chain"

#: Figures that are told apart by country, source or device only where they are counted so.
_OTHERWISE = r"bounc|how long|median|average|mean\b|duration|page ?views|viewed|new visitors|returning|repeat|web3"

RULES: tuple[FigureRule, ...] = (
    # -- visits
    _rule("visits", "figures.walletTypes", r"wallet (?:software|types?|apps?|brands?|kinds?|providers?)\b", alone=True),
    _rule("visits", "figures.walletCountries[:{n}]", r"countr|nations?\b|where in the world", r"wallets?\b|connect", alone=True),
    _rule("visits", "figures.walletSources[:{n}]", r"sources?\b|come from|came from|channels?\b|referrers?\b", r"wallets?\b|connect", alone=True),
    _rule("visits", "figures.walletChains", r"chains?\b|networks?\b", r"wallets?\b|connect", alone=True),
    _rule("visits", "figures.topEntryPages[:{n}]", r"pages?\b", r"begin|began|begun|starts? (?:on|at|from|with)|started\b|entry|entrance|enter|landing|land\b|landed|arriv|first page", alone=True),
    _rule("visits", "figures.topExitPages[:{n}]", r"pages?\b", r"ends?\b|ended\b|exit|leave|leaving|left\b|last page|drop", alone=True),
    _rule("visits", "figures.topPages[:{n}]", r"pages?\b", rf"(?:{_SUPERLATIVE})", unless=r"how many pages? (?:were|was|did|do|are)", alone=True),
    _rule("visits", "figures.topCountries[:{n}]", r"countr(?:y|ies)\b|nations?\b|where in the world|geograph", unless=rf"how many countries|{_OTHERWISE}", alone=True),
    _rule("visits", "figures.countries", r"how many countries", alone=True),
    _rule("visits", "figures.topSources[:{n}]", r"sources?\b|come from|came from|comes from|coming from|channels?\b|referrers?\b", unless=rf"how many (?:traffic )?sources|{_OTHERWISE}", alone=True),
    _rule("visits", "figures.sources", r"how many (?:traffic )?sources", alone=True),
    _rule("visits", "figures.devices", r"devices?\b", unless=_OTHERWISE, alone=True),
    _rule("visits", "figures.browsers", r"browsers?\b", unless=_OTHERWISE, alone=True),
    _rule("visits", "figures.systems", r"operating systems?|\bos\b|systems?\b", unless=_OTHERWISE, alone=True),
    _rule("visits", "figures.weekdays", r"(?:each |every )?days? of the week|weekdays?|(?:which|what|busiest) day\b|day\b.*\bbusiest"),
    _rule("visits", "figures.busiestHours figures.hours", r"(?:which|what|busiest|peak|most active|each|every|per) hours?\b|hours?\b.*\b(?:busi|most)|time of (?:the )?day|hourly"),
    _rule("visits", "change.retained.visitors change.retained.of change.retained.rate", r"(?:came|come|coming) (?:back|again)|retain|retention|returned\b|return\b|stayed|still", r"month before|week before|day before|previous|retain|retention", alone=True),
    _rule("visits", "figures.bounceRate figures.bounces figures.bouncesKnown", r"bounc|left (?:straight|at once|immediately|after one page)|single[- ]page"),
    _rule("visits", "figures.medianSeconds figures.durationKnown", r"median", unless=r"transact"),
    _rule("visits", "figures.averageSeconds figures.durationKnown", r"average|mean\b|typical|how long", r"visits?\b|sessions?\b|stay|last\b|lasted|duration|length|long\b|time", unless=r"median|pages?\b"),
    _rule("visits", "figures.durationSeconds figures.durationKnown", r"total (?:time|duration)|(?:time|seconds|hours|minutes) (?:was |were )?spent", unless=r"average|median|mean"),
    _rule("visits", "figures.pageViews", r"pages? (?:were |was |are |have been |got |did )?(?:viewed|seen|opened|visited|loaded|looked|get|people|users|visitors)|page ?views?|views\b|viewed\b"),
    _rule("visits", "figures.pageViewsPerSession figures.pageViews figures.sessions", r"pages?|page ?views?|how many|views", r"(?:in|per|a|each|every|average)\b (?:a |an |one |each |single |average )?(?:session|visit)\b|pages? (?:on|per) average|on average", r"page|view"),
    _rule("visits", "figures.newVisitors figures.returningVisitors", r"new\b|first[- ]time|returning|returned\b|for the first time", rf"{_PEOPLE}|visit"),
    _rule("visits", "figures.repeatVisitors figures.visitors", _PEOPLE, r"more than once|again\b|repeat\w*|several times|at least twice|twice|came back|come back", unless=r"month before|week before"),
    _rule("visits", "figures.web3Users figures.web3Sessions", r"web3|crypto[- ]?(?:users?|natives?)|had a wallet|have a wallet|wallet installed"),
    _rule("visits", "figures.walletConnections figures.wallets figures.walletUsers", r"wallets?\b", r"connect"),
    _rule("visits", "figures.anonymousSessions", r"anonymous|without (?:a )?(?:pseudonym|visitor)"),
    _rule("visits", "figures.sessions figures.pageViews figures.visitors", r"busy\b|busier|traffic|perform\w*|how (?:is|was|did)\b.*\b(?:do|doing|going)\b"),
    _rule("visits", "figures.visitors figures.sessions", r"visitors?\b|unique (?:users?|people|visitors?)|how many (?:\w+ )?(?:people|users|persons)|audience|people\b", unless=r"(?:which|what|busiest|peak|most active|each|every|per) hours?\b|weekdays?|days? of the week|(?:which|what|busiest) day|time of (?:the )?day|busiest|pages? (?:were |was |did )|new\b|returning|returned|more than once|web3|repeat|again\b|twice"),
    _rule("visits", "figures.sessions figures.visitors", r"visits\b|visit\b|sessions?\b|hits\b|visited\b", unless=r"(?:which|what|busiest|peak|most active|each|every|per) hours?\b|weekdays?|days? of the week|(?:which|what|busiest) day|time of (?:the )?day|busiest|how long|(?:per|a|each|every|average) (?:visit|session)|median|in (?:a|each|one) (?:visit|session)"),
    # -- funnel
    _rule("funnel", "figures.secondsToTransaction.median figures.secondsToTransaction.average", r"seconds?|minutes?|hours?|days?\b|how long|time\b|pass\b|passes|takes?\b|took", r"transact", unless=r"how many wallets", alone=True),
    _rule("funnel", "figures.visitorToWalletRate figures.walletToTransactionRate figures.visitors figures.walletUsers figures.wallets figures.transactedWallets", _RATE, r"connect|transact|wallet|convert|conversion", alone=True),
    _rule("funnel", "figures.transactions figures.volumes[{units}].unit figures.volumes[{units}].amount", r"wallets?\b|funnel|connected", r"\bmoved?\b|transferr?e?d?|volume|value|spen[dt]|how much", alone=True),
    _rule("funnel", "figures.visitors figures.walletUsers figures.wallets figures.transactedWallets", r"connect|wallets?\b|funnel|convert|conversion|transact"),
    # -- campaigns
    _rule("campaign", "figures.cost.perTransactedWallet figures.cost.amount figures.cost.currency", r"cost|cac\b|spent|price|paid|pay\b", r"transact|acquir|cac\b"),
    _rule("campaign", "figures.cost.perVisitor figures.cost.amount figures.cost.currency", r"cost|spent|paid|pay\b", r"(?:per|each|a|every) (?:single )?visitor"),
    _rule("campaign", "figures.cost.perWallet figures.cost.amount figures.cost.currency", r"cost|spent|paid|pay\b", r"(?:per|each|a|every) (?:connected )?wallet", unless=r"transact"),
    _rule("campaign", "figures.cost.perConversion figures.cost.amount figures.cost.currency", r"cost|spent|paid|pay\b", r"(?:per|each|a|every) (?:conversion|transaction)"),
    _rule("campaign", "figures.cost.amount figures.cost.value figures.cost.roi figures.cost.currency", r"roi\b|returns?\b|came back|come back|earn\w*|worth it|paid off|pay off|profit"),
    _rule("campaign", "figures.cost.amount figures.cost.currency", r"budget|costs?\b|spent|spend|paid for", unless=r"(?:per|each|a|every) (?:single |connected )?(?:visitor|wallet|conversion|transaction)|transact|acquir|roi\b|came back|come back|return"),
    _rule("campaign", "figures.secondsToTransaction.median figures.secondsToTransaction.average", r"seconds?|minutes?|hours?|how long|time\b|pass\b|takes?\b|took", r"transact", alone=True),
    _rule("campaign", "figures.visitorToWalletRate figures.walletToTransactionRate figures.visitors figures.wallets figures.transactedWallets", _RATE, r"connect|transact|wallet|convert|conversion", unless=r"bounc"),
    _rule("campaign", "figures.conversions", r"conversions?\b|convert"),
    _rule("campaign", "figures.volumes[{units}].unit figures.volumes[{units}].amount", r"values?\b|volume|moved?\b|worth\b", unless=r"worth it"),
    _rule("campaign", "figures.bounceRate figures.bounces figures.bouncesKnown figures.sessions", r"bounc"),
    _rule("campaign", "figures.averageSeconds figures.durationKnown", r"how long|average (?:visit|session)|duration|visits? last"),
    _rule("campaign", "figures.walletConnections figures.wallets figures.walletUsers", r"connect"),
    _rule("campaign", "figures.transactedWallets figures.wallets", r"transact|acquir", r"wallets?\b|users?\b", unless=r"cost"),
    _rule("campaign", "figures.topCountries[:{n}]", r"countr"),
    _rule("campaign", "figures.web3Users figures.visitors", r"web3"),
    _rule("campaign", "figures.visitors figures.sessions", rf"{_PEOPLE}|reach", unless=r"(?:cost|spent|paid).*(?:per|each|a|every) visitor|web3"),
    _rule("campaign", "figures.sessions figures.visitors", r"visits?\b|sessions?\b|traffic|clicks?\b|perform", unless=r"average (?:visit|session)|visits? last|how long"),
    # -- staking
    _rule("staking", "figures.stakes[0].lockDays.average figures.stakes[0].lockDays.median figures.stakes[0].lockDays.bands figures.stakes[0].lockDays.known", r"lock", r"how many days|days\b|how long|length|duration|long\b"),
    _rule("staking", "figures.stakes[0].lockDays.longest figures.stakes[0].lockDays.shortest", r"lock", r"longest|shortest"),
    _rule("staking", "figures.stakes[0].calls.create_lock", r"locks?\b|create_lock", r"made|created|opened|begun|how many (?:new )?locks|number of locks|create_lock", unless=r"how many wallets"),
    _rule("staking", "figures.stakes[0].calls", r"kinds? of calls?|which calls?|what calls?|each kind|by (?:type|kind)"),
    _rule("staking", "figures.lockingWallets figures.withdrawingWallets", r"wallets?\b|who\b|how many (?:people|users|stakers|addresses)|stakers?"),
    _rule("staking", "figures.stakes[0].withdrawnEarly", r"early|emergency"),
    _rule("staking", "figures.stakes[0].net figures.stakes[0].netOfKnown", r"net\b|difference|balance|still locked|remain"),
    _rule("staking", "figures.stakes[0].locked figures.stakes[0].withdrawn figures.stakes[0].withdrawnUnknown figures.stakes[0].lockedUnknown", r"how much|amounts?\b|total|volume|tokens? (?:were|was)|\d|known", r"lock|withdr|stak|took|taken|unstak", unless=r"how many (?:wallets|locks|people|users)|wallets?\b|days\b|how long"),
    _rule("staking", "figures.calls figures.notDone", r"calls?\b|actions?\b|how often|how many times"),
    # -- transactions
    _rule("transactions", "figures.volumes[{unit}].sizes", r"size bands?|sizes?\b|bands?\b|spread|distribut|breakdown of amounts", alone=True),
    _rule("transactions", "change.retained.wallets change.retained.of change.retained.rate", r"(?:came|come) (?:back|again)|retain|retention|still|stayed|remained", r"wallets?\b|users?\b|addresses", r"month before|week before|day before|previous|retain|retention", alone=True),
    _rule("transactions", "figures.newWallets figures.returningWallets", r"wallets?\b|users?\b|addresses", r"new\b|first[- ]time|for the first time|before\b|returning|returned"),
    _rule("transactions", "figures.repeatWallets figures.wallets", r"wallets?\b|users?\b|addresses", r"more than once|again\b|repeat\w*|several times|came back|at least twice|twice"),
    _rule("transactions", "figures.busiestHours figures.hours", r"(?:which|what|busiest|peak|most active|each|every|per) hours?\b|hours?\b.*\b(?:busi|most)|time of (?:the )?day|hourly"),
    _rule("transactions", "figures.weekdays", r"(?:each |every )?days? of the week|weekdays?|(?:which|what|busiest) day\b|day\b.*\bbusiest"),
    _rule("transactions", "figures.gas.total figures.gas.average figures.gas.largest figures.gas.known", r"gas\b"),
    _rule("transactions", "figures.volumes[{unit}].topSenders[:{n}]", r"(?:which|top|who|what)\b", r"wallets?\b|who\b|address(?:es)?\b|senders?\b", r"sent\b|sends?\b|amounts?\b|volume|moved|paid|largest|transferred", r"most\b|how much|largest|top\b|biggest|highest", unless=r"most transactions|most often|most active|received", alone=True),
    _rule("transactions", "figures.topRecipients[:{n}]", r"recipients?\b|received|receiv", r"which|who|top\b|most", alone=True),
    _rule("transactions", "figures.topWallets[:{n}]", r"(?:which|top|who|what)\b", r"wallets?\b|address(?:es)?\b|who\b|senders?\b", r"most\b|top\b|active|often", alone=True),
    _rule("transactions", "figures.recipients", r"how many (?:different |distinct )?recipients", alone=True),
    _rule("transactions", "figures.topMethods[:{n}]", r"(?:which|what|top|most)\b.*\b(?:methods?|functions?|calls)\b", alone=True),
    _rule("transactions", "figures.methods", r"how many (?:different |distinct )?(?:methods|functions)", alone=True),
    _rule("transactions", "figures.categories", r"kinds?\b|categor|types? of (?:transactions?|activity)|what for", alone=True),
    _rule("transactions", "figures.failed figures.succeeded figures.statusUnknown figures.pending figures.transactions", r"fail|revert|succe|pending|unsuccess|went through|go through|went wrong"),
    _rule("transactions", "figures.wallets figures.transactions", r"wallets?\b|how many (?:\w+ )?(?:people|users|addresses|senders)|unique users|active addresses", unless=r"new\b|before\b|returning|more than once|repeat|came back|again\b|twice|several times"),
    _rule("transactions", "figures.volumes[{units}].unit figures.volumes[{units}].amount figures.volumes[{units}].amounts", r"volume|moved?\b|how much|amounts?\b|transferred|sent\b|total value|sum\b|turnover", unless=r"\bgas\b|below|above|under|over|zero|more than|less than|size|wallets? .*most"),
    _rule("transactions", "figures.volumes[{units}].unit figures.volumes[{units}].largest", r"largest|biggest|highest", r"amounts?\b|transfers?\b|payments?\b|transactions?\b|movement|single", unless=r"gas\b|wallets?\b"),
    _rule("transactions", "figures.volumes[{units}].zeros figures.volumes[{units}].amounts", r"zero|nothing", r"amounts?\b|payments?\b|transfers?\b|were\b|moved|value"),
    _rule("transactions", "figures.transactions", r"transactions?\b|calls?\b|activity|busy|busier|how often|transfers?\b|payments?\b|tx\b|txs\b", unless=r"(?:which|what|busiest|peak|most active|each|every|per) hours?\b|weekdays?|days? of the week|(?:which|what|busiest) day|time of (?:the )?day|busiest|how much gas|gas\b|fail|revert|succe|pending|below|above|largest|zero"),
)  # fmt: skip

#: Which of these a question is for; the first that fits.
_STAKING = _any(
    r"stak\w*|locks?\b|locked|locking|unlock\w*|lock[- ]?ups?|withdr[ae]w\w*|took .{0,12}out|unstak\w*|escrow"
)
_VISITS = _any(
    r"visit\w*|sessions?\b|traffic|page|bounc\w*|browser|devices?\b|countr|website|web ?site|referrer|sources?\b|"
    r"landing|landed|arriv\w*|web3 users?|page ?views?|connected|connect\b|connections?\b|audience"
)
_FUNNEL = (
    _any(r"funnel|convert\w*|conversions?\b"),
    re.compile(
        r"(?=.*\b(?:wallet|connect|visit))(?=.*\b(?:transact(?:ed|s|ing)?\b|(?:made|make|makes|with|did|do) (?:a|an|any|one|their first|its first) transaction))"
    ),
    re.compile(r"(?=.*\bconnect)(?=.*\btransactions?\b)"),
    re.compile(r"(?=.*\bconnect)(?=.*\b(?:moved?|spen[dt]|volume|value)\b)"),
    re.compile(r"(?=.*\bvisit)(?=.*\bto\b.*\btransaction)"),
    re.compile(rf"(?=.*(?:{_RATE}))(?=.*\bconnect)"),
    re.compile(r"(?=.*\bvisitors?\b)(?=.*\bconnect\w* (?:a |their )?wallets?)(?=.*how many)"),
)
_TRANSACTIONS = _any(
    r"transactions?\b|transfers?\b|gas\b|contracts?\b|calls?\b|volume|tokens?\b|wallets?\b|moved?\b|payments?\b|amounts?\b|"
    r"fail\w*|revert\w*|methods?\b|addresses\b|chains?\b|on-?chain|votes?\b|swaps?\b|sent\b|mint\w*"
)


def find_topic(said: str, *, kinds: frozenset[str], staked: bool = True) -> Topic | None:
    """Return what a question is about, from its words and from the kinds of what it names; None where nothing tells.

    ``staked`` says whether the contracts that it names hold stakes, where it names some.
    """
    if "campaign" in kinds or re.search(r"\bcampaigns?\b", said):
        return "campaign"
    if any(one.search(said) for one in _FUNNEL) and kinds != {"contract"}:
        return "funnel"
    if staked and _STAKING.search(said):
        return "staking"
    if kinds == {"contract"}:
        return "transactions"
    if _VISITS.search(said):
        return "visits"
    if _TRANSACTIONS.search(said):
        return "transactions"
    if "site" in kinds:
        return "visits"
    return "transactions" if "contract" in kinds else None


@dataclass(frozen=True, slots=True)
class NotKept:
    """What nobody can answer from the store: ``reason`` says why, ``needed`` what would be."""

    said: re.Pattern[str]
    reason: str
    needed: str


NOT_KEPT: tuple[NotKept, ...] = (
    NotKept(
        _any(r"will\b(?! be counted)|predict\w*|forecast\w*|expect\w*|next (?:day|week|month|quarter|year)|tomorrow|in future|project(?:ed|ion)s?\b|likely\b"),
        "the store holds what happened, and no forecast",
        "a model of the future, which this is not",
    ),
    NotKept(
        _any(r"why\b|because of|reasons? (?:for|behind|why)|caus(?:e|es|ed|ing)\b|due to|thanks to|led to|responsible for|attribut\w+ to"),
        "figures say what happened, and not why",
        "an experiment, or the judgement of somebody who knows the product",
    ),
    NotKept(
        _any(r"should (?:we|i|they|one)|recommend\w*|advi[cs]e\w*|worth (?:buying|investing|holding)|is it (?:wise|safe|good)|best (?:time|way) to"),
        "the store holds figures, and no advice",
        "a decision of yours",
    ),
    NotKept(
        _any(r"e-?mails? address\w*|phone numbers?|real names?|names of (?:the |our )?(?:visitors|users|people|customers)|home address\w*|ip address\w*|\bages?\b|aged?\b|genders?\b|women\b|men\b|male\b|female\b|nationality|income\b|who (?:is|are) (?:the )?(?:person|people|owner)s?\b|identity|identities"),
        "nothing personal is kept: visitors are pseudonyms and wallets addresses",
        "personal data, which this store must not hold",
    ),
    NotKept(
        _any(r"(?:per|by|each|every) (?:day|week|month|quarter|year)\b(?! of)|(?:daily|weekly|monthly|yearly) (?!active)|day by day|month by month|week by week|over time"),
        "an answer is of one time, and not of one after the other",
        "one time, or /api/ai/query, which shows days and months",
    ),
    NotKept(
        _any(r"cit(?:y|ies)\b|towns?\b|regions?\b|provinces?\b|postcodes?|zip codes?|continents?\b|languages?\b"),
        "of where visits come from, the country is kept and nothing narrower or wider",
        "the country",
    ),
    NotKept(
        _any(r"load(?:ing)? times?|to load\b|page speed|response times?|latency|down ?time|uptime|outages?|error rates?|crash\w*|server"),
        "how fast or how reliable a website is, is not measured",
        "a monitoring of the website",
    ),
    NotKept(
        _any(r"scroll\w*|heat ?maps?|impressions?\b|click-?through|ctr\b|search rank\w*|seo\b|keywords?\b|followers?\b|(?:number of|how many) likes|subscri\w+|newsletter sign|sign-?ups?\b|registrations? (?:of|by) users|downloads?\b|satisf\w*|nps\b|reviews?\b|complain\w*|support tickets?"),
        "that is not recorded for any website",
        "a source that records it",
    ),
    NotKept(
        _any(r"holders?\b|(?:total|circulating|max) supply|supply of|market cap\w*|total liquidity|liquidity (?:of|in|depth)|tvl\b|total value locked|apy\b|apr\b|yield\b|floor price|price of|prices?\b(?! (?:feed|update|oracle))|exchange rates?|interest rates?|balances? of (?:the )?(?:wallet|address|contract)|wallet balances?|balances? does|hold in"),
        "prices, balances and supplies are not kept: the store knows transactions, and no state of a chain",
        "a source of prices or of balances",
    ),
    NotKept(
        _any(r"revenues?\b|profits?\b(?! and)|margins?\b|sales\b|turnover in|fees? (?:earned|income|collected)|earnings\b|salar\w+|headcount|employees?\b|staff\b|customers? lifetime|ltv\b|churn\w*"),
        "revenue, profit and people of a company are not kept",
        "figures from the company's books",
    ),
)  # fmt: skip

#: Currencies that nothing in the store is counted in, unless it is a token of the tenant's or a campaign's cost.
MONEY = re.compile(
    r"\b(?:in |worth |value in )?(?:us ?dollars?|dollars?|usd|euros?|eur|pounds?|gbp|yen|francs?|fiat)\b|[$€£]", re.IGNORECASE
)  # fmt: skip
#: What asks for a part of a whole.
SHARE = _any(_RATE)
#: A bound on something that figures are not kept by.
BOUND = re.compile(
    r"\b(?:(?:more|less|fewer|longer|shorter|higher|lower|greater|larger|smaller) than|at least|at most|over|under|above|below|"
    r"within|no more than|no less than) (?:the (?:first|last) )?\d[\d.,]*(?: \w+)?"
)
COMPARED = _any(
    r"(?<!net )chang(?:e|ed|es)\b|improv\w*|worsen\w*|better\b|more (?:\w+ ){0,4}than\b(?! (?:once|twice|one\b|\d))|fewer (?:\w+ ){0,4}than\b|"
    r"less (?:\w+ ){0,4}than\b(?! \d)|compar\w*|gr[eo]w\w*|grown|growth|rise\b|rose\b|fell\b|fall\b|increas\w*|decreas\w*|"
    r"declin\w*|drop(?:ped)?\b|(?:up|down) (?:or|on|from|by|against|over)\b|develop\w*|differ(?:s|ed|ence)?\b|trend\w*|went (?:up|down)|"
    r"month over month|week over week"
)

#: What figures are called, by their path without brackets; others by the words of its end.
NAMES = {
    "change.retained.of": "of the period before",
    "change.retained.rate": "share that came again",
    "change.retained.visitors": "visitors who came again",
    "change.retained.wallets": "wallets that came again",
    "figures.averageSeconds": "average visit",
    "figures.bouncesKnown": "visits of which it is known",
    "figures.busiestHours": "busiest hours",
    "figures.calls": "staking calls",
    "figures.categories": "kinds",
    "figures.cost.amount": "cost",
    "figures.cost.perConversion": "cost for each conversion",
    "figures.cost.perTransactedWallet": "cost for each wallet that transacted",
    "figures.cost.perVisitor": "cost for each visitor",
    "figures.cost.perWallet": "cost for each connected wallet",
    "figures.cost.roi": "return on the cost",
    "figures.cost.value": "value that came back",
    "figures.durationKnown": "visits of known length",
    "figures.durationSeconds": "time spent",
    "figures.gas.average": "average gas",
    "figures.gas.known": "transactions of known gas",
    "figures.gas.largest": "largest gas",
    "figures.gas.total": "gas used",
    "figures.hours": "by hour from 0 to 23",
    "figures.lockingWallets": "wallets that locked",
    "figures.medianSeconds": "median visit",
    "figures.notDone": "failed or pending",
    "figures.pending": "pending",
    "figures.repeatVisitors": "visitors who came more than once",
    "figures.repeatWallets": "wallets that came more than once",
    "figures.secondsToTransaction.average": "average time from visit to first transaction",
    "figures.secondsToTransaction.median": "median time from visit to first transaction",
    "figures.stakes.calls": "calls",
    "figures.stakes.calls.create_lock": "locks made",
    "figures.stakes.lockDays.average": "average lock",
    "figures.stakes.lockDays.bands": "locks by length",
    "figures.stakes.lockDays.known": "locks of known length",
    "figures.stakes.lockDays.longest": "longest lock",
    "figures.stakes.lockDays.median": "median lock",
    "figures.stakes.lockDays.shortest": "shortest lock",
    "figures.stakes.locked": "tokens locked",
    "figures.stakes.lockedUnknown": "locks of unknown amount",
    "figures.stakes.net": "net change",
    "figures.stakes.netOfKnown": "net change of what is known",
    "figures.stakes.withdrawn": "tokens withdrawn",
    "figures.stakes.withdrawnEarly": "early withdrawals",
    "figures.stakes.withdrawnUnknown": "withdrawals of unknown amount",
    "figures.statusUnknown": "of unknown status",
    "figures.topWallets": "most active wallets",
    "figures.transactedWallets": "wallets that transacted",
    "figures.visitorToWalletRate": "visitors who connected a wallet",
    "figures.volumes.amount": "volume",
    "figures.volumes.largest": "largest amount",
    "figures.volumes.sizes": "amounts by size",
    "figures.volumes.sizes.from0_1To1": "amounts from 0.1 to 1",
    "figures.volumes.sizes.from1To10": "amounts from 1 to 10",
    "figures.volumes.sizes.over10": "amounts above 10",
    "figures.volumes.sizes.under0_1": "amounts below 0.1",
    "figures.volumes.topSenders": "wallets that sent most",
    "figures.volumes.zeros": "amounts of zero",
    "figures.walletConnections": "visits that connected a wallet",
    "figures.walletToTransactionRate": "connected wallets that transacted",
    "figures.walletUsers": "visitors with a connected wallet",
    "figures.wallets": "wallets",
    "figures.withdrawingWallets": "wallets that withdrew",
    "retention.count": "users who came back",
    "retention.percent": "share of users who came back",
}
