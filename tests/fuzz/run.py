"""``python -m tests.fuzz.run --seconds 3600``: fuzz the frame codec, guided by the coverage of its C code.

Builds the Cython modules into ``build/fuzz`` with gcc's AddressSanitizer, UndefinedBehaviorSanitizer and
coverage (``coverage.c`` turns it into libFuzzer's), then feeds each target in turn through atheris, whose
libFuzzer and sanitizer runtime are preloaded. Needs gcc, and atheris for this Python.

An input that fails is left in ``build/fuzz/found``, with the sanitizer's or the judge's words above it:
replay it by ``--target NAME --replay FILE``. What a run learned lives on in ``build/fuzz/corpus``;
``--keep`` merges it, minimised, into ``tests/fuzz/corpus``, which the test suite replays.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import sanitized

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
COVERAGE = "-fsanitize-coverage=trace-pc,trace-cmp"
# Above 1,000 the judge in Python takes most of the time; lengths are multiplied by the targets themselves.
MAX_INPUT_BYTES = 1000
# Kept in the repository; larger ones tell nothing more.
MAX_KEPT_BYTES = 600
PROOF_SECONDS = 120
# Coverage at the start and at the end, and the figures behind it.
SUMMARY = re.compile(r"#\d+\s+(INITED|DONE)|stat::|INFO: Loaded")


def runtime() -> Path:
    """libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer, as atheris carries it.

    Raises:
        SystemExit: atheris is not installed.
    """
    spec = importlib.util.find_spec("atheris")
    if spec is None or spec.origin is None:
        raise SystemExit("fuzzing needs atheris; `pip install atheris`")
    return Path(spec.origin).parent.parent / "asan_with_fuzzer.so"


def build() -> None:
    """The instrumented modules in ``build/fuzz/src``.

    They are linked without the sanitizers' libraries: their symbols are those of ``runtime``.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    coverage, code = BUILD / "coverage.o", HERE / "coverage.c"
    changed = not coverage.exists() or coverage.stat().st_mtime < code.stat().st_mtime
    if changed:
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", code, "-o", coverage], check=True)
    sanitized.build(BUILD, (*sanitized.FLAGS, COVERAGE), [str(coverage)], *(["--force"] if changed else []))


def fuzz(target: str, *arguments: str | Path, **variables: str) -> tuple[int, Path]:
    """One run of libFuzzer; returns its exit status and the file with what it said."""
    environment = os.environ | {
        "LD_PRELOAD": str(runtime()),
        "PYTHONPATH": os.pathsep.join((str(BUILD / "src"), str(ROOT))),
        # Each object by malloc() alone, so that the sanitizer knows where it ends.
        "PYTHONMALLOC": "malloc",
        # CPython frees little at its end, all of which would be called a leak.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    # libFuzzer starts itself again to merge, by a name without arguments.
    itself = BUILD / f"{target}.sh"
    itself.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m tests.fuzz.loop {itself} {target} "$@"\n')
    itself.chmod(0o755)
    command = [itself, *arguments]
    said = BUILD / f"{target}.log"
    with said.open("wb") as log:
        done = subprocess.run(command, cwd=BUILD, env=environment | variables, stdout=log, stderr=log)
    return done.returncode, said


def prove() -> None:
    """See that guidance works.

    Raises:
        SystemExit: A planted bug is not found within two minutes.
    """
    library, found = BUILD / "planted.so", BUILD / "planted"
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    compiled = BUILD / "planted.o"
    subprocess.run(
        ["gcc", "-fPIC", *sanitized.FLAGS, COVERAGE, "-c", HERE / "planted.c", "-o", compiled], check=True
    )
    subprocess.run(["gcc", "-shared", compiled, BUILD / "coverage.o", "-o", library], check=True)
    options = ("-max_len=64", f"-max_total_time={PROOF_SECONDS}", f"-artifact_prefix={found}/", "-verbosity=0")
    fuzz("planted", *options, FUZZ_PLANTED=str(library))
    if not any(path.read_bytes().startswith(b"\x7a\x3c\x91\xe5bug") for path in found.iterdir()):
        raise SystemExit("the planted bug was not found: coverage of compiled code does not guide the fuzzer")
    print("the planted bug was found", flush=True)


def search(target: str, seconds: int) -> bool:
    """Fuzz one target for some time; whether nothing was found."""
    learned, found = BUILD / "corpus" / target, BUILD / "found"
    learned.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    status, said = fuzz(
        target,
        learned,
        kept,
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-dict={HERE / 'dictionary.txt'}",
        f"-artifact_prefix={found}/{target}-",
        "-timeout=20",
        "-print_final_stats=1",
    )
    lines = said.read_text(errors="replace").splitlines()
    print("\n".join(lines[-200:] if status else filter(SUMMARY.match, lines)), flush=True)
    return status == 0


def keep(target: str) -> None:
    """Merge what was learned into the corpus of the repository: the fewest inputs that cover it all."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        learned, kept = BUILD / "corpus" / target, CORPUS / target
        status, said = fuzz(target, "-merge=1", f"-max_len={MAX_KEPT_BYTES}", folder, kept, learned)
        if status or not any(Path(folder).iterdir()):
            raise SystemExit(f"the corpus of {target} was not merged, see {said}")
        for old in kept.iterdir():
            old.unlink()
        for new in Path(folder).iterdir():
            shutil.copyfile(new, kept / new.name[:16])


def main() -> None:
    """Fuzz; exit status 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted(path.name for path in CORPUS.iterdir())
    parser.add_argument("--seconds", type=int, default=60, help="all targets together")
    parser.add_argument("--target", action="append", choices=names, help="one of them; may be repeated")
    parser.add_argument("--prove", action="store_true", help="first, see that a planted bug is found")
    parser.add_argument("--keep", action="store_true", help="then, merge what was learned into tests/fuzz/corpus")
    parser.add_argument("--replay", type=Path, help="only run this input, once")
    options = parser.parse_args()
    targets = options.target or names
    build()
    if options.replay:
        for target in targets:
            status, said = fuzz(target, options.replay.absolute())
            print(said.read_text(errors="replace"))
        sys.exit(status)
    if options.prove:
        prove()
    clean = True
    for target in targets if options.seconds else ():
        print(f"--- {target}", flush=True)
        clean = search(target, max(1, options.seconds // len(targets))) and clean
    for target in targets if options.keep else ():
        keep(target)
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
