"""Store URLs, and what kazoo's client is told.

::

    zookeeper://[user:password@]host[:port],host[:port],…[/chroot][?name=value&…]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from celery_distlock.errors import LockConfigError

__all__ = ["Address", "parse"]

_URL = re.compile(
    r"^zookeeper://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]*)(?P<chroot>/[^?#]*)?(?:\?(?P<query>[^#]*))?$"
)
_HOST = re.compile(r"^(?P<name>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+)(?::(?P<port>\d{1,5}))?$")
_PORT = 2181

#: What may be said in the URL, and how it is read.
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_IN_URL: dict[str, type] = {
    "timeout": float,
    "session_timeout": float,
    "shared": bool,
    "tls": bool,
    "ca": str,
    "certfile": str,
    "keyfile": str,
    "verify": bool,
    "check_hostname": bool,
    "sasl": str,
}
#: Ours → kazoo's.
_KAZOO: dict[str, str] = {"tls": "use_ssl", "verify": "verify_certs"}
#: What kazoo's client may be told through the options.
_PASSED_ON = {
    "auth_data",
    "ca",
    "certfile",
    "check_hostname",
    "default_acl",
    "keyfile",
    "keyfile_password",
    "randomize_hosts",
    "sasl_options",
    "use_ssl",
    "verify_certs",
}
_OWN = {"timeout", "session_timeout", "shared"}


@dataclass(frozen=True)
class Address:
    """Where an ensemble is, and how to talk to it.

    Attributes:
        hosts: as kazoo reads them.
        chroot: empty, or beginning with a slash.
        name: the URL without its password.
        timeout: seconds that one operation takes at most, connecting included.
        session_timeout: seconds; what the client asks for, of which the server makes what it allows.
        shared: whether keys are paths that other libraries lock, too.
        client: further arguments of kazoo's client.
    """

    hosts: str
    chroot: str
    name: str
    timeout: float
    session_timeout: float
    shared: bool
    client: Mapping[str, Any] = field(repr=False)


def parse(url: str, options: Mapping[str, Any]) -> Address:
    """Read a store URL; what it says has precedence over the options.

    Arguments:
        url: see above; ``tls``, ``ca``, ``certfile``, ``keyfile`` (by default in the same file), ``verify`` and
            ``check_hostname`` are for TLS; ``sasl`` names a mechanism for which user and password serve, which are for
            digest authentication otherwise.
        options: ``timeout``, ``session_timeout``, ``shared``, and arguments of ``KazooClient``.

    Raises:
        LockConfigError: the URL or an option cannot be used; the message says which.
    """
    match = _URL.match(url)
    if match is None:
        # The URL itself stays out of the message: it may contain a password.
        raise LockConfigError("distlock_url: not of the form zookeeper://host:port,host:port/chroot")
    hosts = ",".join(map(_host, match["hosts"].split(",")))
    chroot = _chroot(unquote(match["chroot"] or ""))
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    unknown = sorted(set(query) - set(_IN_URL))
    if unknown:
        raise LockConfigError(f"distlock_url: {unknown} unknown to zookeeper://; allowed: {sorted(_IN_URL)}")
    unknown = sorted(set(options) - _PASSED_ON - _OWN)
    if unknown:
        allowed = sorted(_PASSED_ON | _OWN)
        raise LockConfigError(f"distlock_store_options: {unknown} unknown to zookeeper://; allowed: {allowed}")
    said: dict[str, Any] = dict(options)
    for option, text in query.items():
        said[_KAZOO.get(option) or option] = _read(option, text)
    login = match["login"]
    sasl = said.pop("sasl", None)
    if login is not None or sasl is not None:
        _log_in(said, login, sasl)
    # Kazoo uses neither of them without the other, and does not say so.
    if said.get("certfile"):
        said.setdefault("keyfile", said["certfile"])
    elif said.get("keyfile"):
        raise LockConfigError("distlock_url or distlock_store_options: keyfile: needs a certfile, too")
    seconds = {name: _seconds(name, said.pop(name, default)) for name, default in _DEFAULTS.items()}
    shared = said.pop("shared", False)
    if not isinstance(shared, bool):
        raise LockConfigError(f"distlock_store_options: shared={shared!r}: must be True or False")
    name = f"zookeeper://{hosts}{chroot}" + (f"?{urlencode(query)}" if query else "")
    return Address(hosts, chroot, name, seconds["timeout"], seconds["session_timeout"], shared, said)


_DEFAULTS = {"timeout": 3.0, "session_timeout": 10.0}


def _host(text: str) -> str:
    match = _HOST.match(text.strip())
    if match is None or not 0 < int(match["port"] or _PORT) < 65536:
        raise LockConfigError(f"distlock_url: {text!r} is no host, nor host:port")
    return f"{match['name']}:{match['port'] or _PORT}"


def _chroot(path: str) -> str:
    segments = [segment for segment in path.split("/") if segment]
    if {".", ".."} & set(segments) or "\0" in path:
        raise LockConfigError(f"distlock_url: {path!r} is no path in ZooKeeper")
    return "".join(f"/{segment}" for segment in segments)


def _read(name: str, text: str) -> Any:
    kind = _IN_URL[name]
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise LockConfigError(f"distlock_url: {name}={text!r}: must be true or false")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError:
        raise LockConfigError(f"distlock_url: {name}={text!r}: must be a number of seconds") from None


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise LockConfigError(f"distlock_url or distlock_store_options: {name}={value!r}: must be a number above 0")
    return float(value)


def _log_in(said: dict[str, Any], login: str | None, sasl: str | None) -> None:
    user, colon, password = (login or "").partition(":")
    if not user or not colon:
        raise LockConfigError("distlock_url: authentication needs user:password@ before the hosts")
    user, password = unquote(user), unquote(password)
    if sasl is not None:
        if "sasl_options" in said:
            raise LockConfigError("distlock_url: sasl, and distlock_store_options: sasl_options: give one of them")
        said["sasl_options"] = {"mechanism": sasl, "username": user, "password": password}
    else:
        said["auth_data"] = [*said.get("auth_data", ()), ("digest", f"{user}:{password}")]
    if "default_acl" not in said:
        from kazoo.security import CREATOR_ALL_ACL

        # Who logs in does not want strangers to delete the locks.
        said["default_acl"] = CREATOR_ALL_ACL
