"""Leads a run of Locust to a proven end: everybody joins, holds, is asked what is missing, and goes.

Runs in the process that leads Locust, the master or the only one, and talks to the ``Stage`` of each process that
has users by Locust's own messages, which in a single process are calls. Whoever ends the run, be it the web
page's button, ``--run-time`` or a signal, the users are asked before they are ended.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from bench.stage import KIND, Stage, new_run, present_stage
from bench.tally import Tally

log = logging.getLogger("bench")

# Messages between the processes.
HOLD, ASK, TALLY = "chat-hold", "chat-ask", "chat-tally"
# Between two looks at whether everybody has joined, or has everything.
LOOK_SECONDS = 1.0
# A ramp in which nobody more has joined for so long is over.
PATIENCE_SECONDS = 60.0
# All workers have answered by then, or are counted out.
ANSWER_SECONDS = 20.0
RAMP_DOWN_SECONDS = 120.0


class Conductor:
    """See the module.

    Attributes:
        outcome: What the run came to, once it is over.
    """

    def __init__(self, environment: Environment) -> None:
        assert environment.parsed_options is not None and environment.runner is not None
        self.environment = environment
        self.options = environment.parsed_options
        self.runner: Any = environment.runner
        self.outcome: Tally | None = None
        self._round = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self._settling = False
        self._leading: gevent.Greenlet | None = None
        self.runner.register_message(TALLY, self._on_tally)
        environment.events.test_start.add_listener(self._on_start)
        environment.events.spawning_complete.add_listener(self._on_spawned)
        environment.events.test_stopping.add_listener(self._on_stopping)

    # Locust's events ---------------------------------------------------------------------------

    def _on_start(self, **_event: Any) -> None:
        self.outcome, self._settling = None, False
        self._tell(phase="ramp")

    def _on_spawned(self, **_event: Any) -> None:
        if not self._settling and (self._leading is None or self._leading.dead):
            self._leading = gevent.spawn(self._lead)

    def _on_stopping(self, **_event: Any) -> None:
        self.settle()

    def _on_tally(self, environment: Environment, msg: Any, **_event: Any) -> None:
        if msg.data["round"] == self._round:
            self._answers[msg.node_id] = msg.data["tally"]

    # The run -----------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Everybody is spawned: wait until all have joined, hold, and end the run where it is told how long."""
        self._wait_until_all_joined()
        if self._settling:
            return
        self.runner.send_message(HOLD, {})
        self._tell(phase="hold")
        if not self.options.hold:
            return
        gevent.sleep(self.options.hold)
        self.settle()
        self._tell(phase="ramp down")
        self.runner.start(0, self.options.ramp_down)
        deadline = time.monotonic() + RAMP_DOWN_SECONDS
        while self.runner.user_count and time.monotonic() < deadline:
            gevent.sleep(LOOK_SECONDS)
        self._tell(phase="end")
        self.runner.quit()

    def _wait_until_all_joined(self) -> None:
        entered, since = -1, time.monotonic()
        while not self._settling:
            found = self._ask("presence")
            if found.entered == found.users == self.runner.target_user_count:
                return
            if found.entered != entered:
                entered, since = found.entered, time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                log.warning("%d of %d users have joined; going on without the others", entered, found.users)
                return
            gevent.sleep(LOOK_SECONDS)

    def settle(self) -> None:
        """End the sending, wait for what is on its way, and judge; once for each run."""
        if self._settling:
            return
        self._settling = True
        self._tell(phase="settle")
        deadline = time.monotonic() + self.options.settle
        self._ask("last call")
        gevent.sleep(LOOK_SECONDS)  # most of what is on its way comes at once
        while not self._ask("tally").settled and time.monotonic() < deadline:
            gevent.sleep(LOOK_SECONDS)
        self.outcome = self._ask("judgement")
        log.info("%s", "; ".join(f"{name} {value}" for name, value in self.outcome.facts().items()))
        self._tell(outcome=self.outcome.as_dict())

    def _ask(self, what: str) -> Tally:
        """The tally of all processes; at the judgement, one that does not answer is a failure of the run.

        Args:
            what: Only who is there (``presence``, or ``last call``, after which nobody speaks any more), the
                whole ``tally``, or the ``judgement``.
        """
        self._round += 1
        self._answers = {}
        self.runner.send_message(ASK, {"round": self._round, "what": what})
        deadline = time.monotonic() + ANSWER_SECONDS
        while (silent := self._asked() - set(self._answers)) and time.monotonic() < deadline:
            gevent.sleep(0.05)
        if silent and what == "judgement":
            self.environment.stats.log_error(KIND, "run", f"{len(silent)} workers did not tell what they saw")
        return Tally.sum(self._answers.values())

    def _asked(self) -> set[str]:
        if not isinstance(self.runner, MasterRunner):
            return set()  # its own stage has answered already
        return {client.id for client in self.runner.clients.all if client.state != STATE_MISSING}

    def _tell(self, **what: Any) -> None:
        """Note what happens now, for whoever reads ``--progress``."""
        log.info("%s", what.get("phase", "judged"))
        if self.options.progress:
            with Path(self.options.progress).open("a") as file:
                file.write(json.dumps(what) + "\n")


class Answering:
    """The other side: hands what the conductor says to the stage of this process."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner: Any = environment.runner
        self.runner.register_message(HOLD, self._on_hold)
        self.runner.register_message(ASK, self._on_ask)
        environment.events.test_start.add_listener(self._on_start)

    def _on_start(self, **_event: Any) -> None:
        new_run(self.environment)

    def _on_hold(self, **_event: Any) -> None:
        stage = present_stage(self.environment)
        if stage is not None:
            stage.hold()

    def _on_ask(self, environment: Environment, msg: Any, **_event: Any) -> None:
        stage, what = present_stage(self.environment), msg.data["what"]
        found = self._answer(stage, what) if stage is not None else Tally()
        if what == "judgement" and isinstance(self.runner, WorkerRunner):
            self.runner._send_stats()  # the failures are to be there before the master ends
        self.runner.send_message(TALLY, {"round": msg.data["round"], "tally": found.as_dict()})

    def _answer(self, stage: Stage, what: str) -> Tally:
        if what == "last call":
            stage.call_last()
        if what in ("presence", "last call"):
            return stage.presence()
        found = stage.tally()
        if what == "judgement":
            stage.finish(found)
        return found
