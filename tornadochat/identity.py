"""How sessions are signed and which were ended: kept as the store has it, for as long as a worker lives.

All machines find the same secret in the store. A store that is away is asked until it tells; one that
lost its data is given the secret back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tornadochat.auth import Authenticator, load_secrets
from tornadochat.errors import StoreError

if TYPE_CHECKING:
    from tornadochat.broker import Broker
    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

# Pauses between tries to read what the store knows of sessions.
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.1, 2.0


class IdentityKeeper:
    """See the module.

    Args:
        broker: Of the worker.
        settings: Of the whole server.

    Attributes:
        authenticator: None until the session secret is known.
        known: Set from then on.
    """

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.authenticator: Authenticator | None = None
        self.known = asyncio.Event()
        self._broker = broker
        self._settings = settings
        self._wanted = asyncio.Event()
        self._wanted.set()

    def ask(self) -> None:
        """Have the store asked again: it is back, or another worker has put something there."""
        self._wanted.set()

    async def keep(self) -> None:
        """Ask whenever that is wanted, until the store tells; runs until it is cancelled."""
        wait = FIRST_WAIT_SECONDS
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._learn()
            except (StoreError, OSError) as error:
                log.debug("the session secret cannot be read yet: %s", error)
                self._wanted.set()
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_WAIT_SECONDS)
            else:
                wait = FIRST_WAIT_SECONDS
                self.known.set()

    async def _learn(self) -> None:
        known = self.authenticator.secrets if self.authenticator is not None else ()
        found, put_back = await load_secrets(self._broker.redis, self._settings, known)
        authenticator = self.authenticator or Authenticator(self._settings, found)
        authenticator.secrets = found
        await authenticator.load_ended(self._broker.redis)
        self.authenticator = authenticator
        if put_back:  # workers that came up with an empty store do not know it
            self._broker.publish_control(b'{"kind":"secrets"}')
