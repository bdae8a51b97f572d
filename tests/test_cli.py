"""Options: where they come from, which wins, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import SLOWNESS
from tornadochat import __version__
from tornadochat.cli import read_settings
from tornadochat.errors import StartError
from tornadochat.settings import OPTION_FIELDS, flag_of


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TORNADOCHAT_"):
            monkeypatch.delenv(name)


def settings(*arguments: str):  # type: ignore[no-untyped-def]
    return read_settings(["tornadochat", *arguments])


def test_both_forms_of_an_option_are_read() -> None:
    assert settings("--port", "9000").port == settings("--port=9000").port == 9000
    assert settings("--redis_prefix=x").redis_prefix == settings("--redis-prefix", "x").redis_prefix == "x"
    assert settings("--durable").durable is True and settings("--durable=false").durable is False
    assert settings("--allow-origin=https://a.example,https://b.example").allow_origin == [
        "https://a.example",
        "https://b.example",
    ]
    assert settings("--max-backlog=1000").max_backlog_bytes == 1000
    assert settings("--batch-window=0").batch_window_ms == 0
    assert settings().messages_per_second is None and settings("--messages-per-second=0").messages_per_second == 0


def test_the_command_line_wins_over_variables_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.conf"
    path.write_text("port = 1001\nworkers = 3\nhistory = 7\nallow_origin = ['https://a.example']\n")
    monkeypatch.setenv("TORNADOCHAT_PORT", "1002")
    monkeypatch.setenv("TORNADOCHAT_WORKERS", "4")
    found = settings("--config", str(path), "--port", "1003")
    assert (found.port, found.workers, found.history) == (1003, 4, 7)
    assert found.allow_origin == ["https://a.example"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port=70000"], "--port"),
        (["--port=abc"], "wrong kind"),
        (["--nonsense=1"], "--help"),
        (["serve"], "'serve' is no option"),
        (["--workers=-1"], "--workers"),
        (["--auth=maybe"], "--auth"),
        (["--auth=required"], "--jwt-key"),
        (["--jwt-key=short"], "32 bytes"),
        (["--jwt-key-file=/nowhere/at/all"], "--jwt-key-file"),
        (["--keyfile=x"], "--certfile"),
        (["--redis=http://x"], "--redis"),
        (["--redis-prefix={x}"], "--redis-prefix"),
        (["--trusted-proxies=10.0.0.0/99"], "--trusted-proxies"),
        (["--metrics-allow=here"], "--metrics-allow"),
        (["--history=0"], "--history"),
        (["--max-backlog=-5"], "--max-backlog"),
        (["--ping-seconds=nan"], "--ping-seconds"),
        (["--log-level=loud"], "--log-level"),
        (["--config=/nowhere/at/all"], "--config"),
    ],
)
def test_a_wrong_option_is_refused_and_named(arguments: list[str], words: str) -> None:
    with pytest.raises(StartError) as found:
        settings(*arguments)
    assert words in str(found.value)


def test_a_misspelt_name_in_a_file_or_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.conf"
    path.write_text("prot = 1001\n")
    with pytest.raises(StartError, match="'prot'"):
        settings("--config", str(path))
    monkeypatch.setenv("TORNADOCHAT_PROT", "1")
    with pytest.raises(StartError, match="TORNADOCHAT_PROT"):
        settings()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tornadochat", *arguments],
        capture_output=True,
        text=True,
        timeout=20 * SLOWNESS,
    )


def test_help_and_version_answer_without_loading_the_server() -> None:
    begin = time.monotonic()
    helped, version = run("--help"), run("--version")
    assert time.monotonic() - begin < 5 * SLOWNESS
    assert version.stdout.strip() == f"tornadochat {__version__}"
    assert "--redis-prefix" in helped.stdout + helped.stderr
    loaded = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys, tornadochat.cli; print([m for m in sys.modules if 'redis' in m])",
        ],
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "[]"


def test_a_wrong_option_ends_with_status_2_and_no_traceback() -> None:
    found = run("--auth=maybe")
    assert found.returncode == 2 and found.stderr.startswith("tornadochat: ") and "Traceback" not in found.stderr


def test_every_option_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    missing = [
        field.name for field in OPTION_FIELDS if f"`--{flag_of(field.name).replace('_', '-')}`" not in readme
    ]
    assert missing == []
