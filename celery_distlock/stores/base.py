"""What a store of locks must be able to do.

A store answers; it never waits, retries on contention or renews by itself: policy lives in the core, so that it
is the same for all stores. Each method is one round trip, may be called from any thread or greenlet of
any process (connections are made lazily, per process), and raises
:class:`~celery_distlock.errors.StoreUnavailable`, within a bounded time, when there is no answer.

``celery_distlock.testing.contract`` is the executable form of this page; run it on a store of your own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Renewal

__all__ = ["LockStore"]


class LockStore(ABC):
    """Where locks live.

    Minimum guarantees (a store's documentation says under which assumptions):

    * at most ``limit`` leases of a key are believed at any time;
    * the fences of one key grow from grant to grant (limit 1);
    * a holder that falls silent is believed for its ttl, and its key is free at most 1 s later;
    * after :meth:`release` nothing of the lease is left, and nothing of the key once nobody uses it.
    """

    #: The address, without its password: for log lines and errors.
    name: str
    #: The name space within it: the same key under another prefix is another lock.
    prefix: str = ""

    @abstractmethod
    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        """Try once to get the key; never wait for its holder.

        Asking again with the owner of a live lease returns that lease with the same fence and a new deadline.
        An owner whose unknown lease was released (fence 0) is answered :class:`Contended`.

        Raises:
            StoreUnavailable: there was no answer; the claim may or may not have been granted.
        """

    @abstractmethod
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        """Start the time of these leases anew, each with its own ttl, all in one round trip.

        The caller computes the new deadlines from the time before the call
        (:func:`~celery_distlock.lease.deadline_of`). A lease that was released is never re-created.

        Raises:
            StoreUnavailable: there was no answer; any of them may have been renewed.
        """

    @abstractmethod
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        """Give these leases back, all in one round trip; False for one that was not ours (any more).

        Arguments:
            leases: what to give back. One with fence 0 (:meth:`Lease.unknown`) also bars its owner from being
                granted the key later, for an acquire that may still be under way.
            completions: empty, or one per lease: the record to leave with it, atomically, or None.

        Raises:
            StoreUnavailable: there was no answer; any of them may have been released.
        """

    @abstractmethod
    def forget(self, completions: Sequence[Completion]) -> None:
        """Erase completion records, in one round trip.

        Raises:
            StoreUnavailable: there was no answer; they vanish with their ttl.
        """

    @abstractmethod
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        """Return who holds ``key``, or every holder of a key that starts with ``prefix``; oldest first per key.

        For people and tools; holders that have expired and were not replaced are included, with ``remaining`` < 0.

        Raises:
            StoreUnavailable: there was no answer.
        """

    @abstractmethod
    def close(self) -> None:
        """Close this process's connections. The store may be used again and then makes new ones."""
