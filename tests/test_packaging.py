"""What the package carries, what it imports, and what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support import SLOWNESS
from tornadochat.metrics import TRANSPORT_COUNTERS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tornadochat"
# Modules of the project that a Cython module may import; import-linter does not read .pyx files.
ALLOWED = {
    "_fastframe.pyx": {"tornadochat.errors"},
    "_fastframe.pxd": set(),
    "_poller.pyx": set(),
    "_poller.pxd": set(),
    "_reactor.pyx": {"tornadochat._fastframe", "tornadochat._poller", "tornadochat.errors"},
    "_reactor.pxd": {"tornadochat._fastframe", "tornadochat._poller"},
    **{path.name: set() for path in PACKAGE.glob("*.pxi")},
}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_cython_modules_import_only_what_their_place_allows(name: str) -> None:
    text = (PACKAGE / name).read_text()
    imported = set(re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", text, re.M))
    assert {module for module in imported if module.startswith("tornadochat")} <= ALLOWED[name]
    assert not imported & {"asyncio", "tornado", "redis", "hiredis"}


def test_everything_that_is_read_at_run_time_is_in_the_package() -> None:
    package = files("tornadochat")
    for name in (
        "schema.json",
        "openapi.json",
        "py.typed",
        "_fastframe.pxd",
        "_fastframe.pyi",
        "_poller.pyi",
        "_reactor.pyi",
    ):
        assert package.joinpath(name).is_file(), name
    for name in ("publish", "read", "find", "beat"):
        assert package.joinpath("scripts", f"{name}.lua").is_file()
    json.loads(package.joinpath("schema.json").read_text())


def test_the_package_starts_from_any_folder(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tornadochat", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20 * SLOWNESS,
    )
    assert found.returncode == 0 and found.stdout.startswith("tornadochat ")


def test_nothing_of_the_project_makes_a_loop_before_the_fork() -> None:
    script = (
        "import asyncio, threading\n"
        "import tornadochat.worker, tornadochat.supervisor\n"
        "assert threading.active_count() == 1\n"
        "try:\n    asyncio.get_running_loop()\nexcept RuntimeError:\n    print('none')\n"
    )
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "none", found.stderr


def test_the_stubs_name_every_counter_that_the_metrics_read() -> None:
    stub = (PACKAGE / "_reactor.pyi").read_text()
    assert all(f"def {name}(self) -> int" in stub for name in TRANSPORT_COUNTERS)


def test_error_codes_and_close_codes_are_all_documented() -> None:
    from tornadochat.protocol import CLOSE_CODES, ERROR_CODES

    text = (ROOT / "docs" / "protocol.md").read_text()
    assert [code for code in ERROR_CODES if f"`{code}`" not in text] == []
    assert [code for code in CLOSE_CODES if f"| {code} |" not in text] == []


def test_the_documents_link_to_files_that_are_there() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
