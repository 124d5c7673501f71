"""The admin password of the page, with back-off after wrong attempts."""

import hmac
import logging

from minigpt.arena.access.rate_limit import Backoff
from minigpt.common.errors import UserError

log = logging.getLogger("minigpt")


class AdminPassword:
    """password: the correct one; "": there is no admin, and check() always fails."""

    def __init__(self, password):
        self._password, self._failures = password, Backoff()

    def __bool__(self):
        """Whether there is an admin."""
        return self._password != ""

    def check(self, given, address, strings):
        """UserError if the password is wrong, or if the address must wait after wrong attempts.
        strings: minigpt.arena.i18n, for the message."""
        wait = self._failures.wait(address)
        if wait:
            raise UserError(strings["wrong_passwords"].format(seconds=max(1, round(wait))))
        is_right = hmac.compare_digest(given.encode(), self._password.encode())
        if not (self and is_right):
            self._failures.failed(address)
            log.warning("wrong admin password from %s", address)
            raise UserError(strings["wrong_password"])
        self._failures.succeeded(address)
