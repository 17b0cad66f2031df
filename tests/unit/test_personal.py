"""Personal data: what visitors did is kept, who they are is not."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import RecordError, TerminalError
from tasks.domain.personal import (
    EARLIEST_MS,
    FUTURE_TOLERANCE_MS,
    HIDDEN,
    MAX_LABEL_CHARS,
    VisitorFields,
    check_key,
    clean_path,
    find_host,
    hide_people,
    hide_tokens,
    name_visitor,
    pseudonym,
    read_user_id,
    without_personal,
)
from tests.builders import NOW_MS, WALLET

KEY = b"a key of thirty-two bytes, or so"
USER_ID = "mira.okafor.3f9a1c@harborpost.example"
PLAIN_ID = "user_1718200000000_ab12cd34e"


def fields(**record: Any) -> VisitorFields:
    return VisitorFields.of({"userId": USER_ID, **record}, "site", KEY)


# pseudonyms


def test_a_user_has_one_name_as_long_as_the_key_stays() -> None:
    name = pseudonym(USER_ID, KEY)
    assert name == pseudonym(USER_ID, KEY)
    assert re.fullmatch("visitor-[0-9a-f]{16}", name)
    assert name != pseudonym(USER_ID, KEY[:-1])
    assert name != pseudonym(USER_ID + " ", KEY)


def test_the_name_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert pseudonym("user-1", b"key") == "visitor-835b217813c48a1a"


def test_no_name_is_made_without_a_key() -> None:
    with pytest.raises(TerminalError, match="key of the pseudonyms is empty"):
        pseudonym(USER_ID, b"")
    with pytest.raises(TerminalError, match="key of the pseudonyms is empty"):
        check_key(b"")


def test_a_key_that_is_longer_than_the_hash_takes_counts_to_its_last_byte() -> None:
    long_key = b"k" * 200
    assert pseudonym(USER_ID, long_key) != pseudonym(USER_ID, long_key[:-1] + b"l")


def test_the_same_id_on_another_website_is_another_visitor() -> None:
    assert name_visitor("site-a", PLAIN_ID, KEY) != name_visitor("site-b", PLAIN_ID, KEY)
    assert name_visitor("a", "bc", KEY) != name_visitor("ab", "c", KEY)


@given(st.lists(st.text(), unique=True, min_size=2, max_size=20))
def test_two_users_never_share_a_name(ids: list[str]) -> None:
    assert len({pseudonym(user_id, KEY) for user_id in ids}) == len(ids)


@pytest.mark.parametrize(
    "raw", [None, "", " ", "undefined", "null", "Anonymous", "unknown", True, 1.5, ["a"], {"id": 1}]
)
def test_what_producers_write_for_nobody_is_no_user(raw: object) -> None:
    assert read_user_id(raw) is None


def test_a_user_id_may_be_a_number_or_an_object_id() -> None:
    assert read_user_id(17) == "17"
    assert read_user_id(ObjectId("64c000000000000000000001")) == "64c000000000000000000001"


# texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mail mira@quaymail.example now", "mail … now"),
        ("follow @mira_o", "follow …"),
        ("mailto:mira@quaymail.example", "…"),
        ("call +44 7700 900123", "call …"),
        ("call +1 (555) 010-9999.", "call …."),
        ("Mint for 0.08 ETH", "Mint for 0.08 ETH"),
        ("1+1 = 2", "1+1 = 2"),
        ("spring2024launchpromo", "spring2024launchpromo"),
    ],
)
def test_words_with_an_at_sign_and_phone_numbers_are_hidden(text: str, shown: str) -> None:
    assert hide_people(text) == shown


def test_the_users_own_id_is_hidden_in_any_spelling() -> None:
    for text in (PLAIN_ID, PLAIN_ID.upper(), f"x{PLAIN_ID}y"):
        assert PLAIN_ID not in hide_people(f"of {text}!", [PLAIN_ID]).lower()
    assert hide_people("jörg müller", ["j%C3%B6rg"]) == "… müller"


def test_a_short_id_is_hidden_only_where_it_stands_by_itself() -> None:
    assert hide_people("/blog/17/2017", ["17"]) == "/blog/…/2017"


# addresses


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/", "/"),
        ("/app", "/app"),
        ("pricing", "/pricing"),
        ("/docs/v1.2/start", "/docs/v1.2/start"),
        ("/blog/how-to-stake-in-2024", "/blog/how-to-stake-in-2024"),
        ("/blog/2024-06-01-notes", "/blog/2024-06-01-notes"),
        ("/app?ref=harbour&v=1.2#top", "/app"),
        ("/app;jsessionid=A1B2", "/app"),
        ("/app&user=mira", "/app"),
        ("/app%3Fuser%3Dmira", "/app"),
        ("/app%253Ftoken%253Dabc", "/app"),
        ("https://app.example/swap?x=1", "/swap"),
        ("https%3A%2F%2Fmira%3Apass%40app.example%2Fswap", "/swap"),
        ("https://app.example", "/"),
        ("/#/pool/7?user=mira", "/#/pool/7"),
        ("/app/#!/pool", "/app/#/pool"),
        ("/#access_token=abc", "/"),
        ("//app", "/app"),
        ("/%D8%A7%D9%84", "/ال"),
        ("/🦦/🌊", "/🦦/🌊"),
        ("/ap\0p", "/ap p"),
        ("/\u202eecirp\u202c", "/ecirp"),
        ("/pri\u200bcing\u200d", "/pricing"),
        ("/100%", "/100%"),
    ],
)
def test_of_a_pages_address_the_path_stays(raw: str, path: str) -> None:
    assert clean_path(raw) == path


@pytest.mark.parametrize(
    "raw", [None, "", "  ", 7, ["/"], {"path": "/"}, "mailto:mira@x.example", "javascript:void(0)"]
)
def test_what_is_no_page_has_no_path(raw: object) -> None:
    assert clean_path(raw) is None


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/confirm/mira@quaymail.example/ok", "/confirm/…/ok"),
        ("/confirm/mira%2540quaymail.example", "/confirm/…"),
        ("/reset/kJ8s2Lq0", "/reset/…"),
        ("/users/mira-okafor/posts", "/users/…/posts"),
        ("/@mira", "/…"),
        ("/x/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtaXJhIn0.c2ln-bmF0dXJl", "/x/…"),
        ("/x/550e8400-e29b-41d4-a716-446655440000", "/x/…"),
        ("/x/9f86d081884c7d659a2feaa0c55ad015", "/x/…"),
        ("/x/447700900123", "/x/…"),
        ("/x/token=abc/y", "/x/token=…/y"),
        (f"/address/{WALLET}", "/address/0x57f999…"),
    ],
)
def test_who_is_named_in_a_path_is_hidden(raw: str, path: str) -> None:
    assert clean_path(raw) == path


def test_a_path_has_a_length_and_is_not_cut_within_an_id() -> None:
    found = clean_path("/deep" * 5_000)
    assert found is not None
    assert len(found) == MAX_LABEL_CHARS
    assert found.endswith(HIDDEN)
    assert clean_path("/" + "x" * 5_000) == "/…"
    assert clean_path("/" + "%25" * 5_000) == "/…"


@pytest.mark.parametrize(
    "spell", [str, str.upper, quote, lambda text: quote(quote(text)), lambda text: text[:4] + "\u200b" + text[4:]]
)
@pytest.mark.parametrize("user_id", [USER_ID, PLAIN_ID, "mira-okafor-3f9a1c", "mira okafor 3f9a1c"])
@pytest.mark.parametrize("form", ["/welcome?user={}&tab=1", "/of/{}/x", "/a{}b", "/#/{}", "https://{}.app.example/{}"])
def test_the_users_own_id_is_in_no_path(spell: Any, user_id: str, form: str) -> None:
    address = form.replace("{}", spell(user_id))
    assert user_id.lower() not in str(clean_path(address, [user_id])).lower()
    assert user_id.lower() not in str(find_host(address, [user_id])).lower()


@pytest.mark.parametrize(
    ("raw", "host"),
    [
        ("https://www.google.com/", "google.com"),
        ("https://t.co/9sVw1Zq3aB", "t.co"),
        ("https://mira:pass@News.Example:8443/x?token=abc", "news.example"),
        ("twitter.com/mira", "twitter.com"),
        ("//cdn.example/x", "cdn.example"),
        ("android-app://com.google.android.gm/", "com.google.android.gm"),
        ("https://news.example/\0", "news.example"),
        ("http://localhost:3000/", "localhost"),
        ("direct", None),
        ("mira@quaymail.example", None),
        ("/app", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_of_another_address_only_the_host_stays(raw: object, host: str | None) -> None:
    assert find_host(raw) == host


@given(st.text() | st.text("/%?#@:.=&0123456789abx ", max_size=60))
def test_any_text_has_a_short_clean_path_or_none(raw: str) -> None:
    path = clean_path(raw, [USER_ID])
    if path is not None:
        assert path.startswith("/")
        assert len(path) <= MAX_LABEL_CHARS
        assert not re.search(r"[@?;\n\0]", path)
        assert clean_path(raw, [USER_ID]) == path
    find_host(raw)
    hide_tokens(hide_people(raw))


# excerpts


def test_an_excerpt_of_a_record_holds_nobody() -> None:
    kept = without_personal(
        {
            "_id": ObjectId("64c000000000000000000001"),
            "userId": PLAIN_ID,
            "siteId": "site",
            "entryPage": f"/welcome?user={PLAIN_ID}",
            "visitedPages": [{"path": f"/of/{PLAIN_ID}", "duration": 3}],
            "eventData": {"innerText": "Hi, Mira Okafor", "href": "mailto:mira@quaymail.example", "tagName": "A"},
            "userJourneys": [{"userId": "tomas-moreau-1a2b3c"}, {"note": "tomas-moreau-1a2b3c"}],
            "web3UserId": None,
        }
    )
    assert not re.search("mira|okafor|tomas|1718200000000|ab12", repr(kept), re.IGNORECASE)
    assert kept["_id"] == ObjectId("64c000000000000000000001")
    assert (kept["siteId"], kept["web3UserId"]) == ("site", None)
    assert kept["visitedPages"] == [{"path": "/of/…", "duration": 3}]
    assert kept["eventData"]["tagName"] == "A"


# fields


def test_what_is_missing_is_never_named() -> None:
    empty = fields(browser=None, utmData=None, country="", referrer="Direct", duration=None, entryPage=None)
    assert empty.label("term") is empty.path("entryPage") is empty.country("country") is empty.flag("isBounce") is None
    assert empty.referrer("referrer") is empty.amount("duration") is empty.count("pagesViewed") is None
    assert empty.inside("browser").product("name") is empty.inside("utmData").label("source") is None
    assert empty.identifier("sessionId") is empty.moment_after("endTime", 0, now_ms=NOW_MS) is None
    assert empty.warnings == []


def test_a_warning_says_where_and_not_what() -> None:
    bad = fields(a=[USER_ID], b={"x": USER_ID}, c={"d": ["mira@quaymail.example"]}, e=f"3 of {USER_ID}", f=-1)
    assert bad.label("a") is bad.path("b") is bad.inside("c").label("d") is bad.count("e") is bad.amount("f") is None
    assert bad.warnings == [
        "a of type list left out",
        "b of type dict left out",
        "c.d of type list left out",
        "e '3 of …' left out",
        "f -1 left out",
    ]


def test_the_repr_of_fields_shows_neither_the_user_nor_the_key() -> None:
    shown = repr(fields(entryPage=f"/of/{USER_ID}"))
    assert "mira" not in shown
    assert "thirty-two" not in shown


def test_a_label_is_one_line_without_people() -> None:
    read = fields(a=" Spring\n sale\u200b ", b="for mira@quaymail.example", c=USER_ID, d="x" * 5_000, e="(not set)")
    assert read.label("a") == "Spring sale"
    assert read.label("b") == "for …"
    assert read.label("c") is None
    assert len(read.label("d") or "") <= MAX_LABEL_CHARS
    assert read.label("e") is None


def test_a_code_loses_its_tokens() -> None:
    read = fields(a="row-9f86d081884c7d659a2f", b="connect-wallet", c="550e8400-e29b-41d4-a716-446655440000")
    assert (read.code("a"), read.code("b"), read.code("c")) == ("row-…", "connect-wallet", None)


def test_a_whole_user_agent_is_no_browser() -> None:
    read = fields(browser={"name": "Mozilla/5.0 (X11; Linux x86_64)"}, device={"os": "macOS"})
    assert read.inside("browser").product("name") is None
    assert read.inside("device").product("os") == "macOS"
    assert read.warnings == ["browser.name looks like a whole user agent and is left out"]


@pytest.mark.parametrize(
    ("raw", "flag"),
    [(True, True), (False, False), ("true", True), ("No", False), (1, True), (0.0, False), ("", None), (None, None)],
)
def test_yes_and_no_come_in_several_spellings(raw: object, flag: bool | None) -> None:
    read = fields(a=raw)
    assert read.flag("a") is flag
    assert read.warnings == []


@pytest.mark.parametrize("raw", ["perhaps", 2, [True], {"a": 1}])
def test_what_is_neither_yes_nor_no_is_left_out(raw: object) -> None:
    read = fields(a=raw)
    assert read.flag("a") is None
    assert read.warnings == [f"a of type {type(raw).__name__} left out"]


@pytest.mark.parametrize(("raw", "country"), [("de", "DE"), ("\u2066DE\u2069", "DE"), ("XX", None), ("Unknown", None)])
def test_a_country_is_two_letters(raw: str, country: str | None) -> None:
    assert fields(a=raw).country("a") == country
    long = fields(a="United States")
    assert long.country("a") is None
    assert long.warnings == ["a is no code of two letters and is left out"]


def test_an_id_that_ties_records_together_stays_exact() -> None:
    read = fields(a="session_1718200000000_ab12cd34e", b=ObjectId("64c000000000000000000001"), c="x" * 300, d="null")
    assert read.identifier("a") == "session_1718200000000_ab12cd34e"
    assert read.identifier("b") == "64c000000000000000000001"
    assert read.identifier("c") is read.identifier("d") is None


def test_an_id_that_holds_a_person_is_another_one_but_still_one() -> None:
    first = fields(a=f"{USER_ID}-1", b=f"{USER_ID}-2", c="tomas@x.example-1", d="tomas@x.example-2")
    ids = [first.identifier(name) for name in "abcd"]
    assert len(set(ids)) == 4
    assert ids[0] == f"{first.visitor}-1"
    assert not re.search("mira|tomas", repr(ids))
    assert [fields(a=f"{USER_ID}-1").identifier("a")] == ids[:1]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "at_missing"),
        ("", "at_missing"),
        ("a moment ago", "at_unreadable"),
        ({"user": USER_ID}, "at_unreadable"),
        (True, "at_unreadable"),
        (EARLIEST_MS - 1, "at_too_early"),
        (NOW_MS + FUTURE_TOLERANCE_MS + 1, "at_in_future"),
    ],
)
def test_a_record_whose_time_cannot_be_is_refused(raw: object, code: str) -> None:
    with pytest.raises(RecordError) as refused:
        fields(at=raw).required_moment("at", "at", now_ms=NOW_MS)
    assert refused.value.code == code


def test_a_reason_names_nobody() -> None:
    with pytest.raises(RecordError) as refused:
        fields(at=f"when {USER_ID} came").required_moment("at", "at", now_ms=NOW_MS)
    assert refused.value.reason.startswith("at 'when … came' is not a date")
