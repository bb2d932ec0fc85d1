"""`kapell auth token create|list|revoke|rotate-admin`, `kapell auth whoami`, `kapell audit`."""

from __future__ import annotations

import json

from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess


def as_user(shell: Shell, token: str) -> Shell:
    return Shell({**shell.environment, "KAPELL_TOKEN": token})


def test_on_a_pipe_a_new_token_is_all_that_is_printed_and_it_works(shell: Shell) -> None:
    made = shell.pipe("auth", "token", "create", "ci", "--scope", "read", "--scope", "write", "--name", "builds")

    assert (made.code, made.err, len(made.lines)) == (0, "", 1)
    who = json.loads(as_user(shell, made.lines[0]).pipe("auth", "whoami", "-o", "json").out)
    assert (who["actor"]["id"], who["scopes"]) == ("ci", ["SCOPE_READ", "SCOPE_WRITE"])
    assert who["expireTime"]
    listed = shell.pipe("auth", "token", "list", "--user", "ci").out
    assert who["tokenId"] in listed
    assert "builds" in listed
    assert made.lines[0] not in listed


def test_on_a_terminal_it_is_said_that_it_is_shown_once(shell: Shell) -> None:
    made = shell.terminal("auth", "token", "create", "bob", "--scope", "read", "--expires", "never")

    assert "kapell_token_" in made.out
    assert "it is not shown again" in made.out
    assert "until it is revoked" in made.out


def test_a_scope_too_few_ends_with_the_code_of_a_refusal(shell: Shell) -> None:
    token = shell.pipe("auth", "token", "create", "reader", "--scope", "read").lines[0]

    result = as_user(shell, token).pipe("task", "create", "--type", "shell", "true")

    assert result.code == 4
    assert "`write`" in result.err


def test_a_revoked_token_is_refused_and_stays_in_the_list_of_all(shell: Shell) -> None:
    token = shell.pipe("auth", "token", "create", "mallory", "--scope", "read").lines[0]
    [token_id] = shell.pipe("auth", "token", "list", "--user", "mallory", "-o", "id").lines

    assert shell.pipe("auth", "token", "revoke", token_id, "--dry-run").code == 0
    assert as_user(shell, token).pipe("auth", "whoami").code == 0
    assert shell.pipe("auth", "token", "revoke", token_id, "--reason", "lost").code == 0

    assert as_user(shell, token).pipe("auth", "whoami").code == 4
    assert shell.pipe("auth", "token", "list", "--user", "mallory").out == ""
    assert "revoked" in shell.pipe("auth", "token", "list", "--user", "mallory", "--all").out
    assert shell.pipe("auth", "token", "revoke", "token_nobody").code == 3


def test_what_administrators_did_is_listed_and_exported(shell: Shell) -> None:
    shell.pipe("auth", "token", "create", "audited", "--scope", "read")

    listed = shell.pipe("audit", "list", "--method", "TokenService.CreateToken", "-n", "1").out
    exported = [json.loads(line) for line in shell.pipe("audit", "export").lines]

    assert '"principal": "audited"' in listed
    assert any('"principal": "audited"' in entry["request"] for entry in exported)
    assert [int(entry["number"]) for entry in exported] == list(range(1, len(exported) + 1))


def test_a_span_of_the_audit_log_is_exported(shell: Shell) -> None:
    shell.pipe("auth", "token", "create", "early", "--scope", "read")
    shell.pipe("auth", "token", "create", "late", "--scope", "read")
    entries = {entry["number"]: entry for entry in map(json.loads, shell.pipe("audit", "export").lines)}
    late = next(entry for entry in entries.values() if '"late"' in entry["request"])

    since = shell.pipe("audit", "export", "--since", late["auditTime"]).lines
    until = shell.pipe("audit", "export", "--until", late["auditTime"], "--method", "TokenService.CreateToken").lines

    assert json.loads(since[0])["number"] == late["number"]
    assert '"early"' in json.loads(until[-1])["request"]


def test_the_owners_token_is_replaced_and_the_one_before_shut_out(server_process: ServerProcess) -> None:
    before = server_process.admin_token
    shell = Shell({"KAPELL_DATA_DIR": str(server_process.data_dir), "HOME": str(server_process.data_dir)})
    assert shell.pipe("auth", "token", "rotate-admin").code == 2, "it asks first"

    assert shell.pipe("auth", "token", "rotate-admin", "--yes").code == 0

    assert server_process.admin_token != before
    assert (server_process.data_dir / "admin.token").stat().st_mode & 0o777 == 0o600
    while shell.pipe("auth", "whoami").code:
        pass  # The time limit of the test is the deadline.
    assert as_user(shell, before).pipe("auth", "whoami").code == 4
