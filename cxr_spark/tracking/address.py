"""Where MLflow is, as --mlflow gives it; what must not be shown of it is kept apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cxr_spark.errors import UserError, without_credentials

EXPECTED = (
    "Expected --mlflow to be the address of a tracking server, as http://HOST:5000, "
    "or a local store, as sqlite:///FILE.db."
)
_SERVERS = ("http", "https")
MAX_REASON = 500


@dataclass(frozen=True)
class Address:
    """Where MLflow is.

    Attributes:
        scheme: http, https, file, or that of a database.
        uri: as MLflow takes it; of a server, without user and password.
        shown: as it may be printed.
        user, password: where the address held them.
    """

    scheme: str
    uri: str = field(repr=False)
    shown: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def is_server(self) -> bool:
        """Whether it is a tracking server."""
        return self.scheme in _SERVERS

    @property
    def is_database(self) -> bool:
        """Whether MLflow's own tables are read and written, with no server between."""
        return self.scheme not in (*_SERVERS, "file")

    @property
    def sqlite_file(self) -> Path | None:
        """The file of a SQLite store."""
        if self.scheme != "sqlite":
            return None
        return Path(urlsplit(self.uri).path[1:]).absolute()

    def without_secrets(self, text: str) -> str:
        """Return a text of MLflow in one line, cut, without what the address keeps to itself."""
        text = text.replace(self.uri, self.shown)
        for secret in (self.password, urlsplit(self.uri).query):
            text = text.replace(secret, "***") if secret else text
        return without_credentials(" ".join(text.split()))[:MAX_REASON]


def read_address(given: str) -> Address:
    """Return the address that a user gave.

    Raises:
        UserError: it is none; the text shows neither user nor password.
    """
    hidden = without_credentials(given.split("?")[0])
    if "://" not in given:
        hidden = hidden.rpartition("@")[2]
    received = f"{EXPECTED} Received: {hidden or 'nothing'}"
    try:
        parts = urlsplit(given)
        _ = parts.port  # which is read no sooner
    except ValueError as error:
        raise UserError(received) from error
    scheme = parts.scheme
    if scheme == "sqlite" and (parts.netloc or not parts.path.strip("/")):
        raise UserError(f"{received} (a full path takes four slashes)")
    if scheme in ("sqlite", "file"):
        return Address(scheme, given, given.split("?")[0])
    if "://" not in given or not parts.netloc:
        raise UserError(received)
    place = parts.netloc.rpartition("@")[2]
    bare = parts._replace(netloc=place).geturl().rstrip("/")
    credentials: tuple[str | None, str | None] = (None, None)
    if "@" in parts.netloc:
        credentials = unquote(parts.username or ""), unquote(parts.password or "")
    # MLflow writes the address of a server into its errors, and takes both from elsewhere.
    uri = bare if scheme in _SERVERS else given
    return Address(scheme, uri, bare.split("?")[0], *credentials)
