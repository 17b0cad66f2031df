"""What a contract call does, in the words an analyst searches with.

A method name says little (``atomicMatch_``) or the wrong thing (``deposit`` wraps ether on one contract and
locks tokens on another). The table below turns names into a category and a phrase; the first rule that fits
wins, so narrow rules stand above wide ones. A rule may look at the contract's name, because that is what
people know. Nothing here may claim more than the name says: an unknown method keeps its own words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tasks.domain.texts import split_words


@dataclass(frozen=True, slots=True)
class Action:
    """``category`` is a tag for filters; ``phrase`` opens the text and names the thing done in plain words."""

    category: str
    phrase: str


#: (pattern over the method's words, pattern over the contract's name or None, category, phrase)
_RULES: tuple[tuple[str, str | None, str, str], ...] = (
    # staking and vote escrow
    (r"^create lock", None, "staking", "Locked tokens for voting power in a vote-escrow contract"),
    (r"^increase amount", None, "staking", "Topped up a vote-escrow lock with more tokens"),
    (r"^increase unlock time", None, "staking", "Extended the time of a vote-escrow lock"),
    (r"^(withdraw early|emergency withdraw)", None, "staking", "Withdrew staked tokens early (emergency)"),
    (
        r"^(get|claim|collect|harvest|withdraw)( \w+)* rewards?\b|^harvest|^compound|^earned?$",
        None,
        "rewards",
        "Claimed staking rewards: collected accumulated yield farming incentives",
    ),
    (r"^enter$", None, "staking", "Joined a staking bar: staked tokens for xTokens"),
    (r"^leave$", None, "staking", "Left a staking bar: took staked tokens back out"),
    (r"^(un ?stake|exit stake)", None, "staking", "Unstaked: took staked tokens back out"),
    (r"^exit$", "bridge|root ?chain|predicate", "bridge", "Exited a bridge: withdrew bridged tokens"),
    (r"^exit$", None, "staking", "Exited a staking pool: withdrew stake and rewards"),
    (r"^(stake|restake)\b", None, "staking", "Staked tokens"),
    (r"^unlock\b", None, "staking", "Unlocked: took locked tokens back out"),
    (r"^lock\b", None, "staking", "Locked tokens"),
    # names
    (r"^register with config", None, "naming", "Registered an ENS .eth name together with a resolver"),
    (
        r"^commit$",
        None,
        "naming",
        "Hidden commitment (commit-reveal), the first step of buying an ENS .eth name",
    ),
    (
        r"^(set name|set reverse|claim with resolver)",
        None,
        "naming",
        "Set a primary ENS name (reverse record)",
    ),
    (
        r"^(register|renew|renew all)\b",
        r"\bens\b|registrar|\.eth",
        "naming",
        "Registered or renewed an ENS .eth name",
    ),
    (
        r"^(register|add|remove|change recovery|transfer|trusted)\b",
        "farcaster|id ?registry|key ?registry|id ?gateway",
        "identity",
        "Farcaster identity registration or key change",
    ),
    (
        r"^(set text|set addr|set resolver|set contenthash|set record|set owner)",
        None,
        "naming",
        "Changed an ENS name record",
    ),
    # marketplaces
    (
        r"^(cancel order|cancel$|cancel all|cancel multiple|increment counter|increment nonce)",
        None,
        "marketplace",
        "Cancelled a marketplace order: the seller took back an NFT listing",
    ),
    (
        r"^register proxy",
        None,
        "marketplace",
        "Created a proxy account for trading, as first-time OpenSea traders do",
    ),
    (r"^atomic match", None, "marketplace", "Bought an NFT: OpenSea Wyvern sale"),
    (
        r"^(fulfill|match)( \w+)* (advanced )?orders?\b",
        "seaport|opensea",
        "marketplace",
        "Bought an NFT: OpenSea Seaport purchase",
    ),
    (
        r"^(fulfill|match)( \w+)* (advanced )?orders?\b",
        None,
        "marketplace",
        "Bought an NFT: marketplace order filled",
    ),
    (
        r"^(buy|offer|enter bid|accept bid|withdraw bid|transfer|get)\b.*punk|^punk no longer",
        None,
        "marketplace",
        "CryptoPunks market: a punk bought, offered or bid for",
    ),
    (
        r"^(purchase|buy token|buy nft|bulk buy|batch buy|take ask|take bid|match ask|match bid)",
        None,
        "marketplace",
        "Bought an NFT or item on a marketplace",
    ),
    (r"^buy shares?\b", None, "social", "Bought creator keys (shares), a creator coin"),
    (r"^sell shares?\b", None, "social", "Sold creator keys (shares), a creator coin"),
    # oracles, relays, wallets
    (
        r"^(transmit|submit|update answer|submit price|forward)$",
        None,
        "oracle",
        "Oracle report written: price feed update",
    ),
    (
        r"^fulfill( \w+)* (oracle )?request|^fulfill randomness|^raw fulfill",
        None,
        "oracle",
        "Oracle node answered a data request",
    ),
    (r"^(oracle request|request randomness|request data)", None, "oracle", "Asked an oracle for data"),
    (
        r"^(execute meta transaction|relay call|relay|forward request|execute relay)",
        None,
        "relay",
        "Gasless meta-transaction relayed for a user",
    ),
    (r"^send multi sig", None, "multisig", "Withdrawal paid from a multi-signature wallet"),
    (
        r"^(exec transaction|exec safe|exec transaction from module)",
        None,
        "multisig",
        "Executed a Gnosis Safe multi-signature wallet transaction by its owners",
    ),
    (
        r"^(confirm|submit|execute|revoke) (transaction|confirmation)$",
        None,
        "multisig",
        "Multi-signature wallet action",
    ),
    (r"^handle ops", None, "relay", "Bundled account-abstraction operations of smart wallets"),
    # bridges and rollups
    (
        r"^(request l2|deposit transaction|send to l2|deposit eth for|outbound transfer|deposit eth to|deposit erc20|"
        r"bridge|swap and bridge|send from|deposit for burn|create retryable|send message)",
        None,
        "bridge",
        "Bridged from a main chain to a rollup or other network through a bridge or portal",
    ),
    (
        r"^(deposit|deposit ether|deposit for|deposit eth|deposit ether for)\b",
        "bridge|root ?chain|portal|gateway|inbox",
        "bridge",
        "Bridge deposit: moved funds to another chain",
    ),
    (
        r"^(finalize|prove|claim) (withdrawal|deposit|message)|^finali[sz]e",
        None,
        "bridge",
        "Bridge withdrawal finalised",
    ),
    (
        r"^(append|add sequencer|commit|prove|execute|submit) (\w+ )?(batch|batches|blocks|state)",
        None,
        "rollup",
        "Rollup batch posted to the main chain",
    ),
    # liquidity
    (r"^add liquidity eth", None, "liquidity", "Added liquidity: a token and ether put into a pool"),
    (r"^add liquidity", None, "liquidity", "Added liquidity to a pool"),
    (
        r"^remove liquidity( \w+)* permit",
        None,
        "liquidity",
        "Removed liquidity with an off-chain signed permit",
    ),
    (r"^remove liquidity", None, "liquidity", "Removed liquidity from a pool"),
    (
        r"^(mint|increase liquidity|decrease liquidity|collect|burn|multicall)$",
        "position",
        "liquidity",
        "Liquidity position opened or changed",
    ),
    # trading
    (
        r"^swap exact eth for|^swap eth for|^unoswap eth|^eth to token",
        None,
        "swap",
        "Swapped the native coin for tokens",
    ),
    (
        r"^swap( exact)? tokens for( exact)? eth|^swap exact tokens for eth|^token to eth",
        None,
        "swap",
        "Swapped tokens for the native coin",
    ),
    (
        r"swap|^unoswap|^sell to|^exact (input|output)|^trans?form erc20|^fill ",
        None,
        "swap",
        "Swapped one token for another",
    ),
    (r"^settle$", None, "swap", "Settled a batch auction of trades"),
    (r"^trade\b|^exchange\b|^batch fill", None, "swap", "Trade: an order matched on an exchange"),
    (r"^(execute|multicall)$", "router|uniswap|swap", "swap", "Swap router call"),
    # lending
    (r"^borrow", None, "lending", "Borrowed: took a loan"),
    (r"^repay", None, "lending", "Repaid a loan: a borrower paid back"),
    (r"^(supply|lend)\b", None, "lending", "Supplied assets to a lending market"),
    (r"^(liquidat)", None, "lending", "Liquidated a loan"),
    (r"^flash ?loan|^flash$", None, "lending", "Took a flash loan"),
    (r"^redeem", None, "lending", "Redeemed: took assets out"),
    (
        r"^withdraw",
        "aave|compound|lending|lend|market|comptroller",
        "lending",
        "Withdrew supplied assets from a lending market",
    ),
    (r"^deposit", "aave|compound|lending|lend|comptroller", "lending", "Supplied assets to a lending market"),
    # wrapping
    (r"^deposit$", r"wrapped|\bweth\b|\bwbnb\b|\bwmatic\b", "wrap", "Wrapped the native coin"),
    (r"^withdraw$", r"wrapped|\bweth\b|\bwbnb\b|\bwmatic\b", "wrap", "Unwrapped back into the native coin"),
    # governance
    (r"^cast( \w+)* vote|^vote\b|^cast vote", None, "governance", "Cast a vote on a DAO governance proposal"),
    (
        r"^propose|^create proposal|proposal candidate",
        None,
        "governance",
        "Put forward a new DAO governance proposal",
    ),
    (r"^(queue|execute) proposal|^queue$", None, "governance", "Queued or executed a governance proposal"),
    (r"^delegate", None, "governance", "Delegated voting power to someone else"),
    # claims, mints, burns
    (
        r"^claim( \w+)* (airdrop|drop)|^airdrop|^(multi|batch) airdrop",
        None,
        "airdrop",
        "Airdrop claimed or paid",
    ),
    (r"^claim", "airdrop|distributor|drop", "airdrop", "Claimed an airdrop"),
    (r"^claim", None, "claim", "Claimed tokens or rewards"),
    (
        r"(presale|whitelist|allow ?list|early).*(mint|buy)|mint.*(presale|whitelist|allow ?list|early)|^presale",
        None,
        "mint",
        "Early-access NFT mint: presale or whitelist",
    ),
    (r"^free mint", None, "mint", "Free NFT mint"),
    (r"mint", None, "mint", "Minted tokens or NFTs"),
    (r"^burn", None, "burn", "Burned tokens"),
    # permissions
    (r"^(set approval for all)", None, "approval", "Operator approval for all NFTs of a collection"),
    (
        r"^(approve|increase allowance|permit|increase approval)\b",
        None,
        "approval",
        "Approval of token spending",
    ),
    (
        r"^(decrease allowance|revoke|decrease approval)\b",
        None,
        "approval",
        "Reduced or revoked a spending approval",
    ),
    # movements
    (r"^(safe transfer from|safe batch transfer)", None, "transfer", "NFT transferred"),
    (
        r"^(transfer|send|multi ?send|multi ?transfer|batch transfer|disperse|pay)",
        None,
        "transfer",
        "Transferred",
    ),
    (
        r"^deposit$",
        "beacon|deposit contract",
        "staking",
        "Funded a beacon chain validator through the deposit contract",
    ),
    (
        r"^deposit",
        "stak|farm|pool|gauge|chef|vault|escrow",
        "staking",
        "Deposited into a staking pool or vault",
    ),
    (
        r"^withdraw",
        "stak|farm|pool|gauge|chef|vault|escrow",
        "staking",
        "Withdrew from a staking pool or vault",
    ),
    (r"^deposit", None, "deposit", "Deposited"),
    (r"^(withdraw|withdrawal)", None, "withdrawal", "Withdrew"),
    (r"^sweep", None, "transfer", "Swept funds out of deposit addresses"),
    (
        r"^(upgrade|set |update|add |remove |grant|transfer ownership|renounce|initiali[sz]e|pause|unpause)",
        None,
        "admin",
        "Contract settings changed",
    ),
)
_COMPILED = tuple(
    (re.compile(words), re.compile(name, re.IGNORECASE) if name else None, Action(category, phrase))
    for words, name, category, phrase in _RULES
)

UNNAMED = Action("other", "Called an unnamed method")
NATIVE_TRANSFER = Action("transfer", "Sent native coin")
DEPLOYED = Action("deployment", "Deployed a new contract (contract creation)")
TOKEN_TRANSFER = Action("transfer", "Token transfer")
TOKEN_MINT = Action("mint", "Tokens minted from the zero address")
TOKEN_BURN = Action("burn", "Tokens burned to the zero address")


@lru_cache(maxsize=65_536)
def find_action(method: str, contract_name: str | None) -> Action:
    """Return what a method of that name does on a contract of that name."""
    words = split_words(method)
    if not words:
        return UNNAMED
    for pattern, name, action in _COMPILED:
        if pattern.search(words) and (name is None or (contract_name and name.search(contract_name))):
            return action
    return Action("other", f"Called {words}"[:80])
