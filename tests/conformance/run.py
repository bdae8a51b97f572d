"""Autobahn's WebSocket test suite against the echo server: ``python tests/conformance/run.py [CASES]``.

The suite (PyPI ``autobahntestsuite``) runs on CPython 2.7 only. Where none is found it is skipped with
that reason and status 0. CASES are patterns like ``1.* 7.*``; without any, 1 to 7, 9 and 10 are run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / "build" / "autobahn"
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
FINE = {"OK", "INFORMATIONAL", "UNIMPLEMENTED"}
CLOSED_WELL = {"OK", "INFORMATIONAL"}
LIMIT_SECONDS = 1800.0
# What the suite was written for; later versions of these left Python 2.7.
PINNED = ["autobahntestsuite==25.10.1"]


def find_python() -> str | None:
    """A CPython 2.7 of this machine."""
    candidates = [os.environ.get("PYTHON27", ""), "python2.7", "python2"]
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    candidates += [str(path) for path in sorted(Path(pyenv).glob("versions/2.7*/bin/python2.7"))]
    for candidate in candidates:
        path = shutil.which(candidate) if candidate else None
        if path is None:
            continue
        found = subprocess.run(
            [path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if found.stdout.strip() == "(2, 7)":
            return path
    return None


def install(python: str) -> Path:
    """The suite below ``build``, with all that it needs; installed once."""
    target = CACHE / "site"
    done = CACHE / "installed"
    if not done.exists():
        target.mkdir(parents=True, exist_ok=True)
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(target),
        ]
        found = subprocess.run([*command, *PINNED], capture_output=True, text=True)
        if found.returncode:
            sys.stderr.write(found.stderr)
            raise SystemExit("Autobahn's test suite could not be installed; pip's words are above")
        done.touch()
    return target


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens."""
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit("the echo server ended at once")
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the echo server does not listen")


def run(python: str, cases: list[str], folder: Path) -> dict[str, dict[str, str]]:
    """Run the cases; returns Autobahn's own summary of each."""
    site = install(python)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-P", str(HERE.parent / "echo_server.py"), f"--port={port}"])
    try:
        wait_for_port(port, server)
        spec = {
            "outdir": str(folder / "reports"),
            "servers": [{"agent": "tornadochat", "url": f"ws://127.0.0.1:{port}"}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        # addsitedir, since namespace packages of that age come with .pth files.
        script = (
            f"import site, sys; sys.path.insert(0, {str(site)!r}); site.addsitedir({str(site)!r}); "
            "from autobahntestsuite import wstest; sys.argv = ['wstest'] + sys.argv[1:]; wstest.run()"
        )
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        with (folder / "wstest.log").open("wb") as log:
            done = subprocess.run(
                [python, "-c", script, "-m", "fuzzingclient", "-s", str(folder / "spec.json")],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
            )
        index = folder / "reports" / "index.json"
        if done.returncode or not index.exists():
            sys.stderr.write((folder / "wstest.log").read_text()[-3000:])
            raise SystemExit("Autobahn's test suite could not be run; the end of its output is above")
        found: dict[str, dict[str, str]] = json.loads(index.read_text())["tornadochat"]
        return found
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    """Print the counts; 1 when a case failed or was not strict."""
    python = find_python()
    if python is None:
        print("conformance: skipped, Autobahn's test suite needs CPython 2.7 and none was found (set PYTHON27)")
        return 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = run(python, sys.argv[1:] or CASES, Path(folder))
    bad = {
        case: result
        for case, result in results.items()
        if result["behavior"] not in FINE or result["behaviorClose"] not in CLOSED_WELL
    }
    for case, result in sorted(bad.items()):
        print(f"case {case}: {result['behavior']}, close {result['behaviorClose']}")
    counts = Counter(result["behavior"] for result in results.values())
    words = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"conformance: {len(results)} cases in {time.monotonic() - begin:.0f} s: {words}; {len(bad)} bad")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
