"""``python -m tests.fuzz.loop ITSELF TARGET libfuzzer-arguments``: one process of libFuzzer, started by ``run``.

ITSELF is an executable that starts the same again, with other arguments behind TARGET. TARGET is one of
``targets.TARGETS``, or ``planted``: the library whose path is in FUZZ_PLANTED.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable


def find_target(name: str) -> Callable[[bytes], None]:
    """The function that is fed; its modules are loaded by now, so that their counters are registered."""
    if name == "planted":
        library = ctypes.CDLL(os.environ["FUZZ_PLANTED"])
        return lambda data: library.planted(data, len(data))
    from tests.fuzz.targets import TARGETS

    return TARGETS[name]


def main() -> None:
    """Run until libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")  # untyped, and installed for fuzzing alone
    itself, name, *arguments = sys.argv[1:]
    atheris.Setup([itself, *arguments], find_target(name))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
