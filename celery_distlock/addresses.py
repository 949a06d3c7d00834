"""Where Celery's own Redis is, for an app that does not say where its locks shall live.

Celery and redis-py spell the same address differently in a few places, and Celery completes some addresses from other
settings. What can be translated is; an address that would silently name another server is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery_distlock.errors import LockConfigError

__all__ = ["redis_of"]

_REDIS = ("redis", "rediss", "redis+socket")


class _Source(NamedTuple):
    """One of Celery's own addresses that may serve as the store's."""

    name: str
    urls: tuple[str, ...]
    use_ssl: str
    #: Part of the address → the setting from which Celery takes it when the address lacks it.
    completes: Mapping[str, str]


_SOURCES = (
    _Source(
        "result backend",
        ("result_backend",),
        "redis_backend_use_ssl",
        {"hostname": "redis_host", "port": "redis_port", "username": "redis_username", "password": "redis_password"},
    ),
    _Source(
        "broker",
        # Where reading and writing are apart, a lock belongs to the server that takes writes.
        ("broker_write_url", "broker_url"),
        "broker_use_ssl",
        {"port": "broker_port", "username": "broker_user", "password": "broker_password"},
    ),
)


def redis_of(read: Callable[..., Any], *, where: str, setting: str) -> tuple[str, dict[str, Any]]:
    """Return the address of Celery's own Redis, for redis-py, and the TLS options that are configured beside it.

    Of a list of brokers the first counts: locks live in one place, and do not fail over with the messages.

    Arguments:
        read: returns the first of the named Celery settings that has a value.
        where, setting: what an error calls the configuration, and the setting that would make it unnecessary to ask.

    Raises:
        LockConfigError: neither the result backend nor the broker is a Redis, or its address is not all there.
    """
    seen = []
    for source in _SOURCES:
        urls = read(*source.urls)
        urls = urls.split(";") if isinstance(urls, str) else urls
        first = str(urls[0]) if isinstance(urls, (list, tuple)) and urls else ""
        scheme, found, _ = first.partition("://")
        if scheme.lower() in _REDIS:
            try:
                return _for_redis_py(first, source, read)
            except ValueError as error:
                raise LockConfigError(
                    f"{where}: the {source.name} cannot serve as the store of locks: {error}; "
                    f"set {setting} to the whole address of their Redis"
                ) from None
        kind = f"{scheme}://" if found else "not a URL" if first else "not set"
        seen.append(f"{source.name}: {kind}{', no store yet' if scheme.startswith('sentinel') else ''}")
    raise LockConfigError(
        f"{where}: {setting} is not set, and neither of Celery's own addresses is a Redis ({'; '.join(seen)}); "
        f"set {setting}, for example to 'redis://localhost:6379/0'"
    )


def _for_redis_py(url: str, source: _Source, read: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    socket = parts.scheme == "redis+socket"
    for part, setting in source.completes.items():
        # The address alone would name another server, or nobody who may log in.
        if not (socket and part in ("hostname", "port")) and getattr(parts, part) is None and read(setting):
            raise ValueError(f"its address is completed by {setting}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "virtual_host" in query:
        query["db"] = query.pop("virtual_host").strip("/")
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = _cert_reqs(query["ssl_cert_reqs"])
    scheme, tls = parts.scheme, {}
    use_ssl = None if socket else read(source.use_ssl)
    if use_ssl:
        scheme = "rediss"
        tls = dict(use_ssl) if isinstance(use_ssl, Mapping) else {}
        if "ssl_cert_reqs" in tls:
            tls["ssl_cert_reqs"] = _cert_reqs(tls["ssl_cert_reqs"])
    # Not urlunsplit: it writes "redis+socket:/path".
    address = url.partition("://")[2].partition("?")[0]
    return f"{scheme}://{address}" + (f"?{urlencode(query)}" if query else ""), tls


def _cert_reqs(value: Any) -> Any:
    """Return ``"required"`` for Celery's ``"CERT_REQUIRED"``; redis-py knows only the former."""
    return value.removeprefix("CERT_").lower() if isinstance(value, str) else value
