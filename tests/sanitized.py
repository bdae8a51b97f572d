"""``python -P tests/sanitized.py``: the test suite with the Cython modules under gcc's sanitizers.

AddressSanitizer and UndefinedBehaviorSanitizer watch the modules in every process that a test starts;
whatever they find goes to a file, since a worker that is ended by them is replaced as any other that dies,
and its test may well pass. Arguments are pytest's: ``python -P tests/sanitized.py tests/test_reactor.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitized"
PACKAGE_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined")
# Of the whole suite; most of its time is spent outside of the modules.
SLOWNESS = 3


def build(folder: Path, flags: Sequence[str], links: Sequence[str], *options: str) -> Path:
    """A copy of the package with its modules made by gcc with these flags; returns where it is imported from.

    What has not changed is not compiled again, unless ``--force`` is among the options of ``build_ext``.
    """
    source = folder / "src"
    source.mkdir(parents=True, exist_ok=True)
    for name in PACKAGE_FILES:
        shutil.copy2(ROOT / name, source)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "tornadochat", source / "tornadochat", ignore=ignored, dirs_exist_ok=True)
    variables = {"CC": "gcc", "CHAT_CFLAGS": " ".join(flags), "CHAT_LDFLAGS": " ".join(links)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *options]
    subprocess.run(command, cwd=source, env=os.environ | variables, check=True)
    return source


def library(name: str) -> str:
    """Path of one of gcc's own libraries."""
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(source: Path, reports: Path) -> dict[str, str]:
    """Variables of every process that runs the modules, and of all that they start.

    Stores are watched too: they bear it, and nothing has to keep the variables from them.
    """
    said = f"log_path={reports / 'report'}"
    return os.environ | {
        "PYTHONPATH": str(source),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # Each object by malloc() alone, so that the sanitizer knows where it ends.
        "PYTHONMALLOC": "malloc",
        # CPython frees little at its end, all of which would be called a leak.
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:{said}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:{said}",
        "CHAT_TEST_SLOWNESS": str(SLOWNESS),
    }


def check_watched(variables: dict[str, str], reports: Path) -> None:
    """See that a fault is reported, of a module that is the one which was built.

    Raises:
        SystemExit: It is not.
    """
    script = (
        "import ctypes, tornadochat._fastframe as codec\n"
        "batch = codec.encode_plain([b'{}'])\n"
        f"assert codec.__file__.startswith({variables['PYTHONPATH']!r}), codec.__file__\n"
        "ctypes.string_at(batch.address, 4096)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], env=variables, stderr=subprocess.DEVNULL)
    found = list(reports.iterdir())
    if not any("shared_new" in path.read_text(errors="replace") for path in found):
        raise SystemExit("a fault on purpose was not reported: the sanitizers do not watch the modules")
    for path in found:
        path.unlink()


def main() -> None:
    """Run pytest; exit status 1 also for a report of a process that no test missed."""
    reports = BUILD / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    variables = environment(build(BUILD, FLAGS, ["-fsanitize=address,undefined"]), reports)
    check_watched(variables, reports)
    chosen = sys.argv[1:] or ["-q", "-m", "not browser"]
    command = [sys.executable, "-P", "-bb", "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    status = subprocess.run(command, cwd=ROOT, env=variables).returncode
    found = sorted(reports.iterdir())
    for path in found:
        print(path.read_text(errors="replace"))
    print(f"{len(found)} reports of the sanitizers")
    sys.exit(1 if found else status)


if __name__ == "__main__":
    main()
