"""The health of endpoints, checked again and again in the background."""

import contextlib
import threading
import time

from minigpt.common.errors import UserError

INTERVAL_SECONDS = 30.0  # between two checks of all endpoints


class HealthMonitor:
    """The latest Health (minigpt.arena.endpoints) of each endpoint.

    A check also tells an endpoint which settings its server takes.
    """

    def __init__(self, endpoints):
        self._endpoints = endpoints
        self._latest = {}  # name → Health

    def start(self):
        """Check all endpoints every INTERVAL_SECONDS, in a background thread."""
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def latest(self, name):
        """The last Health of an endpoint; None before its first check."""
        return self._latest.get(name)

    def check(self, endpoint):
        """Check one endpoint."""
        self._latest[endpoint.name] = endpoint.probe()

    def check_all(self):
        """Check all endpoints one after the other; yields each name when its check is done."""
        for name in self._endpoints.names():
            with contextlib.suppress(UserError):  # it was removed in the meantime
                self.check(self._endpoints.get(name))
            yield name

    def _run(self):
        while True:
            for _ in self.check_all():
                pass
            time.sleep(INTERVAL_SECONDS)
