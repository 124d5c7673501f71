"""The admin password of the page, with back-off after wrong attempts.

Attempts are counted for each browser, because a class may share one address: a pupil who guesses
must not lock the teacher out. An address may try STRANGERS times a minute in all, whatever its
cookies; a browser that has given the right password once is not counted there.
"""

import hmac
import logging

from minigpt.arena.access.rate_limit import Backoff, RateLimit
from minigpt.common.errors import UserError

STRANGERS = 30  # attempts a minute of one address, by browsers that never had the password

log = logging.getLogger("minigpt")


class AdminPassword:
    """password: the correct one; "": there is no admin, and check() always fails."""

    def __init__(self, password):
        self._password, self._failures = password, Backoff()
        self._strangers, self._known = RateLimit(STRANGERS, STRANGERS), set()

    def __bool__(self):
        """Whether there is an admin."""
        return self._password != ""

    def check(self, given, address, strings, browser=None):
        """UserError if the password is wrong, or after wrong attempts if the browser or the address
        must wait. browser: the id in its cookie, None without one. strings: minigpt.arena.i18n, for
        the message."""
        key = browser or address
        wait = self._failures.wait(key)
        if not wait and browser not in self._known:
            wait = self._strangers.wait(address)
        if wait:
            raise UserError(strings["wrong_passwords"].format(seconds=max(1, round(wait))))
        is_right = hmac.compare_digest(given.encode(), self._password.encode())
        if not (self and is_right):
            self._failures.failed(key)
            log.warning("wrong admin password from %s", address)
            raise UserError(strings["wrong_password"])
        self._failures.succeeded(key)
        if browser is not None:
            self._known.add(browser)
