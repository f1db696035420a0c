"""URLs lead where a path says, and nobody sees the secrets in them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from knee_tune.commands.home import Home, Places
from knee_tune.errors import UserError, first_line, one_line
from knee_tune.study.storage import check_storage_url
from knee_tune.tracking import resolve_tracking_uri
from knee_tune.tracking.store import local_store
from knee_tune.urls import in_memory, is_url, shown_url, sqlite_file, sqlite_url, without_secrets

NAMES = (
    *("plain", "two words", "50%", "a%20b", "%2F", "%%", "what?", "a?b=c&d", "#1", "a#b", "+", "&"),
    *("it's", 'say "hi"', "grüße", "漢字", "👩‍💻", "{x}", "{", "}", "[bold]", "a@b", "a:b@c", ":"),
    *("$HOME", "~", "back\\slash", "file:x", ":memory:", "http:", "-x", " lead", "trail "),
)

SECRETS = (
    "http://ann:secret@h:5000",
    "https://ann:secret@h/mlflow?x=secret#secret",
    "http://ann:12/secret@h",
    "http://ann:a?secret@h",
    "http://ann:a#secret@h",
    "http://ann:a[secret@h",
    "http://ann:secret@[",
    "http://ann:secret@h:port",
    "http://secret:secret",
    "postgresql://ann:secret@h/d",
    "postgresql://ann:se/cret/secret@h/d",
    "postgresql://ann:p@secret@h/d",
    "postgresql://ann:p@w/secret@h/d",
    "postgresql://ann:secret#?&@h/d",
    "postgresql://ann:my secret@h/d",
    "postgresql://ann%40corp:secret@h/d",
    "postgresql://ann@corp:secret@h/d",
    "postgresql://:secret@h/d",
    "postgresql://ann:secret",
    "postgresql://ann:secret@h:port/d",
    "postgresql://h/d?user=ann&password=secret",
    "postgresql://h/d?user=ann&PASSWORD=secret&sslmode=require",
    "postgresql://h/d?sslpassword=secret&options=-csecret",
    "mysql://h/d?passwd=secret",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dsecret",
    "nosuch://ann:secret@h/d",
    "ann:secret@h/d",
    "password=secret",
)


def refusal(check: Callable[[], object]) -> str:
    """What a check says; nothing if it passes."""
    try:
        check()
    except UserError as error:
        return one_line(str(error))
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_any_name_makes_a_url_that_leads_back_to_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    file = folder / "optuna.db"
    url = sqlite_url(file)
    assert sqlite_file(url) == file
    assert sqlite_file(shown_url(url)) == file  # as in a command to be typed
    assert sqlite_file(local_store(folder)) == folder / "mlflow.db"

    folder.mkdir()
    with sqlalchemy.create_engine(url).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE x (y INT)")
    template = url.replace("{", "{{").replace("}", "}}")
    assert RDBStorage._fill_storage_url_template(template) == url
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["optuna.db"]


def test_a_url_of_a_plain_path_is_what_it_has_always_been(tmp_path: Path) -> None:
    assert sqlite_url(tmp_path / "my runs" / "x.db") == f"sqlite:///{tmp_path}/my runs/x.db"
    assert sqlite_file("sqlite:///runs/x.db") == Path("runs/x.db")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "\x07", "\x1b[31m", "\u202eabc", os.fsdecode(b"\xff")]
)
def test_a_home_that_no_terminal_can_show_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be shown") as refusal:
        Home(Path(name))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("password", ["", "***"])
def test_a_secret_is_not_shown(url: str, password: str) -> None:
    shown = shown_url(url, password=password)
    assert "secret" not in shown.removeprefix("http://secret")
    assert "secret" not in refusal(lambda: check_storage_url(url))
    assert "secret" not in refusal(lambda: resolve_tracking_uri(Path("home"), url))
    if is_url(url):
        places = Places(home=Home(Path("home")), storage_url=url, tracking_uri=url)
        typed = places.command("register", "study", tracking=True)
        assert "secret" not in f"{typed} {places.ui_command}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://ann:x@h:5000/mlflow/", "http://ann@h:5000/mlflow/"),
        (
            "postgresql+psycopg://a:x@[::1]:5/d?sslmode=require",
            "postgresql+psycopg://a@[::1]:5/d?sslmode=require",
        ),
        ("sqlite:////a/b@c.db", "sqlite:////a/b%40c.db"),
        ("databricks", "databricks"),
        ("optuna.db", "optuna.db"),
        ("http://[", "http://..."),
    ],
)
def test_all_else_of_a_url_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_an_error_does_not_tell_secrets_either() -> None:
    said = "API request to http://ann:a:b@c@h:5000/api failed: password='a b' PGPASSWORD=a (see http://h/a@b)"
    assert first_line(ValueError(said)) == (
        "API request to http://ann:***@h:5000/api failed: password=*** PGPASSWORD=*** "
        "(see http://h/a@b)"
    )
    assert without_secrets("sqlite:////home/a:b@c/x.db") == "sqlite:////home/a:b@c/x.db"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("password=hun,ter2 x", "password=*** x"),
        ("password=se'cr;e\"t x", "password=*** x"),
        ("password='it''s it\\'s' x", "password=*** x"),
        ("password='cut off", "password=***"),
        ("password: hun,ter2 x", "password: *** x"),
        ("h?password=hun,ter2&sslmode=require", "h?password=***&sslmode=require"),
        ("{'password': 'a b', 'host': 'h'}", "{'password': ***, 'host': 'h'}"),
        ('{"api-key":"a,b","host":"h"}', '{"api-key":***,"host":"h"}'),
        ("{'token': 'a'}", "{'token': ***}"),
        ('"{\\"password\\": \\"x\\", 1}"', '"{\\"password\\": *** 1}"'),
        ("MLFLOW_TRACKING_TOKEN=a,b", "MLFLOW_TRACKING_TOKEN=***"),
        ("postgresql://ann:p w@h/d", "postgresql://ann:***@h/d"),
        ("postgresql://ann@corp:p@w@h/d", "postgresql://ann@corp:***@h/d"),
        ("http://a:b://c@h", "http://a:***@h"),
    ],
)
def test_of_a_secret_nothing_is_left(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


@pytest.mark.parametrize(
    "said",
    [
        "forward pass: loss is nan",
        "unexpected token: 'x'",
        "http://h:5000 refused ann@h, and http://h:5000/m/x too, ann@h",
        "http://[::1]:5000 refused ann@h",
        "wrong password (ann)",
    ],
)
def test_what_is_no_secret_is_shown(said: str) -> None:
    assert without_secrets(said) == said


@pytest.mark.parametrize(
    "part",
    [
        *("a-", "pass", "pass ", "password='", 'password="', "api_key=", "'", "\\'", "://a:"),
        *("://a: ", "://a:b ", "://", "\x1b]", "\x1b[0"),
    ],
)
def test_no_text_takes_long(part: str) -> None:
    text = part * (50_000 // len(part))
    began = time.process_time()
    one_line(text)
    without_secrets(text)
    assert time.process_time() - began < 2  # it takes a few tenths; what is quadratic, a minute


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"]
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    assert in_memory(url)
    with pytest.raises(UserError, match="in memory"):
        check_storage_url(url)
    with pytest.raises(UserError, match="in memory"):
        resolve_tracking_uri(Path("home"), url)
