"""Figures of transactions as plain MongoDB aggregations over the raw collection: nothing is parsed in Python.

The rules are those of the source: a leading number with its unit, addresses padded to 40 digits, a hash counted once
by team and chain, the record with the smallest ``_id`` where one stands twice, staking from the call data of escrow
contracts. Decimal128 has 34 digits, and amounts have up to 156: a number is written as 156 digits with the point in the
middle, cut into six limbs of 26, each limb summed as a Decimal128 of its own (26 digits and those of the number of
rows), and the sums put together as whole numbers. Words of call data, 256 bits, are summed as eight limbs of 32.

What a method is called (``swap``, ``liquidity``) is the project's own vocabulary and no rule of the source: the
aggregations look it up in the collection ``vocabulary``, one document a contract and method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo.database import Database

Expression = Any
Stage = dict[str, Any]
#: Kind, holder, chain, level and first day of what a figure is about; all time begins nowhere.
Key = tuple[str, str, str, str, str | None]

LEVELS = ("day", "week", "month", "all")
ZERO_ADDRESS = "0x" + "0" * 40
SIDE, LIMB = 78, 26
DECIMAL_LIMBS = 2 * SIDE // LIMB
WORD_LIMBS, WORD_LIMB = 8, 8
PAD = "0" * (2 * SIDE)
UINT256_MAX = 2**256 - 1
COINS = {"Ethereum": "ETH", "Base": "ETH", "Arbitrum": "ETH", "Optimism": "ETH", "BNB Chain": "BNB", "Polygon": "MATIC"}
CHAIN_NAMES = {
    **{name.lower(): name for name in COINS},
    "ethereum mainnet": "Ethereum",
    "eth": "Ethereum",
    "eth-mainnet": "Ethereum",
    "binance smart chain": "BNB Chain",
    "bsc": "BNB Chain",
    "unknown (id: 56)": "BNB Chain",
}
#: Selector: what it does, and the positions of its amount and its unlock time among the arguments.
SELECTORS: dict[str, tuple[str, int | None, int | None]] = {
    "0x65fc3873": ("create_lock", 0, 1),
    "0x4957677c": ("increase_amount", 0, None),
    "0xeff7a612": ("increase_unlock_time", None, 0),
    "0x3ccfd60b": ("withdraw", None, None),
    "0x2e1a7d4d": ("withdraw", 0, None),
    "0x8239f064": ("withdraw_early", None, None),
    "0xdb2e21bc": ("withdraw_early", None, None),
    "0xa694fc3a": ("create_lock", 0, None),
    "0x2e17de78": ("withdraw", 0, None),
}
STAKING_NAMES = {
    "create_lock": ("create_lock", "createlock", "stake", "deposit", "enter", "lock"),
    "increase_amount": ("increase_amount", "increaseamount"),
    "increase_unlock_time": ("increase_unlock_time", "increaseunlocktime"),
    "withdraw": ("withdraw", "unstake", "leave", "unlock", "exit"),
    "withdraw_early": ("withdraw_early", "withdrawearly", "emergencywithdraw", "emergency_withdraw"),
}
STATUSES = {
    "success": ("success", "ok", "1", "0x1", "true"),
    "failed": ("failed", "fail", "reverted", "error", "0", "0x0", "false"),
    "pending": ("pending",),
}
#: Characters of tokens' names that nobody sees: zero width, and overrides of the direction.
HIDDEN = "\u200b\u200c\u200d\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
MARKERS = ["ERC20", "BEP20", "ERC-20", "BEP-20", "ERC721", "ERC1155"]


def digits(whole: int, tenths: int = 0) -> str:
    """Return a constant as the 156 digits that amounts are compared as."""
    return f"{whole:0{SIDE}}" + f"{tenths}".ljust(SIDE, "0")


def number_of(limbs: Sequence[Any]) -> tuple[int, int]:
    """Return the whole number that summed limbs stand for, and how many digits of it lie behind the point."""
    return sum(int(str(limb)) * 10 ** (LIMB * place) for place, limb in enumerate(reversed(limbs))), SIDE


def word_of(limbs: Sequence[int]) -> int:
    """Return the whole number that summed limbs of call data stand for."""
    return sum(int(limb) << (4 * WORD_LIMB * place) for place, limb in enumerate(reversed(limbs)))


# what a record says


def _text(value: Expression) -> Expression:
    return {"$cond": [{"$eq": [{"$type": value}, "string"]}, {"$trim": {"input": value}}, ""]}


def _shown(value: Expression) -> Expression:
    """Return a text without hidden characters."""
    for char in HIDDEN:
        value = {"$replaceAll": {"input": value, "find": char, "replacement": ""}}
    return {"$trim": {"input": value}}


def _first_text(*values: Expression) -> Expression:
    """Return the first text that isn't empty, or null."""
    branches = [{"case": {"$ne": [_text(value), ""]}, "then": _text(value)} for value in values]
    return {"$switch": {"branches": branches, "default": None}}


def _matches(value: Expression, pattern: str, options: str = "") -> Expression:
    return {"$regexMatch": {"input": value, "regex": pattern, "options": options}}


def _in_words(word: Expression, table: Mapping[str, Sequence[str]], default: Expression) -> Expression:
    branches = [{"case": {"$in": [word, list(words)]}, "then": name} for name, words in table.items()]
    return {"$switch": {"branches": branches, "default": default}}


def _by_name(word: Expression, table: Mapping[str, str], default: Expression) -> Expression:
    branches = [{"case": {"$eq": [word, name]}, "then": result} for name, result in table.items()]
    return {"$switch": {"branches": branches, "default": default}}


def _address(field: str) -> Expression:
    text = {"$toLower": _text(field)}
    bare = {"$let": {"vars": {"at": {"$indexOfCP": [text, "0x"]}}, "in": _without_prefix(text, "$$at")}}
    return {
        "$let": {
            "vars": {"hex": bare},
            "in": {
                "$cond": [
                    _matches("$$hex", "^[0-9a-f]{1,40}$"),
                    {"$concat": ["0x", {"$substrCP": [{"$concat": ["0" * 40, "$$hex"]}, _length("$$hex"), 40]}]},
                    None,
                ]
            },
        }
    }


def _length(text: Expression) -> Expression:
    return {"$strLenCP": text}


def _without_prefix(text: Expression, at: Expression) -> Expression:
    return {"$cond": [{"$eq": [at, 0]}, {"$substrCP": [text, 2, {"$max": [0, _length(text)]}]}, text]}


def _method(field: str) -> Expression:
    bare = {"$trim": {"input": {"$arrayElemAt": [{"$split": [{"$concat": [_text(field), "("]}, "("]}, 0]}}}
    return {
        "$let": {
            "vars": {"name": bare},
            "in": {
                "$cond": [
                    {
                        "$and": [
                            _matches("$$name", "^[A-Za-z_$][A-Za-z0-9_$]{0,120}$"),
                            {"$not": [_matches("$$name", "^0x")]},
                        ]
                    },
                    "$$name",
                    "",
                ]
            },
        }
    }


def _time() -> Expression:
    """Return the block time of any of its forms, null where it is missing and the text "bad" where it can't be read."""
    number = {
        "$toDate": {
            "$toLong": {
                "$cond": [{"$lt": ["$block_time", 10**10]}, {"$multiply": ["$block_time", 1000]}, "$block_time"]
            }
        }
    }
    return {
        "$switch": {
            "branches": [
                {"case": {"$in": [{"$type": "$block_time"}, ["missing", "null"]]}, "then": None},
                {"case": {"$eq": ["$block_time", ""]}, "then": None},
                {"case": {"$isNumber": "$block_time"}, "then": number},
                {
                    "case": {"$eq": [{"$type": "$block_time"}, "string"]},
                    "then": {"$dateFromString": {"dateString": "$block_time", "onError": "bad"}},
                },
            ],
            "default": "$block_time",
        }
    }


def _gas() -> Expression:
    number = {"$convert": {"input": "$gas_used", "to": "decimal", "onError": None, "onNull": None}}
    return {
        "$let": {
            "vars": {"gas": number},
            "in": {
                "$cond": [
                    {
                        "$and": [
                            {"$gte": ["$$gas", 0]},
                            {"$lt": ["$$gas", 2**63 - 1]},
                            {"$eq": ["$$gas", {"$trunc": "$$gas"}]},
                        ]
                    },
                    {"$toLong": "$$gas"},
                    None,
                ]
            },
        }
    }


_AMOUNT = (
    r"^(<)?\s*([0-9]{1,78}|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(?:\.([0-9]{0,78}))?(?:[eE]([+-]?[0-9]{1,2}))?(?:\s+(.*))?$"
)


def _capture(number: int) -> Expression:
    return {"$ifNull": [{"$arrayElemAt": ["$number.captures", number]}, ""]}


def _digits() -> Expression:
    """Return the amount as 156 digits, 78 of them behind the point."""
    whole = {"$replaceAll": {"input": _capture(1), "find": ",", "replacement": ""}}
    exponent = {"$cond": [{"$eq": [_capture(3), ""]}, 0, {"$toInt": {"$ltrim": {"input": _capture(3), "chars": "+"}}}]}
    return {
        "$let": {
            "vars": {"whole": whole, "exponent": exponent},
            "in": {
                "$substrCP": [
                    {"$concat": [PAD, "$$whole", _capture(2), PAD]},
                    {"$add": [SIDE, _length("$$whole"), "$$exponent"]},
                    2 * SIDE,
                ]
            },
        }
    }


def _unit() -> Expression:
    """Return what the amount counts: the unit behind it, the token that moved, or the chain's coin."""
    said = {"$trim": {"input": _capture(4)}}
    token = {"$cond": [{"$eq": ["$owner.tokenSymbol", "$coin"]}, None, "$owner.tokenSymbol"]}
    named = {"$trim": {"input": {"$replaceOne": {"input": "$type", "find": "Transfer", "replacement": ""}}}}
    named = {"$cond": [{"$in": [{"$toUpper": named}, [*MARKERS, "TOKEN", "NFT", ""]]}, None, named]}
    event = {
        "$and": [
            {"$ne": ["$symbol", None]},
            {"$eq": ["$selector", ""]},
            {"$not": [{"$in": [{"$toLower": "$call"}, ["0x"]]}]},
        ]
    }
    return {
        "$switch": {
            "branches": [
                {"case": {"$in": [{"$toUpper": said}, MARKERS]}, "then": _first_text("$symbol", token, said)},
                {"case": {"$ne": [said, ""]}, "then": said},
                {"case": "$isTransfer", "then": _first_text("$symbol", _shown(named), "$token_name", token)},
                {"case": event, "then": "$symbol"},
            ],
            "default": "$coin",
        }
    }


def _word(position: Expression) -> Expression:
    """Return the argument of call data at that position as 64 digits, or null."""
    # Far behind the end where there is no such argument: nothing stands there.
    start = {"$ifNull": [{"$add": [10, {"$multiply": [64, position]}]}, 10**9]}
    word = {"$substrCP": ["$call", start, 64]}
    return {
        "$let": {
            "vars": {"word": {"$toLower": word}},
            "in": {"$cond": [_matches("$$word", "^[0-9a-f]{64}$"), "$$word", None]},
        }
    }


def _hexadecimal(text: Expression, start: int, length: int) -> Expression:
    """Return some digits of a text as a whole number: MongoDB 6.0 has no conversion for it."""
    return {
        "$reduce": {
            "input": {"$range": [start, start + length]},
            "initialValue": {"$toLong": 0},
            "in": {
                "$add": [
                    {"$multiply": ["$$value", 16]},
                    {"$indexOfCP": ["0123456789abcdef", {"$substrCP": [text, "$$this", 1]}]},
                ]
            },
        }
    }


def _category() -> Expression:
    plain_move = {"$or": [{"$eq": ["$method", ""]}, _matches("$method", "^transfer", "i")]}
    approval = {
        "$and": [
            {"$in": ["$selector", ["0x095ea7b3", "0xa22cb465"]]},
            _matches("$call", "^.{74}[0-9a-f]{64}", "i"),
        ]
    }
    moved = {"$and": [{"$eq": ["$selector", ""]}, {"$ne": [{"$ifNull": ["$digits", digits(0)]}, digits(0)]}]}
    return {
        "$switch": {
            "branches": [
                {"case": {"$eq": ["$type", "Contract Creation"]}, "then": "deployment"},
                {"case": {"$and": ["$isTransfer", {"$eq": ["$from", ZERO_ADDRESS]}]}, "then": "mint"},
                {"case": {"$and": ["$isTransfer", {"$eq": ["$to", ZERO_ADDRESS]}]}, "then": "burn"},
                {"case": {"$and": ["$isTransfer", plain_move]}, "then": "transfer"},
                {"case": {"$and": [{"$eq": ["$type", "Transfer"]}, {"$eq": ["$method", ""]}]}, "then": "transfer"},
                {"case": {"$ne": ["$method", ""]}, "then": {"$first": "$named.category"}},
                {"case": approval, "then": "approval"},
                {"case": moved, "then": "transfer"},
            ],
            "default": "other",
        }
    }


def _stake() -> Expression:
    """Return what a call of an escrow contract did: null for other contracts."""

    def where(argument: int) -> Expression:
        positions = {selector: found[argument] for selector, found in SELECTORS.items() if found[argument] is not None}
        branches = [{"case": {"$eq": ["$selector", name]}, "then": place} for name, place in positions.items()]
        return {"$switch": {"branches": branches, "default": None}}

    by_selector: Expression = _by_name("$selector", {name: found[0] for name, found in SELECTORS.items()}, None)
    by_name = _in_words({"$toLower": "$method"}, STAKING_NAMES, "unknown")
    unlock = {"$cond": [_matches("$$time", "^0{56}"), _hexadecimal("$$time", 56, 8), None]}
    days = {
        "$cond": [
            {"$and": [{"$gte": ["$$unlock", 1_438_269_973]}, {"$ne": ["$time", None]}]},
            {
                "$toInt": {
                    "$max": [
                        0,
                        {
                            "$round": {
                                "$divide": [
                                    {
                                        "$toDecimal": {
                                            "$subtract": [{"$multiply": ["$$unlock", 1000]}, {"$toLong": "$time"}]
                                        }
                                    },
                                    86_400_000,
                                ]
                            }
                        },
                    ]
                }
            },
            None,
        ]
    }
    told = {
        "$let": {
            "vars": {"amount": _word(where(1)), "time": {"$ifNull": [_word(where(2)), "none"]}},
            "in": {
                "$let": {
                    "vars": {"unlock": unlock},
                    "in": {"kind": {"$ifNull": [by_selector, by_name]}, "amount": "$$amount", "days": days},
                }
            },
        }
    }
    return {"$cond": [{"$eq": ["$owner.contractType", "escrow"]}, told, None]}


def reading(now_ms: int) -> list[Stage]:
    """Return the stages that read ``transactions`` into ``read``: one document a record, with why one is refused."""
    chain = {"$toLower": _text("$chain")}
    owner_chain = _by_name({"$toLower": _text("$owner.blockchain")}, CHAIN_NAMES, None)
    nothing = {"$in": [chain, ["", "error", "unknown", "not connected", "no chain detected"]]}
    value = {"$cond": [{"$eq": [{"$type": "$value_eth"}, "string"]}, _text("$value_eth"), ""]}
    transfer = {
        "$or": [
            _matches("$type", " Transfer$"),
            {
                "$and": [
                    {"$eq": ["$type", "Transfer"]},
                    {
                        "$or": [
                            {"$ne": ["$symbol", None]},
                            {"$ne": [_text("$token_name"), ""]},
                            _matches("$call", "^0x[0-9a-f]{8}", "i"),
                        ]
                    },
                ]
            },
        ]
    }
    selector = {
        "$switch": {
            "branches": [
                {
                    "case": _matches("$call", "^0x[0-9a-f]{8}", "i"),
                    "then": {"$toLower": {"$substrCP": ["$call", 0, 10]}},
                },
                {
                    "case": _matches(_text("$method_signature"), "^0x[0-9a-f]{8}$", "i"),
                    "then": {"$toLower": _text("$method_signature")},
                },
            ],
            "default": "",
        }
    }
    refusals = {
        "id": {"$ne": [{"$type": "$_id"}, "objectId"]},
        "hash": {"$not": [_matches("$hash", "^(0x[0-9a-f]{64}|genesis_(0x)?[0-9a-f]{40})$")]},
        "owner": {"$eq": [{"$ifNull": ["$team", None]}, None]},
        "time": {
            "$and": [
                {"$ne": ["$time", None]},
                {
                    "$or": [
                        {"$eq": ["$time", "bad"]},
                        {"$lt": ["$time", {"$toDate": 1_438_269_973_000}]},
                        {"$gt": ["$time", {"$toDate": now_ms + 86_400_000}]},
                    ]
                },
            ]
        },
        "amount": {
            "$or": [
                {"$and": [{"$ne": [value, ""]}, {"$eq": ["$digits", None]}]},
                {"$gt": ["$digits", digits(UINT256_MAX)]},
                {
                    "$and": [
                        {"$eq": ["$unit", "$coin"]},
                        {"$not": ["$isTransfer"]},
                        {"$gt": ["$digits", digits(10**11)]},
                    ]
                },
            ]
        },
    }
    why = [{"case": case, "then": name} for name, case in refusals.items()]
    return [
        {"$lookup": {"from": "smartcontracts", "localField": "contractId", "foreignField": "contractId", "as": "byId"}},
        {"$lookup": {"from": "smartcontracts", "localField": "contract", "foreignField": "_id", "as": "byOid"}},
        {"$set": {"owner": {"$ifNull": [{"$first": "$byId"}, {"$first": "$byOid"}]}}},
        {"$lookup": {"from": "teams", "localField": "owner.team", "foreignField": "_id", "as": "teams"}},
        {
            "$set": {
                "team": {"$first": "$teams._id"},
                "chain": {"$cond": [nothing, owner_chain, _by_name(chain, CHAIN_NAMES, _text("$chain"))]},
                "hash": {"$toLower": _text("$tx_hash")},
                "time": _time(),
                "type": _text("$tx_type"),
                "symbol": _first_text(_shown(_text("$token_symbol"))),
                "call": _text("$input"),
                "gas": _gas(),
                "from": _address("$from_address"),
                "to": _address("$to_address"),
                "token": _address("$contract_address"),
                "number": {"$regexFind": {"input": value, "regex": _AMOUNT}},
                "method": {
                    "$cond": [
                        {"$ne": [_method("$method_name"), ""]},
                        _method("$method_name"),
                        _method("$functionName"),
                    ]
                },
                "status": _in_words(
                    {"$toLower": {"$convert": {"input": "$status", "to": "string", "onError": "", "onNull": ""}}},
                    STATUSES,
                    "unknown",
                ),
            }
        },
        {
            "$set": {
                "coin": _by_name("$chain", COINS, None),
                "isTransfer": transfer,
                "selector": selector,
                "digits": {
                    "$cond": [
                        {"$or": [{"$eq": [value, ""]}, {"$eq": [{"$concat": [_capture(1), _capture(2)]}, ""]}]},
                        None,
                        _digits(),
                    ]
                },
                "below": {"$eq": [_capture(0), "<"]},
            }
        },
        {
            "$lookup": {
                "from": "vocabulary",
                "localField": "method",
                "foreignField": "method",
                "let": {"contractId": "$owner.contractId"},
                "pipeline": [{"$match": {"$expr": {"$eq": ["$contractId", "$$contractId"]}}}],
                "as": "named",
            }
        },
        {"$set": {"unit": _unit()}},
        {
            "$project": {
                "refused": {"$switch": {"branches": why, "default": None}},
                "contractId": "$owner.contractId",
                "team": {"$toString": "$team"},
                **dict.fromkeys(("chain", "hash", "time", "status", "gas", "method"), 1),
                "category": _category(),
                "called": {"$switch": {"branches": _called(), "default": "$$REMOVE"}},
                "wallet": _somebody("$from", [ZERO_ADDRESS, None]),
                "recipient": _somebody("$to", [ZERO_ADDRESS, None, "$token"]),
                "amount": {
                    "$cond": [
                        {"$eq": ["$digits", None]},
                        "$$REMOVE",
                        {
                            "unit": {"$ifNull": ["$unit", ""]},
                            "digits": "$digits",
                            "below": "$below",
                            "limbs": {
                                f"l{place}": {"$toDecimal": {"$substrCP": ["$digits", place * LIMB, LIMB]}}
                                for place in range(DECIMAL_LIMBS)
                            },
                        },
                    ]
                },
                "stake": _stake(),
            }
        },
        {"$out": "read"},
    ]


def _called() -> list[Stage]:
    return [{"case": {"$ne": [name, ""]}, "then": name} for name in ("$method", "$selector")]


def _somebody(address: str, nobody: list[Any]) -> Expression:
    return {"$cond": [{"$in": [address, nobody]}, "$$REMOVE", address]}


# what counts once


def counting(zone: str) -> list[Stage]:
    """Return the stages that read ``read`` into ``counted``: one document a scope, period and transaction."""
    day = {"$dateTrunc": {"date": "$time", "unit": "day", "timezone": zone}}
    scopes = [
        {"kind": "contract", "holder": "$contractId", "part": ""},
        {"kind": "chain", "holder": "$team", "part": {"$ifNull": ["$chain", "unknown"]}},
        {"kind": "team", "holder": "$team", "part": ""},
    ]

    def first(unit: str) -> Expression:
        trunc = {"$dateTrunc": {"date": "$time", "unit": unit, "timezone": zone, "startOfWeek": "monday"}}
        return {"$dateToString": {"date": trunc, "format": "%Y-%m-%d", "timezone": zone}}

    periods = [{"level": level, "first": first(level)} for level in LEVELS[:3]]
    ever = [{"level": "all", "first": None}]
    rank = ("failed", "success", "pending", "unknown")
    return [
        {"$match": {"refused": None}},
        {"$sort": {"_id": 1}},
        {
            "$group": {
                "_id": {"contractId": "$contractId", "chain": "$chain", "day": day, "hash": "$hash"},
                "record": {"$first": "$$ROOT"},
            }
        },
        {"$replaceRoot": {"newRoot": "$record"}},
        {"$set": {"scope": scopes}},
        {"$unwind": "$scope"},
        {
            "$group": {
                "_id": {"scope": "$scope", "chain": "$chain", "day": day, "hash": "$hash"},
                "statuses": {"$addToSet": "$status"},
                "categories": {"$addToSet": "$category"},
                "methods": {"$addToSet": "$called"},
                "senders": {"$addToSet": "$wallet"},
                "recipients": {"$addToSet": "$recipient"},
                "amounts": {"$addToSet": "$amount"},
                "gas": {"$max": "$gas"},
                "time": {"$min": "$time"},
                "calls": {"$push": {"contractId": "$contractId", "stake": "$stake"}},
            }
        },
        {
            "$project": {
                "_id": 0,
                "scope": "$_id.scope",
                "hash": "$_id.hash",
                "status": {
                    "$switch": {
                        "branches": [{"case": {"$in": [name, "$statuses"]}, "then": name} for name in rank],
                        "default": "unknown",
                    }
                },
                **dict.fromkeys(("categories", "methods", "senders", "recipients", "amounts", "calls", "gas"), 1),
                "time": 1,
                "hour": {"$hour": {"date": "$time", "timezone": zone}},
                "weekday": {"$isoDayOfWeek": {"date": "$time", "timezone": zone}},
                "period": {"$cond": [{"$eq": [{"$ifNull": ["$time", None]}, None]}, ever, [*periods, *ever]]},
            }
        },
        {"$unwind": "$period"},
        {"$set": {"key": {"$mergeObjects": ["$scope", "$period"]}}},
        {"$out": "counted"},
    ]


def _sum_if(condition: Expression) -> Expression:
    return {"$sum": {"$cond": [condition, 1, 0]}}


def _counts(field: str, name: str) -> list[Stage]:
    """Return stages that count how often each value occurs: how many there are, how many twice, and the ten first."""
    return [
        {"$unwind": f"${field}"},
        {"$group": {"_id": {"key": "$key", "name": f"${field}"}, "transactions": {"$sum": 1}}},
        {
            "$group": {
                "_id": "$_id.key",
                "distinct": {"$sum": 1},
                "repeated": _sum_if({"$gt": ["$transactions", 1]}),
                "top": {
                    "$topN": {
                        "n": 10,
                        "sortBy": {"transactions": -1, "_id.name": 1},
                        "output": {name: "$_id.name", "transactions": "$transactions"},
                    }
                },
            }
        },
    ]


_FAILED = {"$eq": ["$status", "failed"]}
_MOVED = {"$in": ["$status", ["success", "unknown"]]}

WHOLE: list[Stage] = [
    {
        "$group": {
            "_id": "$key",
            "transactions": {"$sum": 1},
            "succeeded": _sum_if({"$eq": ["$status", "success"]}),
            "failed": _sum_if(_FAILED),
            "pending": _sum_if({"$eq": ["$status", "pending"]}),
            "statusUnknown": _sum_if({"$eq": ["$status", "unknown"]}),
            "undated": _sum_if({"$eq": ["$time", None]}),
            "gasTotal": {"$sum": {"$toDecimal": "$gas"}},
            "gasKnown": _sum_if({"$ne": ["$gas", None]}),
            "gasLargest": {"$max": "$gas"},
            **{f"hour{hour}": _sum_if({"$eq": ["$hour", hour]}) for hour in range(24)},
            **{f"weekday{day}": _sum_if({"$eq": ["$weekday", day]}) for day in range(1, 8)},
        }
    },
    {
        "$set": {
            "gasAverage": {
                "$cond": ["$gasKnown", {"$toString": {"$round": [{"$divide": ["$gasTotal", "$gasKnown"]}, 2]}}, None]
            },
            "gasTotal": {"$toString": "$gasTotal"},
        }
    },
]
CATEGORIES: list[Stage] = [
    {"$unwind": "$categories"},
    {
        "$group": {
            "_id": {"key": "$key", "name": "$categories"},
            "transactions": {"$sum": 1},
            "failed": _sum_if(_FAILED),
        }
    },
    {"$sort": {"transactions": -1, "_id.name": 1}},
    {
        "$group": {
            "_id": "$_id.key",
            "categories": {
                "$push": {"category": "$_id.name", "transactions": "$transactions", "failed": "$failed"},
            },
        }
    },
]
METHODS = _counts("methods", "method")
SENDERS = _counts("senders", "wallet")
RECIPIENTS = _counts("recipients", "wallet")
#: Of each wallet the day of its first transaction with the contract, on the chain or with the team.
NEWCOMERS: list[Stage] = [
    {"$match": {"period.level": {"$ne": "all"}}},
    {"$unwind": "$senders"},
    {
        "$group": {
            "_id": {"scope": "$scope", "level": "$period.level", "wallet": "$senders"},
            "first": {"$min": "$period.first"},
        }
    },
    {
        "$group": {
            "_id": {"$mergeObjects": ["$_id.scope", {"level": "$_id.level", "first": "$first"}]},
            "wallets": {"$sum": 1},
        }
    },
]


def _band(low: str | None, high: str | None, *, closed: bool = False) -> Expression:
    limits: list[Expression] = [{"$gt": ["$digits", digits(0)]}]
    if low is not None:
        limits.append({"$gt" if low == digits(10) else "$gte": ["$digits", low]})
    if high is not None:
        limits.append({"$lte" if closed else "$lt": ["$digits", high]})
    return {"$and": ["$added", *limits]}


def _limbs(condition: Expression) -> dict[str, Expression]:
    return {
        f"limb{place}": {"$sum": {"$cond": [condition, f"$amounts.limbs.l{place}", 0]}}
        for place in range(DECIMAL_LIMBS)
    }


#: From half of the largest uint256 on, at 18 decimals, an amount means "without limit".
_UNLIMITED = digits(2**255 // 10**18, int(f"{2**255 % 10**18:018}"))
_BELOW = {"$and": ["$moved", "$amounts.below", {"$lt": ["$digits", _UNLIMITED]}]}
VOLUMES: list[Stage] = [
    {"$unwind": "$amounts"},
    {"$set": {"digits": "$amounts.digits", "moved": _MOVED}},
    {
        "$set": {
            "added": {"$and": ["$moved", {"$not": ["$amounts.below"]}, {"$lt": ["$digits", _UNLIMITED]}]},
        }
    },
    {
        "$group": {
            "_id": {"key": "$key", "unit": "$amounts.unit"},
            "entries": {"$sum": 1},
            "amounts": _sum_if("$added"),
            "zeros": _sum_if({"$and": ["$added", {"$eq": ["$digits", digits(0)]}]}),
            "below": _sum_if(_BELOW),
            "unlimited": _sum_if({"$and": ["$moved", {"$gte": ["$digits", _UNLIMITED]}]}),
            "notMoved": _sum_if({"$not": ["$moved"]}),
            "largest": {"$max": {"$cond": ["$added", "$digits", None]}},
            "under0_1": _sum_if(
                {
                    "$or": [
                        _band(None, digits(0, 1)),
                        {"$and": [_BELOW, {"$lte": ["$digits", digits(0, 1)]}]},
                    ]
                }
            ),
            "from0_1To1": _sum_if(_band(digits(0, 1), digits(1))),
            "from1To10": _sum_if(_band(digits(1), digits(10), closed=True)),
            "over10": _sum_if(_band(digits(10), None)),
            **_limbs("$added"),
        }
    },
    {"$sort": {"entries": -1, "_id.unit": 1}},
    {"$group": {"_id": "$_id.key", "units": {"$push": "$$ROOT"}}},
]

_CALL = "$calls.stake"
_LOCKS, _EXITS = ["create_lock", "increase_amount"], ["withdraw", "withdraw_early"]


def _word_limbs(name: str, kinds: list[str]) -> dict[str, Expression]:
    known = {"$and": ["$moved", {"$in": ["$kind", kinds]}, {"$ne": ["$amount", None]}]}
    unknown = {"$and": ["$moved", {"$in": ["$kind", kinds]}, {"$eq": ["$amount", None]}]}
    return {
        f"{name}Known": _sum_if(known),
        f"{name}Unknown": _sum_if(unknown),
        **{
            f"{name}{place}": {"$sum": {"$cond": [known, _hexadecimal("$amount", place * WORD_LIMB, WORD_LIMB), 0]}}
            for place in range(WORD_LIMBS)
        },
    }


def _days(kind: str) -> Expression:
    """Return how long the locks of that kind are, null for each that can't be told."""
    mine = {"$and": ["$moved", {"$eq": ["$kind", kind]}]}
    return {"$push": {"$cond": [mine, {"days": "$days"}, "$$REMOVE"]}}


STAKES: list[Stage] = [
    {"$unwind": "$calls"},
    {"$match": {"calls.stake": {"$ne": None}}},
    {
        "$group": {
            "_id": {"key": "$key", "hash": "$hash", "time": "$time", "call": _CALL},
            "contractId": {"$min": "$calls.contractId"},
            "moved": {"$first": _MOVED},
        }
    },
    {
        "$set": {
            "kind": "$_id.call.kind",
            "amount": {"$ifNull": ["$_id.call.amount", None]},
            "days": {"$ifNull": ["$_id.call.days", None]},
        }
    },
    {
        "$group": {
            "_id": {"key": "$_id.key", "contractId": "$contractId"},
            "notDone": _sum_if({"$not": ["$moved"]}),
            **{kind: _sum_if({"$and": ["$moved", {"$eq": ["$kind", kind]}]}) for kind in (*STAKING_NAMES, "unknown")},
            **_word_limbs("locked", _LOCKS),
            **_word_limbs("withdrawn", _EXITS),
            "lockDays": _days("create_lock"),
            "extendedDays": _days("increase_unlock_time"),
        }
    },
    {"$group": {"_id": "$_id.key", "stakes": {"$push": "$$ROOT"}}},
]


def key_of(found: Mapping[str, Any]) -> Key:
    """Return the scope and period of what a pipeline found."""
    return found["kind"], found["holder"], found["part"], found["level"], found.get("first")


def answers(database: Database[dict[str, Any]], pipeline: list[Stage]) -> dict[Key, dict[str, Any]]:
    """Return what the pipeline finds for each scope and period."""
    return {key_of(found["_id"]): found for found in database["counted"].aggregate(pipeline, allowDiskUse=True)}
