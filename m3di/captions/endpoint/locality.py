"""Where pictures go: which hosts may be asked, with which key, and what to warn of before the first one leaves."""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from m3di.config import EndpointConfig
from stores.errors import RefusedError
from stores.records import VolumeRecord

_PROXIED: Final = re.compile(r"[-:]cloud\b", re.IGNORECASE)  # as Ollama names models that another company runs
_HEADS: Final = frozenset({"head", "brain", "face", "skull", "neck", "jaw", "mandible"})


@dataclass(frozen=True)
class Place:
    """A server, by its address.

    Attributes:
        host: Its name or number, in lower case.
        local: Whether the address is this machine's own; a local server may still pass on what it gets.
        encrypted: Whether it is spoken to over https.
    """

    host: str
    local: bool
    encrypted: bool


def place_of(url: str) -> Place:
    """Read an address.

    Raises:
        RefusedError: E_CONFIG, when it is no http or https address, or holds a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise RefusedError("E_CONFIG", f"captions.endpoint.url is no address: {error}", hint=_URL_HINT) from None
    if parts.scheme not in ("http", "https") or not host:
        raise RefusedError("E_CONFIG", f"captions.endpoint.url={url!r} is no http(s) address", hint=_URL_HINT)
    if parts.username or parts.password or parts.query or parts.fragment:
        message = f"captions.endpoint.url for {host} holds a name, password, query or fragment"
        raise RefusedError("E_CONFIG", message, hint="put the key into the environment variable of key_variable")
    return Place(host, _is_loopback(host), parts.scheme == "https")


_URL_HINT: Final = "for example --set captions.endpoint.url=http://127.0.0.1:8000/v1"


def check_place(endpoint: EndpointConfig) -> Place:
    """The server, when pictures may be sent there.

    Raises:
        RefusedError: E_NETWORK, naming a host that is not this machine and was not allowed by name, or that would be
            spoken to in the clear; E_CONFIG as `place_of`.
    """
    place = place_of(endpoint.url)
    if place.local:
        return place
    if endpoint.allow_host.lower() != place.host:
        message = f"{place.host} is not this machine: pictures of the scans would leave it"
        raise RefusedError("E_NETWORK", message, hint=f"if they may: --set captions.endpoint.allow_host={place.host}")
    if not place.encrypted and not endpoint.allow_plain_http:
        message = f"{place.host} would get pictures and key over plain http, which others can read"
        hint = "use https, or on a network of your own --set captions.endpoint.allow_plain_http=true"
        raise RefusedError("E_NETWORK", message, hint=hint)
    return place


def api_key(endpoint: EndpointConfig, place: Place) -> str:
    """The key from the environment; a server on this machine needs none.

    Raises:
        RefusedError: E_CONFIG, when a server elsewhere has none.
    """
    key = os.environ.get(endpoint.key_variable, "").strip()
    if key or place.local:
        return key or "none"
    message = f"no key for {place.host}: the environment variable {endpoint.key_variable} is not set"
    raise RefusedError("E_CONFIG", message, hint="set it, or name another by captions.endpoint.key_variable")


def warnings_of(endpoint: EndpointConfig, records: Iterable[VolumeRecord]) -> Iterator[tuple[str, str]]:
    """(code, message) of what a user should know before pictures are sent; names no volume."""
    place = place_of(endpoint.url)
    if not place.local:
        yield "W_PHI", f"pictures of the scans leave this machine for {place.host}"
    elif _PROXIED.search(endpoint.model):
        passed = f"the local server at {place.host} would pass the pictures on to another company"
        yield "W_PHI", f"{endpoint.model} is by its name run in a cloud: {passed}"
    heads = sum(bool(_HEADS & set(re.split(r"[^a-z]+", record.body_part.lower()))) for record in records)
    if heads:
        risk = f"{heads} volumes are of heads: slices of a whole head show a face, which can identify a person"
        yield "W_PHI", f"{risk}; deface them, or make sure that {place.host} keeps nothing and passes nothing on"


def _is_loopback(host: str) -> bool:
    """By the address itself: no look-up, so that no other machine decides."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
