"""What is stored where, and what a contender's node is called.

::

    <chroot>/<prefix>/locks/<key>/<owner>-<limit>-<nonce>__lock__<sequence>          one contender, ephemeral
    <chroot>/<prefix>/locks/<key>/<owner>-<limit>-<nonce>-<until>__lock__<sequence>  one that nobody keeps alive
    <chroot>/<prefix>/kept/<until>-<nonce>                                           where that is, for who sweeps
    <chroot>/<prefix>/done/<digest of key and run>                                   one completion record
    <chroot>/<prefix>/unique/<digest of key>                                         the message that is unique
    <chroot>/<prefix>/unique/<digest of key and id>                                  what became of another one
    <chroot>/<prefix>/clock                                                          written to learn the leader's time
    <chroot>/<prefix>/swept                                                          written by who sweeps, now and then

Key and owner are percent-encoded. The sequence is ZooKeeper's; the nonce makes each node's path its own, also when a
node is made anew in another session with the sequence number of its predecessor, so that whoever still knows an old
path can do no harm with it. The end of the name is that of ``kazoo.recipe.lock.Lock``: on a shared path its contenders
and ours stand in one line.

A contender that nobody keeps alive, a place that rests or a lease that waits for a task's retry, is a node that stays.
It counts until somebody has removed it, which anybody may do from ``until`` on (milliseconds since the epoch, by the
leader's clock): who wants the key, the process that made it, or else who sweeps.

A key's node is made together with that of its first contender, and removed by its last: a key whose node is missing
is free, and whoever makes the node holds it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from celery_distlock.lease import Claim, Completion, Lease
from celery_distlock.tokens import is_running_key

__all__ = ["Contender", "Layout", "Line", "until_of"]

#: What may stand in a node's name as it is; "/" and "%" may not.
_PLAIN = " !\"#$&'()*+,:;<=>?@[\\]^`{|}~"
#: What most keys, and all owners of ours, are made of.
_AS_IT_IS = re.compile(rf"^[A-Za-z0-9_.~{re.escape(_PLAIN)}-]*\Z")
_OWNER = re.compile(r"^[A-Za-z0-9_.~]*\Z")
#: As kazoo's locks recognise each other, and its read locks, too.
_CONTENDER = re.compile(r"^(?P<who>.*)__r?lock__(?P<sequence>-?\d{10})$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Contender:
    """One child of a key's node: a holder, a waiter, or one who was offered a place.

    Attributes:
        name: of the node.
        owner: whose it is; for a contender of another library, its whole identification.
        limit: how many may hold the key, as this one sees it.
        sequence: its place in the line.
        kept_as: of one that nobody keeps alive, the name under ``kept``; else empty.
    """

    name: str
    owner: str
    limit: int
    sequence: int
    kept_as: str = ""

    @property
    def until(self) -> float:
        """Until when it counts if nobody keeps it alive, in seconds since the epoch; else 0.0."""
        return until_of(self.kept_as) if self.kept_as else 0.0


def until_of(kept_as: str) -> float:
    """Return until when a contender counts; 0.0 if the name is none that we have given."""
    digits = kept_as.partition("-")[0]
    return int(digits) / 1000 if digits.isdecimal() else 0.0


class Line:
    """The contenders of one key, in order. The first ones hold it; see :attr:`placed`.

    A contender has a place if fewer than its limit stand before it, and all of them have places. Those before it
    become fewer and never more; so who once has a place keeps it until its node is gone.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.contenders = sorted(filter(None, map(_contender, names)), key=lambda one: one.sequence)
        #: How many of them have a place.
        self.placed = 0
        for contender in self.contenders:
            if self.placed >= contender.limit:
                break
            self.placed += 1

    @property
    def timed(self) -> list[Contender]:
        """Those that nobody keeps alive."""
        return [one for one in self.contenders if one.kept_as]

    @property
    def holders(self) -> list[Contender]:
        """Those who have a place: holders, and who was offered one."""
        return self.contenders[: self.placed]

    def admits(self, limit: int) -> bool:
        """Tell whether a newcomer would have a place."""
        return self.placed == len(self.contenders) < limit

    def index_of(self, owner: str) -> int | None:
        """Return where an owner stands; the first place counts, should it have several."""
        return next((index for index, one in enumerate(self.contenders) if one.owner == owner), None)

    def all_of(self, owner: str) -> list[Contender]:
        """Return all nodes of an owner: a create that was sent twice makes two."""
        return [one for one in self.contenders if one.owner == owner]

    def before(self, index: int) -> list[Contender]:
        """Return those of whom one must go before the contender at this index can have a place.

        As many as its limit, standing right before it: were they all to stay, it could not have one. This is no herd:
        nobody is watched by more contenders than the limit.
        """
        return self.contenders[max(0, index - self.contenders[index].limit) : index]


def _contender(name: str) -> Contender | None:
    match = _CONTENDER.match(name)
    if match is None:
        return None
    who, sequence = match["who"], int(match["sequence"])
    owner, _, rest = who.partition("-")
    limit, _, rest = rest.partition("-")
    nonce, _, until = rest.partition("-")
    if nonce and limit.isdecimal():
        return Contender(name, unquote(owner), int(limit), sequence, f"{until}-{nonce}" if until else "")
    return Contender(name, who, 1, sequence)


class Layout:
    """Paths of one name space.

    Arguments:
        chroot: the path under which everything lies; empty, or beginning with a slash.
        prefix: the name space within it.
        shared: keys are paths right under the chroot, as other libraries' locks are, and their nodes are kept.
    """

    def __init__(self, chroot: str, prefix: str, *, shared: bool = False) -> None:
        top = f"{chroot}/{_segment(prefix)}" if prefix else chroot
        self._shared = shared
        self._own = f"{top}/locks"
        #: Whose children are the keys.
        self.locks = chroot if shared else self._own
        #: Whose children are the completion records, what is known of unique messages, and where to sweep.
        self.done = f"{top}/done"
        self.unique = f"{top}/unique"
        self.kept = f"{top}/kept"
        #: Nodes whose stat is a time.
        self.clock = f"{top}/clock"
        self.swept = f"{top}/swept"

    def shares(self, key: str) -> bool:
        """Tell whether other libraries may lock this key, too; its node is kept then."""
        return self._shared and not is_running_key(key)

    def is_ours(self, path: str) -> bool:
        """Tell whether a key's node is nobody's but ours."""
        return path.startswith(f"{self._own}/")

    def above(self, key: str) -> str:
        """Return the path of the node above a key's; empty: the root."""
        return self.lock(key).rpartition("/")[0]

    def lock(self, key: str) -> str:
        """Return the path of a key's node."""
        if self.shares(key):
            return f"{self.locks}/{'/'.join(map(_segment, filter(None, key.split('/'))))}"
        return f"{self._own}/{_segment(key)}"

    def key_of(self, name: str) -> str:
        """Return the key whose node has this name."""
        return unquote(name, errors="surrogatepass")

    def new_contender(self, claim: Claim) -> str:
        """Return the path of a new contender's node, for ZooKeeper to append a sequence number."""
        return f"{self.lock(claim.key)}/{_name(claim)}"

    def first_contender(self, claim: Claim) -> str:
        """Return the path of the node of a key's first contender. ZooKeeper numbers the next one 1."""
        return f"{self.lock(claim.key)}/{_name(claim)}{0:010d}"

    def anew(self, claim: Claim | Lease, old: Contender, *, until: float = 0.0) -> str:
        """Return the path of a node that takes the place of another one.

        Arguments:
            claim: of its owner.
            old: the other one.
            until: if nobody is to keep it alive, until when it counts, in seconds since the epoch.
        """
        return f"{self.lock(claim.key)}/{_name(claim, until)}{old.sequence:010d}"

    def kept_at(self, path: str) -> str | None:
        """Return the path of the node that tells who sweeps of a contender; None if its session keeps it alive."""
        contender = _contender(path.rpartition("/")[2])
        return f"{self.kept}/{contender.kept_as}" if contender is not None and contender.kept_as else None

    def token(self, key: str) -> str:
        """Return the path of what is known of the message that is the one of a key."""
        return f"{self.unique}/{_digest(f'{len(key)}:{key}')}"

    def message(self, key: str, task_id: str) -> str:
        """Return the path of what is known of another message of the key."""
        return f"{self.unique}/{_digest(f'{len(key)}:{key}:{task_id}')}"

    def completion(self, completion: Completion) -> str:
        """Return the path of a completion record."""
        # The length of the key keeps the two parts apart.
        return f"{self.done}/{_digest(f'{len(completion.key)}:{completion.key}:{completion.run}')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _name(claim: Claim | Lease, until: float = 0.0) -> str:
    end = f"-{math.ceil(until * 1000):013d}" if until else ""
    owner = claim.owner
    if not _OWNER.match(owner):
        owner = quote(owner, safe="").replace("-", "%2D")
    return f"{owner}-{claim.limit}-{os.urandom(4).hex()}{end}__lock__"


def _segment(text: str) -> str:
    """Return a name for a node; ``.`` and ``..`` cannot be one."""
    if text in (".", ".."):
        return text.replace(".", "%2E")
    if _AS_IT_IS.match(text):
        return text
    return quote(text, safe=_PLAIN, errors="surrogatepass")
