"""Node programs of the benchmarks: copied below ``build`` and installed there from their locked versions."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.native import BUILD
from bench.processes import Unavailable

INSTALL_SECONDS = 300.0


def install(source: Path) -> tuple[str, Path]:
    """Install a folder with a ``package-lock.json`` by ``npm ci``, again when the lock has changed.

    Returns:
        The path of ``node``, and the folder that the program is to be run from.

    Raises:
        Unavailable: Node is missing, or the packages cannot be had.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable("node or npm is not installed")
    target = BUILD / source.name
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    lock = (source / "package-lock.json").read_text()
    installed = target / "installed-lock.json"
    if not installed.exists() or installed.read_text() != lock:
        command = [npm, "ci", "--no-audit", "--no-fund"]
        # Artillery brings Playwright, which would fetch browsers that nobody uses here.
        environment = os.environ | {"PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"}
        try:
            subprocess.run(
                command,
                cwd=target,
                env=environment,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as error:
            raise Unavailable(
                f"npm ci failed: {error} {getattr(error, 'stderr', None) or ''}".strip()[:500]
            ) from None
        installed.write_text(lock)
    return node, target
