"""Who may do what.

Two engine roles enforce it: ``reader`` (SELECT and SHOW on everything, no source such as file, url, s3
or remote, and the connection is pinned to readonly=2) and ``writer`` (everything). The engine has one
user and no per-connection log-in, so a reader's connection gives up ``writer`` with SET ROLE before its
first statement; the checks here keep it from taking the role back, and close what grants do not cover
in an embedded engine: INTO OUTFILE and FROM INFILE, the scalar function ``file()``, chdb's ``python()``.
What a statement is, the engine's own parser says.
"""

import hmac
import re
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from compose.embedded.clickhouse.errors import ClickHouseError, readonly

# Only a text that can spell these needs its syntax tree looked at (a backslash may hide a letter).
_MAY_NAME_SERVER_FILES = re.compile(r"file|python|\\", re.IGNORECASE)
_READS_SERVER_FILES = re.compile(r"^\s*(?:Table)?Function (?:file|python)\b", re.IGNORECASE | re.MULTILINE)
_USES_A_FUNCTION_ON_FILES = re.compile(r"Function \w*(?:file|local|arrowflight)\w*\b", re.IGNORECASE)
_SESSION_STATEMENTS = ("Set", "UseQuery")


@dataclass(frozen=True, slots=True)
class User:
    name: str
    password: str | None
    may_write: bool


@dataclass(frozen=True, slots=True)
class Users:
    """The server's users by name; ``default`` and ``analyst`` read without a password."""

    by_name: dict[str, User]

    @classmethod
    def build(cls, writer: str | None, password: str | None) -> "Users":
        users = {name: User(name, None, False) for name in ("default", "analyst")}
        if writer is not None:
            users[writer] = User(writer, password, True)
        return cls(users)

    def authenticate(self, name: str, password: str) -> User:
        user = self.by_name.get(name)
        if user is not None:
            expected = user.password or ""
            if hmac.compare_digest(expected.encode(), password.encode()):
                return user
        raise ClickHouseError(
            516,
            "AUTHENTICATION_FAILED",
            f"{name}: Authentication failed: password is incorrect, or there is no user with such name.",
        )


def engine_config(users_path: str, backups_path: str) -> str:
    """The server's configuration, for a machine that the engine has to itself as little as its disk.

    By default 32 merges may run at once and small parts are merged by fives, so that under a steady flow of small inserts each row was
    rewritten 22 times within two minutes (measured), for half of the engine's CPU time.
    """
    return f"""<clickhouse>
  <users_config>{escape(users_path)}</users_config>
  <backups><allowed_path>{escape(backups_path)}</allowed_path></backups>
  <background_pool_size>2</background_pool_size>
  <background_merges_mutations_concurrency_ratio>1</background_merges_mutations_concurrency_ratio>
  <merge_tree>
    <min_parts_to_merge_at_once>12</min_parts_to_merge_at_once>
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
  </merge_tree>
</clickhouse>
"""


ENGINE_USERS = """<clickhouse>
  <profiles><default>
    <constraints><dialect><const/></dialect></constraints>
  </default></profiles>
  <quotas><default/></quotas>
  <roles>
    <reader><grants><query>GRANT SELECT, SHOW, dictGet, CREATE TEMPORARY TABLE ON *.*</query></grants></reader>
    <writer><grants><query>GRANT ALL ON *.*</query></grants></writer>
  </roles>
  <users><default>
    <no_password/><profile>default</profile><quota>default</quota>
    <networks><ip>::/0</ip></networks>
    <grants><query>GRANT reader, writer</query></grants>
  </default></users>
</clickhouse>
"""


def check_reader(connection: Any, user: str, sql: str, kind: str) -> None:
    """Raise READONLY unless a reader may run ``sql``, which the engine classified as ``kind``.

    UNKNOWN does not parse: it goes to the engine for its syntax error, which runs nothing.
    """
    if kind == "UNKNOWN":
        return
    if kind == "CONTROL":
        if syntax_tree(connection, sql).split(" ", 1)[0].strip() not in _SESSION_STATEMENTS:
            raise readonly(user)
    elif kind != "READ_ONLY":
        raise readonly(user)
    elif _MAY_NAME_SERVER_FILES.search(sql) and _READS_SERVER_FILES.search(syntax_tree(connection, sql)):
        raise ClickHouseError(
            497,
            "ACCESS_DENIED",
            f"{user}: Not enough privileges. To execute this query, it's necessary to have the grant READ ON FILE.",
        )


def explain_denial(connection: Any, sql: str, error: ClickHouseError) -> ClickHouseError:
    """An embedded engine takes the name of a table that does not exist for a file's, which a reader may not read."""
    if (
        error.code == 497
        and "READ ON FILE" in str(error)
        and not _USES_A_FUNCTION_ON_FILES.search(syntax_tree(connection, sql))
    ):
        return ClickHouseError(
            60,
            "UNKNOWN_TABLE",
            "Unknown table expression identifier: a table named in the query does not exist.",
        )
    return error


def syntax_tree(connection: Any, sql: str) -> str:
    """EXPLAIN AST of one statement; a statement that cannot be explained alone is refused by its error."""
    try:
        return bytes(connection.query("EXPLAIN AST " + sql, "TSVRaw").bytes()).decode("utf-8", "replace")
    except RuntimeError as error:
        raise ClickHouseError.parse(str(error)) from None
