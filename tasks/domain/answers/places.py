"""Places: what countries are called (ISO 3166-1), and by whose clocks a city or a country lives (IANA)."""

from __future__ import annotations

import re
from functools import lru_cache
from zoneinfo import available_timezones

_COUNTRIES = """
AE united arab emirates|AE emirates|AR argentina|AT austria|AU australia|BD bangladesh|BE belgium|BG bulgaria|BR brazil
BY belarus|CA canada|CH switzerland|CL chile|CN china|CO colombia|CY cyprus|CZ czech republic|CZ czechia|DE germany
DK denmark|EE estonia|EG egypt|ES spain|FI finland|FR france|GB united kingdom|GB great britain|GB britain|GB england
GE georgia|GH ghana|GR greece|HK hong kong|HR croatia|HU hungary|ID indonesia|IE ireland|IL israel|IN india|IR iran
IS iceland|IT italy|JP japan|KE kenya|KR south korea|KR korea|KZ kazakhstan|LK sri lanka|LT lithuania|LU luxembourg
LV latvia|MA morocco|MT malta|MX mexico|MY malaysia|NG nigeria|NL netherlands|NL holland|NO norway|NP nepal
NZ new zealand|PE peru|PH philippines|PK pakistan|PL poland|PT portugal|QA qatar|RO romania|RS serbia|RU russia
SA saudi arabia|SE sweden|SG singapore|SI slovenia|SK slovakia|TH thailand|TR turkey|TR türkiye|TW taiwan|UA ukraine
US united states|US usa|US america|UY uruguay|VE venezuela|VN vietnam|VN viet nam|ZA south africa
"""
_CODES = {name: code for part in re.split(r"[|\n]", _COUNTRIES.strip()) for code, _, name in [part.partition(" ")]}
_COUNTRY = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _CODES), key=len, reverse=True)) + r")\b", re.IGNORECASE)
_SHORT = {"US": "US", "U.S.": "US", "USA": "US", "UK": "GB", "UAE": "AE"}
_ABBREVIATED = re.compile(r"\b(?:USA|US|UK|UAE)\b|\bU\.S\.")
#: Countries that live by one clock, of those above; others have several, and a city must be named.
_ZONES = {
    "AE": "Asia/Dubai",
    "AT": "Europe/Vienna",
    "BD": "Asia/Dhaka",
    "BE": "Europe/Brussels",
    "BG": "Europe/Sofia",
    "CH": "Europe/Zurich",
    "CN": "Asia/Shanghai",
    "CZ": "Europe/Prague",
    "DE": "Europe/Berlin",
    "DK": "Europe/Copenhagen",
    "EE": "Europe/Tallinn",
    "EG": "Africa/Cairo",
    "FI": "Europe/Helsinki",
    "FR": "Europe/Paris",
    "GB": "Europe/London",
    "GH": "Africa/Accra",
    "GR": "Europe/Athens",
    "HK": "Asia/Hong_Kong",
    "HR": "Europe/Zagreb",
    "HU": "Europe/Budapest",
    "IE": "Europe/Dublin",
    "IL": "Asia/Jerusalem",
    "IN": "Asia/Kolkata",
    "IS": "Atlantic/Reykjavik",
    "IT": "Europe/Rome",
    "JP": "Asia/Tokyo",
    "KE": "Africa/Nairobi",
    "KR": "Asia/Seoul",
    "LK": "Asia/Colombo",
    "LT": "Europe/Vilnius",
    "LU": "Europe/Luxembourg",
    "LV": "Europe/Riga",
    "MT": "Europe/Malta",
    "NG": "Africa/Lagos",
    "NL": "Europe/Amsterdam",
    "NO": "Europe/Oslo",
    "NP": "Asia/Kathmandu",
    "PE": "America/Lima",
    "PH": "Asia/Manila",
    "PK": "Asia/Karachi",
    "PL": "Europe/Warsaw",
    "QA": "Asia/Qatar",
    "RO": "Europe/Bucharest",
    "RS": "Europe/Belgrade",
    "SA": "Asia/Riyadh",
    "SE": "Europe/Stockholm",
    "SG": "Asia/Singapore",
    "SI": "Europe/Ljubljana",
    "SK": "Europe/Bratislava",
    "TH": "Asia/Bangkok",
    "TR": "Europe/Istanbul",
    "TW": "Asia/Taipei",
    "UA": "Europe/Kyiv",
    "VN": "Asia/Ho_Chi_Minh",
    "ZA": "Africa/Johannesburg",
}


def find_country(text: str) -> tuple[str, tuple[int, int]] | None:
    """Return the code of the first country that a text names, and where."""
    return next(iter(find_countries(text)), None)


def find_countries(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Return the codes of the countries that a text names, and where."""
    found = [(_CODES[match.group(1).lower()], match.span()) for match in _COUNTRY.finditer(text)]
    found += [(_SHORT[match.group()], match.span()) for match in _ABBREVIATED.finditer(text)]
    return sorted(found, key=lambda one: one[1])


def find_zone(text: str) -> tuple[str, tuple[int, int]] | None:
    """Return the time zone that a text names, by ``UTC``, a zone's own name, a city or a country of one zone."""
    match = re.search(r"\b(?:utc|gmt)\b", text, re.IGNORECASE)
    if match is not None:
        return "UTC", match.span()
    for match in re.finditer(r"[A-Za-z]+(?:[/_ ][A-Za-z]+){0,3}", text):
        words = re.split(r"(?<=[a-z]) (?=[A-Z])| ", match.group())
        for size in (3, 2, 1):
            for first in range(len(words) - size + 1):
                said = " ".join(words[first : first + size])
                zone = _cities().get(said.replace("_", " ").lower())
                if zone is not None and said[0].isupper():
                    at = text.index(said, match.start())
                    return zone, (at, at + len(said))
    country = find_country(text)
    if country is not None and country[0] in _ZONES:
        return _ZONES[country[0]], country[1]
    return None


@lru_cache(maxsize=1)
def _cities() -> dict[str, str]:
    zones = sorted(
        zone
        for zone in available_timezones()
        if "/" in zone and not zone.startswith(("Etc", "US/", "Canada/", "SystemV"))
    )
    return {zone.rpartition("/")[2].replace("_", " ").lower(): zone for zone in zones} | {
        zone.lower(): zone for zone in zones
    }
