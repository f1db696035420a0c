"""URLs of databases and servers: made of paths, read, and shown without the secrets in them."""

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

SHOWN_PARAMETERS = {
    *("host", "port", "user", "dbname", "unix_socket", "service", "driver"),
    *("sslmode", "sslrootcert", "sslcert", "charset", "client_encoding", "application_name"),
    *("connect_timeout", "timeout", "target_session_attrs", "mode", "uri"),
    *("encrypt", "trustservercertificate"),
}
"""Of a URL's query what can hold no secret. Everything else may, whatever it is called."""

_USER_AND_REST = re.compile(r"(?<=://)([^\s/:]*):(\S*)")
"""Of a URL, up to the next space. All of it, so that a text is gone through once."""

_SPACED_PASSWORD = re.compile(
    r"(?<=://)([^\s/@:\[]*):"
    r"(?!\d{1,5}(?:[/?#]|[,.;:)\]'\"]*(?:\s|$)))"  # a port
    r"[^\s@]{0,200}(?: [^\s@]{0,200}){1,5}@"
)

_QUOTE = r"(?:\\*['\"])"  # also in JSON that is a string of JSON

_SETTING = re.compile(
    rf"(?<![\w-])({_QUOTE}?[\w-]*"
    rf"(?:(?:pass(?:word|wd|phrase)|pwd|secret|[_-]token|api[_-]?key){_QUOTE}?\s*[=:]"
    rf"|(?:pass|token)(?:\s*=|{_QUOTE}\s*[=:]))\s*)"  # not the "forward pass: ..." of an error
    r"(?:(?:'(?:[^'\\]|\\.)*(?:'|$))+|(?:\"(?:[^\"\\]|\\.)*(?:\"|$))+|[^\s&]+)",
    re.IGNORECASE | re.DOTALL,
)
"""A quoted value ends with its quote, or with the text; another one at a space or an ``&``."""


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, whatever its path is made of.

    Where characters of the path are escaped, the URL names the driver too: of a plain
    ``sqlite:///`` MLflow takes the rest for a path as it stands, and makes its folders.
    """
    from sqlalchemy.engine import URL  # slow

    url = URL.create("sqlite", database=str(path.absolute()))
    shown = url.render_as_string()
    return url.set(drivername="sqlite+pysqlite").render_as_string() if "%" in shown else shown


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for a database server, or one in memory.

    Raises what SQLAlchemy raises for a URL that is none.
    """
    from sqlalchemy.engine import make_url  # slow

    parts = make_url(url)
    if parts.get_backend_name() != "sqlite" or parts.database in (None, "", ":memory:"):
        return None
    return Path(str(parts.database))


def is_url(text: str) -> bool:
    """Whether ``text`` is the URL of a server or a database, and can be read without doubt."""
    return "://" in text and _shown(text, password="") is not None


def in_memory(url: str) -> bool:
    """Whether ``url`` is an SQLite database that ends with the process."""
    return url.startswith(("sqlite:", "sqlite+")) and sqlite_file(url) is None


def shown_url(url: str, *, password: str = "") -> str:
    """Return ``url`` as it may be shown and kept: without password and unknown parameters.

    ``http://ann:secret@server`` becomes ``http://ann@server``, which is still to be typed or
    opened; with a ``password``, that stands for it. Of what is no URL only the scheme is left.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "..." if re.search(r"[@?=:]", url) else url
    hidden = f"{scheme}://..." if re.fullmatch(r"[\w+.-]+", scheme) else "..."
    return _shown(url, password=password) or hidden


def without_secrets(text: str) -> str:
    """Return a text without the passwords of the URLs in it and any ``password=...``."""
    text = _USER_AND_REST.sub(_without_password, _SPACED_PASSWORD.sub(r"\1:***@", text))
    return _SETTING.sub(r"\1***", text)


def _without_password(match: re.Match[str]) -> str:
    _, at, host = match[2].rpartition("@")
    return f"{match[1]}:***@{host}" if at else match[0]


def _shown(url: str, *, password: str) -> str | None:
    try:
        if url.lower().startswith(("http://", "https://")):
            return _shown_server(url, password)
        return _shown_database(url, password)
    except ValueError:  # a port that is no number, brackets that do not close
        return None


def _shown_server(url: str, password: str) -> str | None:
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    _ = parts.port  # ValueError if it is none
    rest = url.partition("://")[2].removeprefix(parts.netloc)
    if not parts.hostname or (":" in parts.netloc and "@" in rest):  # a password with a /
        return None
    user, colon, _ = userinfo.partition(":")
    stars = f":{password}" if colon and password else ""
    netloc = f"{user}{stars}{at if user or stars else ''}{host}"
    return parts._replace(netloc=netloc, query="", fragment="").geturl()


def _shown_database(url: str, password: str) -> str | None:
    from sqlalchemy.engine import URL, make_url  # slow
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except ArgumentError:
        return None
    after_password = url.partition("@")[2].partition("?")[0]
    if parts.password is not None and "@" in after_password.partition("/")[2]:
        return None  # a password with an @ and a /
    shown = URL.create(
        parts.drivername,
        username=parts.username,
        host=parts.host and parts.host.rpartition("@")[2],  # nor does SQLAlchemy expect an @
        port=parts.port,
        database=parts.database,
        query={k: v for k, v in parts.query.items() if k.lower() in SHOWN_PARAMETERS},
    ).render_as_string()
    if parts.password is None or not password:
        return shown
    user = quote(parts.username or "", safe=" +")
    return shown.replace(f"://{user}@", f"://{user}:{password}@", 1)
