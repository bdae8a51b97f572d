"""The command line: options from flags, TORNADOCHAT_* variables and a file, checked before anything runs.

First in the chain, before ``supervisor``. ``--help`` and ``--version`` import nothing heavy.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import runpy
import sys
import types
import typing
from pathlib import Path
from typing import Any

import tornado.log
from tornado.options import Error, OptionParser

from tornadochat import __version__
from tornadochat.errors import StartError
from tornadochat.settings import OPTION_FIELDS, Settings, flag_of

ENV_PREFIX = "TORNADOCHAT_"
LOG_LEVELS = ("debug", "info", "warning", "error")
SCHEMES = (
    *("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://"),
    *("redis+cluster://", "rediss+cluster://"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; the exit status, 1 when it cannot start, 2 when an option is wrong."""
    try:
        settings = read_settings(sys.argv if arguments is None else ["tornadochat", *arguments])
    except StartError as error:
        print(f"tornadochat: {error}", file=sys.stderr)
        return 2
    start_logging(settings.log_level)
    from tornadochat import worker
    from tornadochat.supervisor import Supervisor

    def announce(text: str) -> None:
        print(text, flush=True)

    try:
        return Supervisor(settings, worker.run, announce).run()
    except StartError as error:
        print(f"tornadochat: {error}", file=sys.stderr)
        return 1


def start_logging(level: str) -> None:
    """Log lines of Tornado's form to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(tornado.log.LogFormatter(color=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        # Every wrong request of a stranger is a warning there; ours are in the metrics.
        for name in ("tornado.access", "tornado.general", "asyncio"):
            logging.getLogger(name).setLevel(logging.ERROR)


def read_settings(arguments: list[str]) -> Settings:
    """Settings from the command line, then TORNADOCHAT_* variables, then a file, then the defaults.

    Args:
        arguments: With the program's name first, as ``sys.argv``.

    Raises:
        StartError: An option is unknown or has a value that will not do.
        SystemExit: After ``--help`` or ``--version``.
    """
    parser = make_parser()
    arguments = with_equals(parser, arguments)
    try:
        rest = parser.parse_command_line(list(arguments), final=False)
        if rest:
            raise StartError(f"{rest[0]!r} is no option; see --help")
        if parser.config:
            read_file(parser, Path(parser.config))
        read_environment(parser)
        parser.parse_command_line(list(arguments))
    except Error as error:
        raise StartError(f"{error}; see --help") from None
    except (ValueError, TypeError) as error:
        raise StartError(f"an option has a value of the wrong kind: {error}") from None
    settings = Settings(**{field.name: _value(parser, field) for field in OPTION_FIELDS})
    check(settings)
    return settings


def with_equals(parser: OptionParser, arguments: list[str]) -> list[str]:
    """``--port 8000`` as ``--port=8000``, the one form that Tornado's parser reads."""
    switches = {name for name, option in parser._options.items() if option.type is bool}
    joined: list[str] = []
    for argument in arguments:
        name = joined[-1].lstrip("-").replace("_", "-") if joined else ""
        waits = joined and joined[-1].startswith("-") and "=" not in joined[-1]
        if waits and name in parser._options and name not in switches:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def make_parser() -> OptionParser:
    """Tornado's parser with every field of ``Settings``."""
    parser = OptionParser()
    parser.define("config", type=str, help="file of options, name = value in Python's form", group="server")
    parser.define("version", type=bool, callback=_print_version, help="print the version and end", group="server")
    hints = typing.get_type_hints(Settings)
    for field in OPTION_FIELDS:
        kind, multiple = _kind(hints[field.name])
        parser.define(
            flag_of(field.name),
            default=_default(field),
            type=kind,
            multiple=multiple,
            help=field.metadata["help"],
            group=field.metadata["group"],
        )
    return parser


def _default(field: Any) -> Any:
    value = getattr(Settings(), field.name)
    return str(value) if isinstance(value, Path) else value


def _kind(hint: Any) -> tuple[type, bool]:
    if typing.get_origin(hint) is list:
        return str, True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return (str if hint is Path else hint), False


def _value(parser: OptionParser, field: Any) -> Any:
    value = getattr(parser, flag_of(field.name))
    if field.name == "data_dir":
        return Path(value).expanduser()
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tornadochat {__version__}")
        sys.exit(0)


def read_file(parser: OptionParser, path: Path) -> None:
    """Options from a file of Tornado's form.

    Raises:
        StartError: It cannot be read, or names what is no option.
    """
    try:
        names = runpy.run_path(str(path))
    except OSError as error:
        raise StartError(f"--config {path} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise StartError(f"--config {path} is not right: {error}") from None
    known = {name.replace("-", "_") for name in parser}
    for name, value in names.items():
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in known:
            raise StartError(f"--config {path}: {name!r} is no option; see --help")
    parser.parse_config_file(str(path), final=False)


def read_environment(parser: OptionParser) -> None:
    """Options from TORNADOCHAT_* variables.

    Raises:
        StartError: One names what is no option.
    """
    known = {name.replace("-", "_"): name for name in parser}
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in known or name in ("help", "version", "config"):
            raise StartError(f"{variable} names no option; see --help")
        parser._options[name.replace("_", "-")].parse(value)


def check(settings: Settings) -> None:
    """Refuse values that cannot work together.

    Raises:
        StartError: With the option's name and what it must be.
    """
    if not 0 <= settings.port <= 65535:
        raise StartError("--port must be from 0 to 65535")
    if settings.workers < 0:
        raise StartError("--workers must be 0 (one for each core) or more")
    if settings.keyfile and not settings.certfile:
        raise StartError("--keyfile needs --certfile")
    if settings.auth not in ("guest", "required"):
        raise StartError("--auth must be guest or required")
    if settings.auth == "required" and not (settings.jwt_key or settings.jwt_key_file):
        raise StartError("--auth required needs --jwt-key or --jwt-key-file, or nobody could come in")
    if settings.jwt_key and settings.jwt_key_file:
        raise StartError("give --jwt-key or --jwt-key-file, not both")
    if settings.redis and not settings.redis.startswith(SCHEMES):
        raise StartError(f"--redis must begin with {', '.join(SCHEMES)}")
    if settings.log_level not in LOG_LEVELS:
        raise StartError(f"--log-level must be one of {', '.join(LOG_LEVELS)}")
    if (
        not settings.redis_prefix
        or not settings.redis_prefix.isascii()
        or set("{} \n") & set(settings.redis_prefix)
    ):
        raise StartError("--redis-prefix must be ASCII without braces and spaces")
    _check_networks(settings)
    _check_numbers(settings)
    if settings.jwt_key or settings.jwt_key_file:
        from tornadochat.auth import JwtKeys

        JwtKeys(settings)


def _check_networks(settings: Settings) -> None:
    for name in ("trusted_proxies", "metrics_allow"):
        for network in getattr(settings, name):
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise StartError(f"--{name.replace('_', '-')}: {network!r} is no address or network") from None


# Must be above 0: everything that is a size or a time without "0 no limit" in its help.
POSITIVE = (
    *("history", "history_bytes", "history_ttl_seconds", "repeat_window_seconds", "repeat_entries"),
    *("session_seconds", "max_text_chars", "max_text_bytes", "max_message_bytes", "handshake_seconds"),
    *("ping_seconds", "pong_seconds", "close_seconds", "stuck_seconds", "publish_seconds"),
    *("max_backlog_bytes", "max_answer_bytes", "replay_bytes", "publish_queue"),
)
MAX_MESSAGE_BYTES = 1 << 30


def _check_numbers(settings: Settings) -> None:
    for field in OPTION_FIELDS:
        value, flag = getattr(settings, field.name), "--" + flag_of(field.name).replace("_", "-")
        if isinstance(value, (int, float)) and (value < 0 or value != value or value == float("inf")):
            raise StartError(f"{flag} must be a number from 0 on")
        if field.name in POSITIVE and value <= 0:
            raise StartError(f"{flag} must be above 0")
    if settings.max_message_bytes > MAX_MESSAGE_BYTES:
        raise StartError(f"--max-message-bytes must be at most {MAX_MESSAGE_BYTES}")
