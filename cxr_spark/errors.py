"""What ends a run with one line: the mistakes that a user can make, and what befalls a run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a flag, configuration or folder; jobs print its line and exit with status 2."""

    def __init__(self, message: str) -> None:
        """Make one line of the message."""
        super().__init__(" ".join(message.split()))


class RunFailed(Exception):
    """A run that cannot go on, through no mistake of a flag; jobs print its line and exit with 1.

    What is stored stays usable, and its text says how to go on.
    """

    def __init__(self, message: str) -> None:
        """Make one line of the message."""
        super().__init__(" ".join(message.split()))


def without_credentials(text: str) -> str:
    """Return a text whose addresses, as http://user:password@host, tell neither of both."""
    return re.sub(r"://[^\s'\"]*@", "://", text)


def nearest(name: object, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``names``, or "" where none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.5)
    return f" Did you mean '{by_folded[close[0]]}'?" if close else ""


def one_of(what: str, name: object, names: Iterable[str]) -> UserError:
    """Return the error of a ``name`` that is none of ``names``."""
    known = list(names)
    return UserError(
        f"Expected {what} to be one of {', '.join(known)}. "
        f"Received: {name!r}.{nearest(name, known)}"
    )
