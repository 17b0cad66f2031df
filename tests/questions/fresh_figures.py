"""Twenty-four more questions of an analyst, worded apart from the sixty, and their answers (golden set, seed 1).

Every one can be answered from the documents; ``test_fresh_figures.py`` counts most answers again, from the records.
"""

from __future__ import annotations

from tests.questions.reading import Look, Question

ARENA, MINT, SAFFRON = "copperleaf-arena", "tidewater-mint", "saffron"

QUESTIONS = (
    Question(
        101,
        "performance",
        "copperleaf-arena.example, August 2024: sessions, visitors and page views please",
        Look("visits", "2024-08", site=ARENA),
        ("figures.sessions", "figures.visitors", "figures.pageViews"),
        (35, 28, 151),
    ),
    Question(
        102,
        "performance",
        "Across all of Tidewater Collective's sites, what were sessions and page views for Oct 2024?",
        Look("visits", "2024-10", team="Tidewater Collective"),
        ("figures.sessions", "figures.pageViews"),
        (22, 98),
    ),
    Question(
        103,
        "performance",
        (
            "What share of sessions bounced on tidewater-mint.example in September of 2024, and what "
            "was the average session length in seconds?"
        ),
        Look("visits", "2024-09", site=MINT),
        ("figures.bounceRate", "figures.averageSeconds"),
        ("37.5", "439.31"),
    ),
    Question(
        104,
        "top pages",
        "What is the most viewed page of saffron.example for July 2024, with its number of views?",
        Look("visits", "2024-07", site=SAFFRON),
        ("figures.topPages[0].page", "figures.topPages[0].views"),
        ("/", 67),
    ),
    Question(
        105,
        "top pages",
        (
            "On copperleaf-arena.example in August 2024, which page did people leave from most, and in "
            "how many sessions?"
        ),
        Look("visits", "2024-08", site=ARENA),
        ("figures.topExitPages[0].page", "figures.topExitPages[0].sessions"),
        ("/", 14),
    ),
    Question(
        106,
        "sources",
        "Give me the top 3 traffic sources of saffron.example by sessions, Aug 2024",
        Look("visits", "2024-08", site=SAFFRON),
        ("figures.topSources[:3]",),
        (
            [
                {"source": "direct", "sessions": 15},
                {"source": "newsletter/email", "sessions": 10},
                {"source": "twitter/social", "sessions": 7},
            ],
        ),
    ),
    Question(
        107,
        "sources",
        "How many sessions on tidewater-mint.example since the beginning came from twitter/social?",
        Look("visits", "all", site=MINT),
        ("figures.topSources[source=twitter/social].sessions",),
        (62,),
    ),
    Question(
        108,
        "web3 users",
        ("Split copperleaf-arena.example's August 2024 sessions by device: how many desktop, mobile and tablet?"),
        Look("visits", "2024-08", site=ARENA),
        (
            "figures.devices[device=desktop].sessions",
            "figures.devices[device=mobile].sessions",
            "figures.devices[device=tablet].sessions",
        ),
        (30, 3, 2),
    ),
    Question(
        109,
        "web3 users",
        "How many sessions of tidewater-mint.example had a wallet on the Base network, over all time?",
        Look("visits", "all", site=MINT),
        ("figures.walletChains[chain=Base].sessions",),
        (57,),
    ),
    Question(
        110,
        "wallets",
        ("Orchard Protocol, February 2025: count of wallets seen for the first time versus wallets already known"),
        Look("transactions", "2025-02", team="Orchard Protocol"),
        ("figures.newWallets", "figures.returningWallets"),
        (6, 3),
    ),
    Question(
        111,
        "wallets",
        (
            "Over its whole life, how many distinct wallets called Tidewater Otters, and how many of "
            "these did so repeatedly?"
        ),
        Look("transactions", "all", contract="Tidewater Otters"),
        ("figures.wallets", "figures.repeatWallets"),
        (133, 6),
    ),
    Question(
        112,
        "volume",
        "Total ETH that moved through Tidewater Otters, all time, and the biggest single amount?",
        Look("transactions", "all", contract="Tidewater Otters"),
        ("figures.volumes[unit=ETH].amount", "figures.volumes[unit=ETH].largest"),
        ("149.517540036", "4.921"),
    ),
    Question(
        113,
        "volume",
        "Meridian Bridge: Gateway on Optimism: number of failed transactions out of how many overall?",
        Look("transactions", "all", contract="Meridian Bridge: Gateway", chain="Optimism"),
        ("figures.failed", "figures.transactions"),
        (4, 98),
    ),
    Question(
        114,
        "volume",
        ("Gas used by all contracts of Copperleaf Games in Feb 2025: total, and the mean per transaction where known"),
        Look("transactions", "2025-02", team="Copperleaf Games"),
        ("figures.gas.total", "figures.gas.average"),
        ("648665", "58969.55"),
    ),
    Question(
        115,
        "size bands",
        "Saffron Dollar, sUSD amounts of all time: how many from 0.1 to 1, from 1 to 10, and over 10?",
        Look("transactions", "all", contract="Saffron Dollar"),
        (
            "figures.volumes[unit=sUSD].sizes.from0_1To1",
            "figures.volumes[unit=sUSD].sizes.from1To10",
            "figures.volumes[unit=sUSD].sizes.over10",
        ),
        (13, 19, 52),
    ),
    Question(
        116,
        "funnel",
        (
            "Funnel of saffron.example in September 2024: visitors, then visitors who connected a "
            "wallet, then wallets with a transaction"
        ),
        Look("funnel", "2024-09", site=SAFFRON),
        ("figures.visitors", "figures.walletUsers", "figures.transactedWallets"),
        (42, 7, 5),
    ),
    Question(
        117,
        "funnel",
        "Of the wallets connected on tidewater-mint.example to date, what percentage made a transaction?",
        Look("funnel", "all", site=MINT),
        ("figures.walletToTransactionRate",),
        ("88.89",),
    ),
    Question(
        118,
        "campaign ROI",
        "What did the Heroes season one campaign cost per visitor and per conversion, and in which currency?",
        Look("campaign", "all", campaign="Heroes season one"),
        ("figures.cost.perVisitor", "figures.cost.perConversion", "figures.cost.currency"),
        ("26.83", "220", "USD"),
    ),
    Question(
        119,
        "campaign ROI",
        "Lock for a year campaign: sessions, wallets connected and conversions in total?",
        Look("campaign", "all", campaign="Lock for a year"),
        ("figures.sessions", "figures.wallets", "figures.conversions"),
        (92, 13, 14),
    ),
    Question(
        120,
        "retention",
        "saffron.example: what number of July 2024 visitors returned in August 2024, out of how many?",
        Look("visits", "2024-08", site=SAFFRON),
        ("change.retained.visitors", "change.retained.of"),
        (4, 35),
    ),
    Question(
        121,
        "geography",
        "Top two countries by sessions for saffron.example during June 2024?",
        Look("visits", "2024-06", site=SAFFRON),
        ("figures.topCountries[:2]",),
        ([{"country": "US", "sessions": 6}, {"country": "TR", "sessions": 5}],),
    ),
    Question(
        122,
        "peak hours",
        (
            "Which hour of day (UTC) has the most transactions across Lanternfish Labs' contracts, and "
            "how many came on each weekday, Monday first?"
        ),
        Look("transactions", "all", team="Lanternfish Labs"),
        ("figures.busiestHours[0]", "figures.weekdays"),
        (16, [19, 32, 28, 40, 40, 12, 11]),
    ),
    Question(
        123,
        "staking",
        ("Basalt: Staking, whole history: number of create_lock calls, wallets that locked, and early withdrawals"),
        Look("staking", "all", contract="Basalt: Staking"),
        ("figures.stakes[0].calls.create_lock", "figures.lockingWallets", "figures.stakes[0].withdrawnEarly"),
        (51, 50, 9),
    ),
    Question(
        124,
        "comparisons",
        ("Meridian Bridgeworks: by how many transactions, and by what percentage, was November 2024 up on October?"),
        Look("transactions", "2024-11", team="Meridian Bridgeworks"),
        ("change.transactions.absolute", "change.transactions.percent"),
        (3, "60"),
    ),
)
