"""What an executor and its worker's main process tell each other, without a system call.

An :class:`Arena` is an anonymous shared ``mmap`` made before the pool forks: a fixed number of fixed-size
:class:`Cell` s, one per supervised request that has been handed to the pool. The request carries its cell's number.

Who writes what
    ========== =============================== ============================================
    field      executor                        main process (warden)
    ========== =============================== ============================================
    state      ASKING … DONE                   FREE, READY (only while nobody executes)
    pid, key, ttl,                             --
    limit, fence
    owner      --                              when the cell is taken, or taken back
               before the state says so
    deadline   when granted                    at every renewal
    verdict    --                              LOST, once
    gift       --                              a lease of the owner's that it has not asked for yet
    ========== =============================== ============================================

    ::

        FREE ──admit──▶ READY ──▶ ASKING ──▶ GRANTED ──▶ RELEASING ──▶ DONE ──▶ FREE
                          ▲          │                        │
                          └─contended┘                        └─ no answer ─▶ OWED: the warden goes on

    The cell of a request whose turn has come, after it was parked, begins as ASKING, without a pid: a place is kept for
    it, and given back if its executor does not ask.

State, verdict, deadline and fence are aligned 8-byte words, so a reader never sees half of one. The checksum covers
what is longer, or must agree with it: key, owner, ttl and limit, written once, before the store is asked. On a
machine that reorders stores, a reader that sees the state first finds the sum wrong and looks again later; a child
killed in the middle of writing them had not asked yet. A gift has a sum of its own, which covers key and owner, too:
one that comes late is nothing to who has the cell by then, nor is one of another key.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from collections import deque
from dataclasses import dataclass

from celery_distlock.lease import Claim, Lease

__all__ = ["ASKING", "DONE", "FREE", "GRANTED", "OWED", "READY", "RELEASING", "Arena", "Cell", "View", "fits", "late"]

FREE, READY, ASKING, GRANTED, RELEASING, OWED, DONE = range(7)

_SIZE = 512
_WORDS = _SIZE // 8
# Word offsets within a cell.
_STATE, _VERDICT, _DEADLINE, _FENCE, _COMPLETE, _PID, _SUM, _GIFT_SUM = range(8)
_GIFT_FENCE, _GIFT_DEADLINE, _TTL, _LIMIT, _KEYLEN = range(8, 13)
_OWNER = 13 * 8
_OWNER_LEN = 32
_KEY = _OWNER + _OWNER_LEN
#: What the checksum covers before the key: ttl, limit, the key's length, owner.
_HEAD = struct.Struct("dqq32s")
#: What a gift's sum covers before the key: fence, deadline, ttl, limit, owner.
_GIFT = struct.Struct("qddq32s")
#: A cell before it is asked for; its state comes last.
_BLANK = struct.Struct("104x32s")
#: Longest key, in UTF-8 bytes, that a cell can hold.
KEY_MAX = _SIZE - _KEY

_LOST = 1
#: As the stores encode keys.
_UTF8 = ("utf-8", "surrogatepass")


@dataclass(frozen=True)
class View:
    """One consistent look at a cell: its state and, once there is one, the lease in it.

    ``complete`` is true when the executor, on releasing, asked for a completion record.
    """

    state: int
    lease: Lease | None
    complete: bool


class Arena:
    """A fixed number of cells in memory shared with every child forked later.

    Arguments:
        size: how many requests can be in the pool at once; further ones run without a cell, and their executor
            keeps its lease alive itself.
    """

    def __init__(self, size: int = 4096) -> None:
        self.id = os.urandom(8).hex()
        self._map = mmap.mmap(-1, size * _SIZE)
        self._bytes = memoryview(self._map)
        self._ints = self._bytes.cast("q")
        self._floats = self._bytes.cast("d")
        # First in, first out: the warden's thread may be about to write into the cell that was freed last.
        # Requests are admitted by the consumer and dismissed by the warden, two threads: a deque needs no lock.
        self._free = deque(range(size))

    def take(self, owner: str) -> Cell | None:
        """Return a READY cell that belongs to ``owner``, or None when all are in use."""
        try:
            cell = Cell(self, self._free.popleft())
        except IndexError:
            return None
        cell.reset(owner)
        return cell

    def give(self, cell: Cell) -> None:
        """Take back a cell that nobody executes any more."""
        self._ints[cell.base + _STATE] = FREE
        # Should somebody execute it after all, he is not to write into it.
        cell.disown()
        self._free.append(cell.index)

    @property
    def full(self) -> bool:
        """Whether all are taken."""
        return not self._free

    @property
    def in_use(self) -> int:
        """How many cells are taken."""
        return len(self._ints) // _WORDS - len(self._free)


class Cell:
    """One cell of an arena, as seen from either side."""

    __slots__ = ("_arena", "base", "index")

    def __init__(self, arena: Arena, index: int) -> None:
        self._arena = arena
        self.index = index
        self.base = index * _WORDS

    # -- executor ---------------------------------------------------------------------------------------------

    def asking(self, key: str, owner: str, ttl: float, limit: int) -> bool:
        """Say which key is being asked for, and who asks, before the store hears of it.

        Returns:
            False if the cell cannot be used: the key is too long, or the cell belongs to somebody else by now, since
            the pool had lost this request and started it nevertheless.
        """
        raw, who = key.encode(*_UTF8), owner.encode()
        arena, base = self._arena, self.base
        start = base * 8
        if len(raw) > KEY_MAX or arena._bytes[start + _OWNER : start + _KEY] != who:
            return False
        arena._ints[base + _PID] = os.getpid()
        # Looked at once more now that our pid is there: the main process takes back what nobody has begun with.
        if arena._bytes[start + _OWNER : start + _KEY] != who:
            return False
        told = _HEAD.pack(ttl, limit, len(raw), who) + raw
        first = start + _TTL * 8
        arena._bytes[first : first + len(told)] = told
        arena._ints[base + _FENCE] = 0
        arena._ints[base + _SUM] = zlib.crc32(told)
        arena._ints[base + _STATE] = ASKING
        return True

    def belongs_to(self, owner: str) -> bool:
        """Return whether the main process still waits for this owner to execute."""
        return self._owner == owner.encode()

    def granted(self, lease: Lease) -> None:
        """Say that the store granted what was asked for, perhaps for another time than was asked for."""
        arena, base = self._arena, self.base
        if arena._floats[base + _TTL] != lease.ttl:
            arena._floats[base + _TTL] = lease.ttl
            arena._ints[base + _SUM] = self._checksum()
        arena._floats[base + _DEADLINE] = lease.deadline
        arena._ints[base + _FENCE] = lease.fence
        arena._ints[base + _STATE] = GRANTED

    def gift(self, key: str, owner: str, ttl: float, limit: int) -> tuple[int, float] | None:
        """Return fence and deadline of the lease that the main process was granted in this owner's name, if it was."""
        arena, base = self._arena, self.base
        told = arena._ints[base + _GIFT_SUM]
        if not told:
            return None
        fence, deadline = arena._ints[base + _GIFT_FENCE], arena._floats[base + _GIFT_DEADLINE]
        return (fence, deadline) if told == _gift_sum(key, fence, deadline, ttl, limit, owner) else None

    def refused(self) -> None:
        """Say that the store did not grant it."""
        self._arena._ints[self.base + _STATE] = READY

    def releasing(self, complete: bool) -> None:
        """Say that the work is over; ``complete``: its completion record is to be left behind."""
        arena, base = self._arena, self.base
        arena._ints[base + _COMPLETE] = complete
        arena._ints[base + _STATE] = RELEASING

    def owed(self) -> None:
        """Say that the store could not be told; whoever reads this is to go on."""
        self._arena._ints[self.base + _STATE] = OWED

    def done(self) -> None:
        """Say that the store has been told."""
        self._arena._ints[self.base + _STATE] = DONE

    # -- both -------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Until when the lease may be believed (monotonic seconds)."""
        return self._arena._floats[self.base + _DEADLINE]

    @property
    def lost(self) -> bool:
        """True once the store said that the key was given to somebody else."""
        return self._arena._ints[self.base + _VERDICT] == _LOST

    @property
    def state(self) -> int:
        """The state alone: cheaper than :meth:`view`."""
        return self._arena._ints[self.base + _STATE]

    @property
    def pid(self) -> int:
        """Which process asked; 0 before it did."""
        return self._arena._ints[self.base + _PID]

    @property
    def complete(self) -> bool:
        """True when the executor, on releasing, asked for a completion record."""
        return bool(self._arena._ints[self.base + _COMPLETE])

    # -- main process -----------------------------------------------------------------------------------------

    def reset(self, owner: str) -> None:
        """Make the cell ready for another request."""
        arena, base = self._arena, self.base
        _BLANK.pack_into(arena._map, base * 8, owner.encode())
        arena._ints[base + _STATE] = READY

    def expect(self, claim: Claim) -> bool:
        """Say what an executor is about to ask for, since a place is kept for it; False if it does not fit in."""
        if not self.asking(claim.key, claim.owner, claim.ttl, claim.limit):
            return False
        self._arena._ints[self.base + _PID] = 0
        return True

    def give(self, lease: Lease) -> None:
        """Write a lease that the owner may take instead of asking, on the very terms that it would ask for."""
        arena, base = self._arena, self.base
        arena._ints[base + _GIFT_FENCE] = lease.fence
        arena._floats[base + _GIFT_DEADLINE] = lease.deadline
        told = _gift_sum(lease.key, lease.fence, lease.deadline, lease.ttl, lease.limit, lease.owner)
        arena._ints[base + _GIFT_SUM] = told

    def take_back(self) -> bool:
        """Undo :meth:`expect`; False if an executor has begun.

        This writes the owner and then reads the pid, the executor writes the pid and then reads the owner: one of them
        sees the other.
        """
        owner = self._owner
        self.disown()
        if self.pid != 0:
            self._arena._bytes[self.base * 8 + _OWNER : self.base * 8 + _KEY] = owner
            return False
        self._arena._ints[self.base + _STATE] = READY
        return True

    def rename(self, owner: str) -> None:
        """Have the cell belong to another owner, after :meth:`take_back`: its executor may still come."""
        self._arena._bytes[self.base * 8 + _OWNER : self.base * 8 + _KEY] = owner.encode()

    def disown(self) -> None:
        """Let the cell belong to nobody."""
        self._arena._bytes[self.base * 8 + _OWNER : self.base * 8 + _KEY] = bytes(_OWNER_LEN)

    def view(self) -> View | None:
        """Look at the cell once; None if it was being written just then."""
        arena, base = self._arena, self.base
        ints, floats, start = arena._ints, arena._floats, base * 8
        state = ints[base + _STATE]
        complete = bool(ints[base + _COMPLETE])
        if state < ASKING:
            return View(state, None, complete)
        if ints[base + _SUM] != self._checksum() or ints[base + _STATE] != state:
            return None
        length = ints[base + _KEYLEN]
        lease = Lease(
            key=bytes(arena._bytes[start + _KEY : start + _KEY + length]).decode(*_UTF8),
            owner=bytes(arena._bytes[start + _OWNER : start + _KEY]).decode(),
            fence=ints[base + _FENCE],
            ttl=floats[base + _TTL],
            deadline=floats[base + _DEADLINE],
            limit=ints[base + _LIMIT],
        )
        return View(state, lease, complete)

    def renewed(self, deadline: float) -> None:
        """Write how long the lease may be believed from now on."""
        self._arena._floats[self.base + _DEADLINE] = deadline

    def lose(self) -> None:
        """Write that the lease is lost."""
        self._arena._ints[self.base + _VERDICT] = _LOST

    @property
    def _owner(self) -> bytes:
        start = self.base * 8
        return bytes(self._arena._bytes[start + _OWNER : start + _KEY])

    def _checksum(self) -> int:
        arena, base = self._arena, self.base
        start = base * 8
        length = min(arena._ints[base + _KEYLEN], KEY_MAX)
        return zlib.crc32(arena._bytes[start + _TTL * 8 : start + _KEY + length])


def _gift_sum(key: str, fence: int, deadline: float, ttl: float, limit: int, owner: str) -> int:
    # 0 is no gift.
    return zlib.crc32(_GIFT.pack(fence, deadline, ttl, limit, owner.encode()) + key.encode(*_UTF8)) + 1


def fits(key: str) -> bool:
    """Return whether a cell has room for this key."""
    return len(key.encode(*_UTF8)) <= KEY_MAX


def late(owner: str) -> str:
    """Return the name in which an executor asks that comes when the place kept in this one has been given back."""
    # As long as an owner is.
    return hashlib.sha256(f"late {owner}".encode()).hexdigest()[:_OWNER_LEN]


_arena: Arena | None = None


def install(arena: Arena | None) -> None:
    """Make ``arena`` the one that this process, and every child forked from it, knows."""
    global _arena
    _arena = arena


def attach(arena_id: str, index: int) -> Cell | None:
    """Return a cell named by a request; None where its arena is not shared with this process (spawned children)."""
    return Cell(_arena, index) if _arena is not None and _arena.id == arena_id else None
