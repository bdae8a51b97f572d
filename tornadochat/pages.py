"""The web client, as it was built into the package.

Behind ``gateway``. Files below /assets carry a hash of their content in their name and never change;
the page itself is asked for again each time, and answered 304 by its ETag.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import tornado.web

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "manifest-src 'self'",
        "connect-src 'self'",  # covers the WebSocket of the same host and port (CSP level 3)
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
YEAR_SECONDS = 365 * 86400
MISSING = (
    "The web client is not built. In a checkout: `make webapp`. The chat itself runs: "
    "its WebSocket is at /ws, its API at /api.\n"
)


def static_folder() -> Path:
    """Where the built client is; it may be missing in a checkout."""
    return Path(str(files("tornadochat").joinpath("static")))


def routes() -> list[Any]:
    """Routes of the web client."""
    return [(r"/(.*)", Page, {"path": str(static_folder()), "default_filename": "index.html"})]


class NotFound(tornado.web.RequestHandler):
    """A plain 404."""

    def prepare(self) -> None:
        """Always 404."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("There is nothing here.\n")


class Page(tornado.web.StaticFileHandler):
    """One file of the client, with the headers that keep it safe and cached."""

    def set_default_headers(self) -> None:
        """See ``tornado.web.RequestHandler``."""
        self.clear_header("Server")
        self.set_header("Content-Security-Policy", CSP)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        services = self.settings["services"]
        if services.settings.debug_headers:
            self.set_header("X-Worker", str(services.slot))

    def set_extra_headers(self, path: str) -> None:
        """Hashed files may be kept for good, everything else is asked for again."""
        if path.startswith("assets/"):
            self.set_header("Cache-Control", f"public, max-age={YEAR_SECONDS}, immutable")
        else:
            self.set_header("Cache-Control", "no-cache")

    def get_cache_time(self, path: str, modified: Any, mime_type: str) -> int:
        """``set_extra_headers`` decides alone."""
        return 0

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A line of text; what to do where the client was never built."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if status_code == 404 and not static_folder().is_dir():
            self.finish(MISSING)
        else:
            self.finish(f"{status_code}: {self._reason}\n")
