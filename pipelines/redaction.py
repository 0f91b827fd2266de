"""Keep secrets out of what is stored or shown: hide them in messages, and refuse them in URIs and configs."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_WEB = ("http", "https")
# Stores whose keys may hold a question mark; an address of anything else ends where its query begins.
_STORES = ("s3", "s3a", "gs", "gcs", "hf", "file", "local", "memory")
_HIDDEN = "(hidden)"
# All patterns run in linear time: a server chooses the text, and backtracking would let it stall the run.
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{0,30})://([^\s\"<>]*)", re.IGNORECASE)
_CLOSING = "'\"`)]},.;:"
_PARAMETER = re.compile(r"(?<=[?&])([^\s=?&'\"<>]+)=[^\s&'\"<>]*")
_HEADER = re.compile(r"((?:authorization|cookie)['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
# Names are compared in lower case and without separators, so that api-key, API_KEY and apiKey are one.
_SECRET_WORDS = ("secret", "token", "passw", "passphrase", "credential", "apikey", "accesskey")
_SECRET_OPTION_WORDS = (*_SECRET_WORDS, "authorization", "connectionstring", "cookie", "signature")
# Too short to be looked for inside other names: these must be the whole name.
_SECRET_OPTIONS = ("username", "user", "login", "auth", "pwd", "pass", "sas", "sig", "bearer", "jwt")
_SECRET_PARAMETERS = ("sig", "sas", "auth", "pwd", "jwt")
# botocore's signature_version names an algorithm.
_HARMLESS_OPTIONS = ("signatureversion",)
_SECRET_VALUE = re.compile(
    r"^\s*(bearer|basic)\s+\S+|\b(account|sharedaccess)key\s*=|\bsharedaccesssignature\s*=|\b(password|pwd)\s*=|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bA[KS]IA[0-9A-Z]{16}\b",
    re.IGNORECASE,
)


# A longer text is hardly a message, and matching the patterns over megabytes takes seconds.
_MAX_END_CHARS = 2**15
# Room for the note on how much was cut, so that cutting never makes a text longer.
_MAX_MARK_CHARS = 64
_MAX_QUOTED = 200
_MAX_NAMES = 50
_QUOTING = reprlib.Repr()
_QUOTING.maxlevel, _QUOTING.maxstring, _QUOTING.maxother = 3, 60, 60


def redacted(text: str) -> str:
    """Return a text without secrets: URLs keep scheme, host and path only, and credentials in headers are hidden.

    For everything that is stored or shown: a client's error names the URL that it was redirected to, and with the
    signature in that URL anyone who reads the error could read the object.

    Of a text of more than about 64,000 characters only the beginning and end are kept: where it was raised, and what.
    """
    text = _ADDRESS.sub(_bare, _shortened(text))
    text = _PARAMETER.sub(lambda found: f"{found[1]}={_HIDDEN}" if _is_parameter(found[1]) else found[0], text)
    text = _HEADER.sub(rf"\1{_HIDDEN}", text)
    return _BEARER.sub(rf"\1{_HIDDEN}", text)


def _shortened(text: str) -> str:
    """Cut the middle out of a long text, at a word and a line boundary: half a secret would not be recognized."""
    if len(text) <= 2 * _MAX_END_CHARS + _MAX_MARK_CHARS:
        return text
    start, end = text[:_MAX_END_CHARS], text[-_MAX_END_CHARS:].partition("\n")[2]
    start = (re.match(r".*\s", start, re.DOTALL) or [start])[0].rstrip()
    return f"{start}\n... {len(text) - len(start) - len(end):,} characters left out ...\n{end}"


def quoted(value: object) -> str:
    """Return the repr of an input value for use in a message, shortened if it is long."""
    if isinstance(value, str | bytes):
        more = "" if len(value) <= _MAX_QUOTED else f"... ({len(value):,} in all)"
        return f"{value[:_MAX_QUOTED]!r}{more}"
    text = _QUOTING.repr(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


def shown(uri: str) -> str:
    """Return a URI or path for use in a message: of a long one its two ends, which say where it is and what it is."""
    if len(uri) <= _MAX_QUOTED:
        return uri
    mark = f"...({len(uri):,} characters)..."
    half = (_MAX_QUOTED - len(mark)) // 2
    return f"{uri[:half]}{mark}{uri[-half:]}"


def quoted_names(names: Iterable[str]) -> str:
    """Join names for use in a message: at most the first 50, each as ``named`` has it."""
    every = list(names)
    more = len(every) - _MAX_NAMES
    return ", ".join(map(named, every[:_MAX_NAMES])) + (f" and {more:,} more" if more > 0 else "")


def named(name: str) -> str:
    """Return a name for a list: one that holds a comma or quote in double quotes, as --categories reads it."""
    text = shown(name)
    return '"' + text.replace('"', '""') + '"' if "," in name or '"' in name else text


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, as in ``1 image`` or ``2,000 images``; ``plural`` if it is not noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _bare(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    if scheme.lower() not in _STORES:
        # The query goes, but not the quotes and brackets that close the sentence around the address.
        address = re.split(r"[?#]", rest, maxsplit=1)[0]
        rest = address if address == rest else address + rest[len(rest.rstrip(_CLOSING)) :]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def secret_in(uri: str) -> str | None:
    """Return a description of the secret that a URI contains; None if none is recognized."""
    if "://" not in uri:
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if "@" in parts.netloc:
        return "a user name or password"
    # Keys of an object store may contain a question mark: there it does not begin a query.
    if parts.scheme not in _WEB:
        return None
    names = (name for part in (parts.query, parts.fragment) for name, _ in parse_qsl(part, keep_blank_values=True))
    return "a signature or token" if any(map(_is_parameter, names)) else None


def shown_name(name: str) -> str:
    """Return an image's name for display: unchanged, or redacted if it is a URL with a secret."""
    return name if secret_in(name) is None else redacted(name)


def check_storage_options(options: Mapping[str, Any]) -> None:
    """Refuse credentials in storage options, which end up in plans, logs and flow-run parameters.

    Raises:
        ValueError: an option holds a credential; the message names the option, never its value, and the environment
            variables to use instead.
    """
    given = list(_all_options(options))
    if found := sorted({name for name, value in given if _is_option(name) and value not in (None, "", False)}):
        raise ValueError(
            f"storage_options must not hold credentials (found {', '.join(found)}). Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, an AWS profile or an instance role instead (Google: default credentials)."
        )
    for name, value in given:
        if not isinstance(value, str):
            continue
        secret = secret_in(value) or ("what looks like a credential" if _SECRET_VALUE.search(value) else None)
        if secret:
            raise ValueError(f"storage_options.{name} carries {secret}, which would end up in plans and logs")


def is_secret_header(name: str, value: str) -> bool:
    """Return whether a header of a request is one for credentials by its name, or holds what looks like one."""
    return _is_option(name) or _SECRET_VALUE.search(value) is not None or secret_in(value) is not None


def _all_options(options: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield options at every depth: client_kwargs takes credentials too, and headers may be a list of pairs."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield str(key), value
            yield from _all_options(value, str(key))
    elif isinstance(options, list | tuple):
        if len(options) == 2 and all(isinstance(part, str) for part in options):
            yield options[0], options[1]
        for value in options:
            yield name, value
            yield from _all_options(value, name)


def _is_parameter(name: str) -> bool:
    plain = _plain(name)
    return plain in _SECRET_PARAMETERS or any(word in plain for word in (*_SECRET_WORDS, "signature"))


def _is_option(name: str) -> bool:
    plain = _plain(name)
    if plain in _HARMLESS_OPTIONS:
        return False
    is_secret = plain in _SECRET_OPTIONS or any(word in plain for word in _SECRET_OPTION_WORDS)
    return is_secret or plain.endswith(("key", "auth"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
