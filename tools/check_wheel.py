"""Build the wheel, look into it, and import every module of its installed form."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "celery_distlock"

# Run with the folder of the installed wheel: nothing may come from the source tree.
IMPORT_ALL = f"""
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import {PACKAGE} as package
for module in pkgutil.walk_packages(package.__path__, "{PACKAGE}."):
    importlib.import_module(module.name)
foreign = [name for name, module in sys.modules.items()
           if name.split(".")[0] == "{PACKAGE}" and not module.__file__.startswith(sys.argv[1])]
assert not foreign, foreign
"""


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; on failure show what it said and end."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} … failed:\n{done.stdout}")


def main() -> None:
    """Fail unless the wheel holds every file of the package and can be imported."""
    with tempfile.TemporaryDirectory() as folder:
        out, site = Path(folder) / "dist", Path(folder) / "site"
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out))
        (wheel,) = out.glob("*.whl")
        packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(PACKAGE + "/")}
        source = {
            str(path.relative_to(ROOT))
            for path in (ROOT / PACKAGE).rglob("*")
            if path.is_file() and path.suffix in (".py", ".lua", ".typed")
        }
        assert f"{PACKAGE}/py.typed" in packed, "py.typed is not in the wheel"
        assert source == packed, f"wheel and source tree differ: {sorted(source ^ packed)}"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
        run(sys.executable, "-c", IMPORT_ALL, str(site), cwd=Path(folder))
        print(f"{wheel.name}: {len(packed)} files, imports")


if __name__ == "__main__":
    main()
