"""One line of `caspi check`."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    subject: str
    status: Literal["ok", "warn", "fail", "unknown"]
    """unknown: it could not be asked."""
    found: str
    fix: str = ""
    """What to do; empty when nothing has to be done."""
