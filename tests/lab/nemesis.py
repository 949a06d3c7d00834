"""Who breaks things, in an order that a seed decides."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.lab.faults import Fault
from tests.lab.scene import Scene

__all__ = ["Nemesis"]

#: Seconds of peace after each fault, about: long enough for bounds of time to be judged in every other one.
PEACE = (0.3, 2.5)
#: How often two faults happen at the same time.
TOGETHER = 0.3


class Nemesis:
    """Lets faults happen, one or two at a time.

    Arguments:
        scene: to whom.
        faults: what may happen.
        seed: decides what happens, to whom, and for how long.
        say: called with a line for each fault.
    """

    def __init__(
        self, scene: Scene, faults: Sequence[Fault], seed: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._scene = scene
        self._faults = [fault for fault in faults if scene.workers or not fault.needs_workers]
        self._rng = random.Random(seed)
        self._say = say
        self.happened: Counter[str] = Counter()

    def rage(self, seconds: float) -> None:
        """Let faults happen for so long; at the end everything is mended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self._rng.uniform(*PEACE)))
            self._scene.revive()
            chosen = [self._choose()]
            if self._rng.random() < TOGETHER:
                chosen.append(self._choose())
            self.strike(chosen)
        self._scene.mend()

    def strike(self, faults: Sequence[Fault]) -> None:
        """Let these faults happen at the same time, and wait until they are over."""
        self._say(" + ".join(fault.name for fault in faults))
        with ThreadPoolExecutor(len(faults)) as threads:
            # Each has dice of its own: which thread comes first must not matter.
            struck = [threads.submit(self._one, fault, self._rng.getrandbits(64)) for fault in faults]
            for each in struck:
                each.result()

    def _choose(self) -> Fault:
        return self._rng.choices(self._faults, [fault.weight for fault in self._faults])[0]

    def _one(self, fault: Fault, seed: int) -> None:
        scene = self._scene
        self.happened[fault.name] += 1
        scene.note("fault", name=fault.name, touches=fault.touches, phase="begins")
        try:
            fault.run(scene, random.Random(seed))
        finally:
            scene.note("fault", name=fault.name, touches=fault.touches, phase="ends")
