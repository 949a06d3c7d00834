"""Wall clocks that can be set, of single processes (``clock.c``)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

__all__ = ["Clock", "compiler"]

_OFFSET = struct.Struct("q")


def compiler() -> str | None:
    """Return the path of a C compiler, or None where there is none."""
    return shutil.which("cc")


class Clock:
    """The wall clock of those processes that are started with :attr:`env`; right, to begin with.

    Arguments:
        folder: takes the library and the offset.

    Raises:
        RuntimeError: there is no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        cc = compiler()
        if cc is None:
            raise RuntimeError("a C compiler is not installed (Debian packages: gcc, libc6-dev)")
        folder.mkdir(parents=True, exist_ok=True)
        library, self._path = folder / "clock.so", folder / "clock-offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([cc, "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        self._path.write_bytes(_OFFSET.pack(0))
        self.env = {"LD_PRELOAD": str(library), "LAB_CLOCK": str(self._path)}
        self.offset = 0.0

    def step(self, seconds: float) -> None:
        """Set it forwards, or back."""
        self.offset += seconds
        with self._path.open("r+b") as file:
            file.write(_OFFSET.pack(round(self.offset * 1e6)))
