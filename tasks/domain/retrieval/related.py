"""Related words: what people say for what the texts say, which are written in the words of the field.

Only of the field's own vocabulary, each line from what is said to what is written; a word of the question itself always
counts more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.domain.retrieval.words import words_of

_LINES = """
    collectible collectibles artwork artworks picture pictures: nft
    handed handing gave given giving gift gifted passed sent sending paid paying payment moved: transfer transferred
    destroyed destroying destroy removed: burned burn
    purchase purchased purchases buy buying acquired acquire: bought
    ether eth bnb matic: native coin
    purchase purchased purchases buying swap exchanged exchange converted convert traded trade trades: swapped
    permission permissions allowance authorised authorized blanket: approval operator approved
    cash cashed pulled took taking takes out: withdrew withdraw withdrawal
    lent lending lend: supplied supply
    farm farmer farmers farming yield earned earnings interest: rewards harvest incentives
    scooped scooping collected collecting collect gathered: claimed harvest
    opened opening open revealed reveal uncovered: revealed unseal
    secret hidden concealed: sealed commitment
    advanced advance fronted: bond
    rollup layer l2: bridge bridged
    created create issued issue printed: minted
    borrow borrowed borrowing: loan borrower
    fixed precise just: exact
    domain name: ens
    feed price: oracle
    launched launch published: deployed
    joint shared: multisig multi signature
    ballot ballots voting: vote governance
    coin coins: tokens
"""


def _read(lines: str) -> Mapping[str, tuple[str, ...]]:
    related: dict[str, dict[str, None]] = {}
    for line in lines.strip().splitlines():
        said, _, written = line.partition(":")
        for word in words_of(said):
            related.setdefault(word, {}).update(dict.fromkeys(words_of(written)))
    return {word: tuple(others) for word, others in related.items()}


_RELATED = _read(_LINES)
_COIN = frozenset(words_of("native coin"))


def with_related(words: Iterable[str], *, weight: float, of_a_token: bool) -> dict[str, float]:
    """Return stems with what they count: those of a question one, and those that stand for them in texts ``weight``.

    ``of_a_token``: a token is asked for, so that a coin's name in the question belongs to it ("wrapped ether").
    """
    weights = dict.fromkeys(words, 1.0)
    for word in list(weights):
        for other in _RELATED.get(word, ()):
            if not (of_a_token and other in _COIN):
                weights.setdefault(other, weight)
    return weights
