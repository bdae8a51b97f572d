"""Compiles the benchmarks' Cython modules on first use, below ``build/bench`` of the checkout.

They are tools of the checkout, not part of the installed package. A module is compiled again when
its source has changed, or a declaration of the package that it may use.
"""

from __future__ import annotations

import fcntl
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
DECLARATIONS = HERE.parent / "tornadochat"


def load(name: str) -> ModuleType:
    """Import ``bench/<name>.pyx``, compiled where needed.

    Raises:
        FileNotFoundError: There is no such source.
        ImportError: It does not compile; the compiler's output is on standard error.
    """
    if name in sys.modules:
        return sys.modules[name]
    source = HERE / f"{name}.pyx"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there")
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    target = BUILD / tag
    target.mkdir(parents=True, exist_ok=True)
    with (target / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that need it, one compiles
        module = next(target.glob(f"{name}.*.so"), None)
        if module is None or module.stat().st_mtime < _changed(source):
            module = _compile(name, source, target)
    spec = importlib.util.spec_from_file_location(name, module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} cannot be loaded")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _changed(source: Path) -> float:
    """When a module's source, or the layout of a class that it may use, changed last."""
    return max(path.stat().st_mtime for path in (source, *DECLARATIONS.glob("*.pxd")))


def _compile(name: str, source: Path, target: Path) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    import tornadochat

    include = str(Path(tornadochat.__file__).parent.parent)
    extension = Extension(name, [str(source)], extra_compile_args=["-O2"])
    extensions = cythonize(
        [extension], build_dir=str(target), include_path=[include], language_level=3, quiet=True, force=True
    )
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.build_lib = str(target)
    command.build_temp = str(target)
    command.force = True
    command.ensure_finalized()
    command.run()
    found = next(target.glob(f"{name}.*.so"), None)
    if found is None:
        raise ImportError(f"{source} was compiled, but no module came out in {target}")
    return found
