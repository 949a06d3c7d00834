"""Store URLs, as redis-py and as Celery write them, and what redis-py's connections are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.exceptions import RedisError

from celery_distlock.errors import LockConfigError

__all__ = ["client_of", "connection_maker", "name_of", "split_timeout"]

_SCHEMES = ("redis", "rediss", "redis+socket")


def split_timeout(url: str) -> tuple[str, str | None]:
    """Take our own ``timeout=`` out of a URL's query; return the rest and its value."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    timeout = next((value for name, value in query if name == "timeout"), None)
    rest = urlencode([(name, value) for name, value in query if name != "timeout"])
    return urlunsplit(parts._replace(query=rest)), timeout


def client_of(url: str, options: Mapping[str, Any]) -> redis.Redis:
    """Return an unconnected client for a store URL.

    Arguments:
        url: ``redis://``, ``rediss://`` or ``redis+socket://``, with the query options of redis-py, and
            ``virtual_host`` and ``ssl_cert_reqs=CERT_…`` as in Celery.
        options: for ``redis.Redis.from_url``; what the URL says has precedence.

    Raises:
        LockConfigError: redis-py does not understand it.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise LockConfigError(f"distlock_url: the scheme {parts.scheme!r} is none of {', '.join(_SCHEMES)}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "ssl_cert_reqs" in query:
            query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
        if parts.scheme == "redis+socket":
            parts = parts._replace(scheme="unix")
            if "virtual_host" in query:
                query["db"] = query.pop("virtual_host").strip("/") or "0"
        # RESP 2 has all we need, and one handshake less.
        extra = dict(options) if "protocol" in query else {"protocol": 2, **options}
        # urlunsplit would drop the two slashes of a URL without a host.
        plain = f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")
        # decode_responses and the like are ignored: replies are read as bytes.
        return redis.Redis.from_url(plain, **extra)
    except LockConfigError:
        raise
    except (ValueError, TypeError, RedisError) as exc:
        raise LockConfigError(f"distlock_url or distlock_store_options: {exc}") from exc


def connection_maker(client: Any) -> Callable[[], Any]:
    """Return what makes unconnected connections like those of a client. Its own pool stays untouched.

    Raises:
        LockConfigError: it is not a synchronous redis-py client, or its options make no connection.
    """
    if not isinstance(client, redis.Redis):
        raise LockConfigError(f"distlock_store_options: client is {type(client).__qualname__}, not redis.Redis")
    # Kept alive by the closure: a Sentinel connection refers to its pool weakly.
    pool = client.connection_pool

    def make() -> Any:
        return pool.connection_class(**pool.connection_kwargs)

    try:
        make()
    except (ValueError, TypeError, RedisError) as exc:
        raise LockConfigError(f"distlock_store_options: {exc}") from exc
    return make


def name_of(client: redis.Redis) -> str:
    """Return the address of a client's server, without its password."""
    pool: Any = client.connection_pool
    known = pool.connection_kwargs
    db = known.get("db") or 0
    if "path" in known:
        return f"redis+socket://{known['path']}?virtual_host={db}"
    if hasattr(pool, "service_name"):
        return f"sentinel://{pool.service_name}/{db}"
    scheme = "rediss" if issubclass(pool.connection_class, redis.SSLConnection) else "redis"
    host = known.get("host", "localhost")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{known.get('port', 6379)}/{db}"
