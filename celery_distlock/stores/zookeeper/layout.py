"""What is stored where, and what a contender's node is called.

::

    <chroot>/<prefix>/locks/<key>/<owner>-<limit>-<nonce>__lock__<sequence>     one contender, ephemeral
    <chroot>/<prefix>/done/<digest of key and run>                              one completion record

Key and owner are percent-encoded. The sequence is ZooKeeper's; the nonce makes each node's path its own, also when a
node is made anew in another session with the sequence number of its predecessor, so that whoever still knows an old
path can do no harm with it. The end of the name is that of ``kazoo.recipe.lock.Lock``: on a shared path its contenders
and ours stand in one line.

A key's node is made together with that of its first contender, and removed by its last: a key whose node is missing
is free, and whoever makes the node holds it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from celery_distlock.lease import Claim, Completion, Lease

__all__ = ["Contender", "Layout", "Line"]

#: What may stand in a node's name as it is; "/" and "%" may not.
_PLAIN = " !\"#$&'()*+,:;<=>?@[\\]^`{|}~"
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
    """

    name: str
    owner: str
    limit: int
    sequence: int


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

    def is_next(self, index: int) -> bool:
        """Tell whether the contender at this index has a place as soon as any of those before it goes."""
        return self.placed == index == self.contenders[index].limit

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
    limit, _, nonce = rest.partition("-")
    if nonce and limit.isdecimal():
        return Contender(name, unquote(owner), int(limit), sequence)
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
        self.shared = shared
        #: Whose children are the keys.
        self.locks = chroot if shared else f"{top}/locks"
        #: Whose children are the completion records.
        self.done = f"{top}/done"

    def lock(self, key: str) -> str:
        """Return the path of a key's node."""
        if self.shared:
            return f"{self.locks}/{'/'.join(map(_segment, key.strip('/').split('/')))}"
        return f"{self.locks}/{_segment(key)}"

    def key_of(self, name: str) -> str:
        """Return the key whose node has this name."""
        return unquote(name, errors="surrogatepass")

    def new_contender(self, claim: Claim) -> str:
        """Return the path of a new contender's node, for ZooKeeper to append a sequence number."""
        return f"{self.lock(claim.key)}/{_name(claim)}"

    def first_contender(self, claim: Claim) -> str:
        """Return the path of the node of a key's first contender. ZooKeeper numbers the next one 1."""
        return f"{self.lock(claim.key)}/{_name(claim)}{0:010d}"

    def anew(self, claim: Claim | Lease, old: Contender) -> str:
        """Return the path of a node that takes the place of another one of the same owner."""
        return f"{self.lock(claim.key)}/{_name(claim)}{old.sequence:010d}"

    def completion(self, completion: Completion) -> str:
        """Return the path of a completion record."""
        # The length of the key keeps the two parts apart.
        text = f"{len(completion.key)}:{completion.key}:{completion.run}"
        return f"{self.done}/{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"


def _name(claim: Claim | Lease) -> str:
    return f"{quote(claim.owner, safe='').replace('-', '%2D')}-{claim.limit}-{os.urandom(4).hex()}__lock__"


def _segment(text: str) -> str:
    """Return a name for a node; ``.`` and ``..`` cannot be one."""
    if text in (".", ".."):
        return text.replace(".", "%2E")
    return quote(text, safe=_PLAIN, errors="surrogatepass")
