"""Compiles the Cython modules and builds the web client; everything else is in pyproject.toml."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
WEBAPP = ROOT / "webapp"
STATIC = ROOT / "tornadochat" / "static"
# Which sources the built client was made of; part of sdist and wheel.
BUILD_ID = STATIC / "build-id.txt"
CLIENT_FILES = ("package.json", "package-lock.json", "index.html", "vite.config.ts", "tsconfig.json")


# Files that a Cython module includes.
PARTS = {
    "_fastframe": [f"tornadochat/_{part}.pxi" for part in ("decoder", "deflate", "messages")],
    "_poller": [],
    "_reactor": [
        "tornadochat/_poller.pxd",
        *(f"tornadochat/_{part}.pxi" for part in ("entries", "fanout", "handles", "wheel", "writing")),
    ],
}


def client_sources() -> list[Path]:
    """Everything that the built client depends on."""
    found = [WEBAPP / name for name in CLIENT_FILES]
    for folder in ("src", "public"):
        found += [path for path in (WEBAPP / folder).rglob("*") if path.is_file()]
    return sorted(path for path in found if path.is_file())


def client_id() -> str:
    """Digest of the client's sources; empty where they are not here."""
    sources = client_sources()
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest() if sources else ""


def build_client() -> None:
    """Build the web client into the package, unless it is there and made of these sources.

    Raises:
        SystemExit: Node is missing or the build failed; the message says what to do.
    """
    wanted = client_id()
    built = BUILD_ID.read_text().strip() if BUILD_ID.exists() else ""
    if not wanted or wanted == built:
        return
    if os.environ.get("SKIP_WEBAPP"):
        print("SKIP_WEBAPP is set: the web client is left out", file=sys.stderr)
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            "Building from source needs Node 20 or newer with npm for the web client. "
            "Install it, install a wheel instead, or set SKIP_WEBAPP=1 to leave the client out."
        )
    for command in (["ci", "--no-audit", "--no-fund", "--loglevel=error"], ["run", "build"]):
        if subprocess.run([npm, *command], cwd=WEBAPP).returncode:
            raise SystemExit(f"npm {command[0]} failed in {WEBAPP}; its output is above")
    BUILD_ID.write_text(wanted + "\n")


class BuildPy(build_py):
    """Builds the web client before the package's files are collected."""

    def run(self) -> None:
        build_client()
        # Found anew: the list of data files was made before the client was built.
        self.data_files = self._get_data_files()
        super().run()


class Sdist(sdist):
    """An sdist carries the built client, so that it installs without Node."""

    def run(self) -> None:
        build_client()
        super().run()


class BuildExt(build_ext):
    """Leaves a copy of each module beside its source, so that the checkout itself can be run."""

    def run(self) -> None:
        super().run()
        if self.inplace:
            return
        for extension in self.extensions:
            built = Path(self.get_ext_fullpath(extension.name))
            target = ROOT / "tornadochat" / built.name
            if built.exists() and os.access(target.parent, os.W_OK):
                shutil.copyfile(built, target)


def extensions() -> list[Extension]:
    """The Cython modules; poller and reactor need epoll, so they are built on Linux alone."""
    from Cython.Build import cythonize

    names = ["_fastframe"] + (["_poller", "_reactor"] if sys.platform.startswith("linux") else [])
    flags = os.environ.get("CHAT_CFLAGS", "-O3").split()
    links = os.environ.get("CHAT_LDFLAGS", "").split()
    modules = [
        Extension(
            f"tornadochat.{name}",
            [f"tornadochat/{name}.pyx"],
            depends=["tornadochat/_fastframe.pxd", f"tornadochat/{name}.pxd", *PARTS[name]],
            extra_compile_args=flags,
            extra_link_args=links,
        )
        for name in names
    ]
    return cythonize(modules, build_dir="build/cython", language_level=3)


setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "sdist": Sdist},
)
