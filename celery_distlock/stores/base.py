"""What a store of locks must be able to do.

A store answers; it never waits, retries on contention or renews by itself: policy lives in the core, so that it
is the same for all stores. Each method is one round trip, may be called from any thread or greenlet of
any process (connections are made lazily, per process), and raises
:class:`~celery_distlock.errors.StoreUnavailable`, within a bounded time, when there is no answer.

``celery_distlock.testing.contract`` is the executable form of this page; run it on a store of your own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Offer, Renewal, Ticket
from celery_distlock.tokens import Begun, Duplicate, Reserved, Superseded, Token

__all__ = ["EventLoop", "Listener", "LockStore", "PassingOn", "Queueing", "Uniqueness"]


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
    #: Whether :meth:`release` looks at ``Lease.rest``; where it does not, tasks cannot have a ``lock_min_hold``.
    rests: bool = False

    def lease_ttl(self, asked: float) -> float:
        """Return how long a lease will be believed whose claim asks for so many seconds, as far as is known now.

        It is what was asked for, unless the store's leases live as long as a session of its client. What counts in the
        end is the lease's own ``ttl``.
        """
        return asked

    def freed_after(self, asked: float) -> float:
        """Return how many seconds after its last sign of life a silent holder's key is free at the latest.

        Arguments:
            asked: the ttl of its claim.
        """
        return asked + 1.0

    def when_in_doubt(self, callback: Callable[[], None]) -> None:  # noqa: B027  # most stores have nothing to tell
        """Have ``callback`` called whenever leases that this process renews may just have been lost.

        It is a good moment to renew them: the store has learned something other than by a renewal. Stores that cannot
        never call it.

        Arguments:
            callback: called in any thread; returns at once. A forked child's store does not call its parent's.
        """

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
                granted the key later, for an acquire that may still be under way. One with a ``rest`` keeps its place
                taken for so many seconds, if the store :attr:`rests`: nobody can renew or release it, and after that
                it is gone without a trace.
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


class EventLoop(Protocol):
    """Where a program waits for its sockets. Every method may be called in any thread."""

    def call(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the loop's thread, soon."""

    def add_reader(self, fd: int, callback: Callable[[], bool]) -> None:
        """Have ``callback`` called in the loop's thread, now and when ``fd`` is readable, until it returns False."""

    def remove_reader(self, fd: int, then: Callable[[], None]) -> None:
        """Call ``callback`` no more; and ``then``, in any thread, once ``fd`` may be closed."""


class Listener(ABC):
    """Hears, in a thread of its own, of the offers made to the waiters that were entered with its name.

    It reconnects for ever, and never raises. A forked child's copy is closed.
    """

    #: What goes with each claim, as :meth:`Queueing.enqueue`'s ``listener``: ASCII letters, digits and ``-``.
    name: str

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it will never hear anything again."""

    @abstractmethod
    def close(self) -> None:
        """Hear nothing more; give back the connection and the thread."""


class Queueing(ABC):
    """A store's power to hand a key on in order: first in, first out.

    A claim and the line::

           enqueue                      its turn                 confirm
        ───────────▶ waiting (Ticket) ───────────▶ offered ─────────────────────▶ lease
           │             │   ▲                     (Offer)
           │             │   │ enqueue or poll,      │   ▲
           │    silent   │   │ with its number       │   │ acquire and enqueue confirm too
           │    for      │   │                       │
           │  claim_ttl, ▼   │     declined, or      │
           │  withdraw  gone ◀── silent for claim_ttl ┘
           └─ free, and nobody waits before it ────────────────────────────────▶ lease

    Every operation of the store that may free a place, an ordinary release first of all, offers it in the same step
    to the first live waiter: the place is kept for it, and its listener is given a hint. Hints may be lost. A waiter
    must poll within :attr:`claim_ttl` to keep its place, and the answer then tells it of the offer too; so a hint
    saves time, and nothing depends on it.

    Minimum guarantees:

    * :meth:`LockStore.acquire` and :meth:`enqueue` never grant a place while a live waiter stands before the claim;
    * each claim's own ``limit`` decides for it, and who stands behind a claim with a small one waits, too;
    * a live waiter of a free key is offered it within 3 s, whatever dies;
    * a place in the line costs nothing when nobody waits.

    Who is refused by :meth:`LockStore.acquire` may be given the number of a place at the end of the line
    (:attr:`Claim.draws`, :attr:`Contended.number`), for those who would stand far behind: nobody takes it until it is
    enqueued with, and until then it is in nobody's way. A store whose places are taken at once, or not at all, gives
    none.
    """

    #: Seconds for which a waiter that is not heard of keeps its place, and for which an offered place is kept for it.
    claim_ttl: float = 2.0

    @abstractmethod
    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        """Get the key at once if nobody waits before this claim and there is a place, else join the line.

        Asking again with the same owner keeps the place; asking while it is offered the place confirms it.

        Arguments:
            claim: what is wanted.
            listener: the name of who is to be told of an offer (:meth:`listen`); empty: nobody.
            ticket: the number of a :class:`Ticket` that this owner, or an earlier delivery of the same task, had: it
                stands where it stood.

        Returns:
            the lease; a place in the line; :class:`Contended` for an owner that cannot be granted the key any more
            (its unknown lease was released, or it lost its place); or :class:`Completed`.

        Raises:
            StoreUnavailable: there was no answer. The claim may be in the line, or granted: ask again, or release
                :meth:`Lease.unknown`, which takes it out of the line as well.
        """

    @abstractmethod
    def poll(self, places: Sequence[Ticket | Offer], *, listener: str = "") -> list[Ticket | Offer | None]:
        """Keep these places for another :attr:`claim_ttl`, and tell what became of them, all in one round trip.

        One that is not in the line, since it was taken for gone or has another owner by now, is entered with its number
        (which may take a second round trip). An offer's time is not extended.

        Arguments:
            places: what :meth:`enqueue` or the last poll returned.
            listener: who is to be told of offers from now on, for those that are entered again.

        Returns:
            one for each: a place in the line, an offer to be confirmed, or None for an owner that cannot be granted
            the key any more.

        Raises:
            StoreUnavailable: there was no answer.
        """

    @abstractmethod
    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        """Turn offers into leases with the claims' own ttl, limit and record, all in one round trip.

        A lease that is held already (the answer to the first confirmation was lost) is returned with its fence and a
        new deadline.

        Returns:
            one for each: the lease; None if there is no offer (any more), which changes nothing; :class:`Completed`
            if the claim asks for a completion record and there is one, which gives the place back.

        Raises:
            StoreUnavailable: there was no answer; any of them may be leases now.
        """

    def confirming(self, claim: Claim) -> Callable[[], Lease | None] | None:
        """Send the confirmation of an offer, and do not wait for the answer.

        For who has something better to do meanwhile, and can do without: the owner confirms it himself if he must. The
        store may hear of it late, when he has done so, and has released the lease: then it grants nothing.

        Returns:
            what is to be called once, soon, and returns the lease, or None if there is no answer by then, or another
            one; None instead of it if the store cannot do this, or not now.
        """
        return None

    @abstractmethod
    def withdraw(self, claims: Sequence[Claim]) -> None:
        """Leave the line, and give offered places to the next one, all in one round trip.

        A lease is not touched. The owner may :meth:`enqueue` again, with its number in its old place.

        Raises:
            StoreUnavailable: there was no answer; they vanish within :attr:`claim_ttl`.
        """

    @abstractmethod
    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        """Start to listen, lazily and for ever.

        Arguments:
            on_offer: called with key and owner when an offer was made. It must return at once, may be called more than
                once for one offer, and in any thread.
            on_gap: called when hints may have been lost, and when they can be heard at first: a good moment to poll.
            loop: an event loop of which the thread is seldom busy, for a store that may as well hear there: what
                follows an offer in that thread need not wait until it is woken by another.
        """


class Uniqueness(ABC):
    """A store's power to keep a message from being published twice; see :mod:`celery_distlock.tokens`.

    A running task that is unique holds an ordinary lease, on :func:`~celery_distlock.tokens.running_key`, which is
    renewed and released as any other. Nothing is left behind after the ttls and windows of the tokens.
    """

    @abstractmethod
    def reserve(self, token: Token) -> Reserved | Duplicate | Superseded:
        """Enter a message as the one of its key, unless there is another one.

        Asking again with the same id enters it again, its time started anew, whoever runs. One that is queued, or
        was accepted within its window, makes the answer :class:`Duplicate`; one that runs (has a lease on the
        running key whose record has an ``id``) does if ``token.running``.

        With ``token.replaces`` the message has been published already, and may have started (:meth:`begin`): the one
        that is queued is superseded, for as long as either of them may be queued, unless it was entered after this one
        had started. If this one cannot take the place, since another one runs, it is superseded itself.

        Raises:
            StoreUnavailable: there was no answer; it may be entered.
        """

    @abstractmethod
    def begin(self, token: Token, claim: Claim | None) -> Begun | Superseded:
        """Start a message: its place is free again, and its owner has the lease on the running key, in one step.

        Asking again is answered the same. An id that has no place starts, too; with ``token.replaces`` the store
        remembers for a minute that it has.

        Arguments:
            token: what was reserved; its key and id count, and ``replaces``.
            claim: for the lease, with its owner, ttl and record; None: no lease. While another owner is believed none
                is granted.

        Raises:
            StoreUnavailable: there was no answer; it may have begun.
        """

    @abstractmethod
    def cancel(self, token: Token, *, window: bool) -> None:
        """Free the place of a message that will not start, if it still is its own; with ``window`` that, too.

        Raises:
            StoreUnavailable: there was no answer; the place is free after its ttl.
        """


class PassingOn(ABC):
    """A store's power to pass a lease from one owner to another, so that nobody else comes in between."""

    @abstractmethod
    def pass_on(
        self, lease: Lease, claim: Claim, completion: Completion | None = None, *, unattended: bool = False
    ) -> Lease | Completed | None:
        """Turn a lease into one of the claim's owner, with the claim's ttl, limit and record, in one step.

        Asking again with the same claim returns the same lease, its time started anew.

        Arguments:
            lease: what is passed on; with fence 0, whatever lease its owner has.
            claim: on the same key.
            completion: a record to leave, whether or not the lease was still there; of a claim that asks for none.
            unattended: nobody will renew it: it lasts for the claim's ttl also in a store whose leases live as long as
                their client's session.

        Returns:
            the new lease, whose fence is greater; None if there was nothing to pass on, or the claim's owner has given
            back an unknown lease; :class:`Completed`, and nothing is passed on, if the claim asks for a completion
            record and there is one.

        Raises:
            StoreUnavailable: there was no answer; it may have been passed on. Whoever does not ask again should release
                the claim's :meth:`Lease.unknown`.
        """
