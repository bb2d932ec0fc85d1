"""The tables of what commands may do: one line a rule, each a program, what its words must be, and why it matters."""

# ruff: noqa: E501 - a table is read by its lines

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import re2
from kapell.v1.approval_pb2 import (
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_HIGH,
    RISK_LEVEL_MEDIUM,
    RiskLevel,
)

from kapell_server.domain.approvals.patterns import leaves
from kapell_server.domain.approvals.risk_evasions import (
    INTERPRETERS,
    commands_in_code,
    echoed_into_shell,
    plain_name,
    resolved,
    runs_what_it_has_fetched,
)
from kapell_server.domain.approvals.risk_known import only_looks
from kapell_server.domain.approvals.shell import SHELLS, Part, Shape, take_apart

MEDIUM, HIGH, CRITICAL = RISK_LEVEL_MEDIUM, RISK_LEVEL_HIGH, RISK_LEVEL_CRITICAL
_SHOWN = 100


class Finding(NamedTuple):
    """One reason for a risk."""

    code: str
    level: RiskLevel.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a program does when the test holds for its words; the first word is the program."""

    programs: str
    level: RiskLevel.ValueType
    code: str
    message: str
    test: Callable[[list[str]], bool] = lambda words: True


def _flag(words: list[str], short: str, *long: str) -> bool:
    """Whether an option is there: one of these letters, by itself or among others, or one of these words."""
    for word in words[1:]:
        if word.startswith("--"):
            if word.split("=", 1)[0] in long:
                return True
        elif (word.startswith("-") and any(letter in word for letter in short)) or word in long:
            return True
    return False


def _has(*wanted: str) -> Callable[[list[str]], bool]:
    """Whether the first words after the program, options left out, are these."""

    def test(words: list[str]) -> bool:
        rest = [word for word in _behind_globals(words) if not word.startswith("-")]
        return rest[: len(wanted)] == list(wanted)

    return test


def _behind_globals(words: list[str]) -> list[str]:
    """The words after the program; of git without the options that come before what it is to do."""
    index = 1
    if words[0].rsplit("/", 1)[-1] == "git":
        while index < len(words) and words[index].startswith("-"):
            index += 2 if words[index] in _OF_GIT else 1
    return words[index:]


_OF_GIT = frozenset({"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--exec-path", "--config-env"})
"""Options of git itself that take a value."""


def _any(*wanted: str) -> Callable[[list[str]], bool]:
    return lambda words: not {*wanted}.isdisjoint(words[1:])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROOTS = _words(
    "/ /* ~ ~/ ~/* $HOME $HOME/ $HOME/* ${HOME} ${HOME}/* . ./ ./* .. ../ ../* * .* "
    "/bin /boot /dev /etc /home /lib /lib64 /opt /root /sbin /srv /sys /usr /var"
)
_GRAVE_ROOTS = _ROOTS - _words(". ./ ./* * .*")


def _operands(words: list[str]) -> list[str]:
    return [word for word in words[1:] if not word.startswith("-")]


def _recursive(words: list[str]) -> bool:
    return _flag(words, "rR", "--recursive")


def _hits(words: list[str], roots: frozenset[str]) -> bool:
    for word in _operands(words):
        # As it would be opened: "//", "/./" and "/home/.." are roots as well.
        plain = posixpath.normpath(word.rstrip("*")).replace("//", "/") if word.startswith("/") else word.rstrip("/*")
        if word and (word in roots or plain in roots):
            return True
    return False


def _of_device(words: list[str]) -> bool:
    return any(word.split("=", 1)[-1].startswith(_DEVICES) for word in words[1:])


_DEVICES = (
    "/dev/sd",
    "/dev/nvme",
    "/dev/hd",
    "/dev/vd",
    "/dev/xvd",
    "/dev/mmcblk",
    "/dev/disk",
    "/dev/mapper",
    "/dev/md",
)
_UPLOADING = (
    "-d",
    "--data",
    "-T",
    "--upload-file",
    "-F",
    "--form",
    "--post-data",
    "--post-file",
    "--body-data",
    "--json",
)


def _uploads(words: list[str]) -> bool:
    for index, word in enumerate(words[1:], 1):
        if word.startswith(_UPLOADING) and not word.startswith("--dump"):
            return True
        if word in ("-X", "--request") and words[index + 1 : index + 2] not in ([], ["GET"], ["HEAD"]):
            return True
        if word.startswith("-X") and word[2:] not in ("", "GET", "HEAD"):
            return True
    return False


def _mode(words: list[str]) -> str:
    return next((word for word in _operands(words)), "")


def _opens_all(words: list[str]) -> bool:
    mode = _mode(words)
    return mode[-1:] in ("7", "6", "2", "3") if mode.isdigit() and len(mode) >= 3 else "o+w" in mode or "a+w" in mode


def _forces(words: list[str]) -> bool:
    return _has("push")(words) and (
        _flag(words, "f", "--force", "--force-with-lease", "--mirror", "--delete", "--prune")
        or any(word.startswith(("+", ":")) and len(word) > 1 for word in words[2:])
        or "-d" in words
    )


def _git_discards(words: list[str]) -> bool:
    if _has("reset")(words):
        return "--hard" in words
    if _has("clean")(words):
        return _flag(words, "f", "--force")
    if _has("branch")(words):
        return _flag(words, "D", "--delete")
    if _has("stash")(words):
        return _any("drop", "clear")(words)
    if _has("checkout")(words) or _has("restore")(words):
        return "." in words or "--" in words or _flag(words, "f", "--force")
    return _any("filter-branch", "filter-repo", "gc", "prune")(words) or _any("expire")(words)


_DELETING = frozenset({"delete", "destroy", "terminate", "remove", "rm", "rb", "purge", "drain", "uninstall"})


def _cloud_deletes(words: list[str]) -> bool:
    return any(word in _DELETING or word.startswith(("delete-", "terminate-", "remove-")) for word in words[1:])


_RULES = (
    _Rule("rm", CRITICAL, "destructive-command", "deletes {words}", lambda w: "--no-preserve-root" in w or (_recursive(w) and _hits(w, _GRAVE_ROOTS))),
    _Rule("rm", HIGH, "destructive-command", "deletes directories: {words}", _recursive),
    _Rule("rm rmdir unlink", MEDIUM, "destructive-command", "deletes files: {words}"),
    _Rule("shred wipe srm", HIGH, "destructive-command", "overwrites files for good: {words}"),
    _Rule("truncate", HIGH, "destructive-command", "cuts files: {words}"),
    _Rule("find", CRITICAL, "destructive-command", "deletes what it finds: {words}", lambda w: _any("-delete")(w) and _hits(w, _GRAVE_ROOTS)),
    _Rule("find", HIGH, "destructive-command", "deletes what it finds: {words}", _any("-delete")),
    _Rule("xargs parallel", HIGH, "destructive-command", "deletes what another command names: {words}", _any("rm", "unlink", "shred", "rmdir", "/bin/rm")),
    _Rule("find fd", MEDIUM, "runs-commands", "runs a command on what it finds: {words}", _any("-exec", "-execdir", "-x")),
    _Rule("mv", MEDIUM, "changes-files", "moves files: {words}"),
    _Rule("cp ln install mkdir touch tar unzip zip gzip gunzip patch split", MEDIUM, "changes-files", "writes files: {words}"),
    _Rule("tar", HIGH, "runs-commands", "runs commands beside: {words}", lambda w: any(x.startswith(("--checkpoint-action", "--to-command", "--use-compress-program", "--rsh-command")) for x in w)),
    _Rule("dd", CRITICAL, "destructive-command", "writes to a device: {words}", lambda w: any(x.startswith("of=/dev/") and not x.startswith(("of=/dev/null", "of=/dev/stdout")) for x in w)),
    _Rule("dd", MEDIUM, "changes-files", "copies raw data: {words}"),
    _Rule("mkfs mkswap wipefs blkdiscard", CRITICAL, "destructive-command", "formats a device: {words}"),
    _Rule("fdisk sfdisk gdisk sgdisk parted cryptsetup", CRITICAL, "destructive-command", "changes partitions: {words}", lambda w: "-l" not in w and "--list" not in w),
    _Rule("shred cp tee cat", CRITICAL, "destructive-command", "touches a device: {words}", _of_device),
    _Rule("chmod", CRITICAL, "opens-access", "lets everybody write everything: {words}", lambda w: _recursive(w) and _opens_all(w) and _hits(w, _GRAVE_ROOTS)),
    _Rule("chmod", HIGH, "opens-access", "lets everybody write: {words}", _opens_all),
    _Rule("chmod", HIGH, "more-rights", "lets a program run with the rights of its owner: {words}", lambda w: "+s" in _mode(w) or (_mode(w).isdigit() and len(_mode(w)) == 4 and _mode(w)[0] in "2467")),
    _Rule("chmod", MEDIUM, "changes-files", "changes who may use files: {words}"),
    _Rule("chown chgrp setfacl", CRITICAL, "opens-access", "gives everything away: {words}", lambda w: _recursive(w) and _hits(w, _GRAVE_ROOTS)),
    _Rule("chown chgrp setfacl", HIGH, "opens-access", "gives files away: {words}"),
    _Rule("sudo doas su pkexec runas", HIGH, "more-rights", "runs with more rights: {words}"),
    _Rule("shutdown reboot halt poweroff telinit", HIGH, "stops-things", "stops the machine: {words}"),
    _Rule("kill", HIGH, "stops-things", "stops all processes: {words}", lambda w: "-1" in w[2:] or w[1:] == ["-1"]),
    _Rule("kill pkill killall", MEDIUM, "stops-things", "stops processes: {words}"),
    _Rule("systemctl service launchctl", HIGH, "persists", "changes services: {words}", _any("enable", "disable", "mask", "stop", "load", "unload")),
    _Rule("crontab at batch", HIGH, "persists", "will run again later: {words}", lambda w: "-l" not in w),
    _Rule("useradd usermod userdel passwd visudo adduser chpasswd", HIGH, "more-rights", "changes accounts: {words}"),
    _Rule("iptables nft ufw firewall-cmd sysctl insmod modprobe mount umount", HIGH, "changes-machine", "changes the machine: {words}"),
    _Rule("git", HIGH, "rewrites-history", "overwrites what others have: {words}", _forces),
    _Rule("git", HIGH, "destructive-command", "throws work away: {words}", _git_discards),
    _Rule("git", MEDIUM, "publishes", "sends to others: {words}", _has("push")),
    _Rule("git", MEDIUM, "network", "fetches from the network: {words}", lambda w: _any("clone", "fetch", "pull", "submodule")(w)),
    _Rule("git", HIGH, "runs-commands", "sets what git runs: {words}", lambda w: _any("core.pager", "core.sshCommand", "core.hooksPath", "core.fsmonitor")(w) or any(x.startswith(("core.pager=", "core.sshCommand=", "core.hooksPath=", "core.fsmonitor=", "alias.")) for x in w)),
    _Rule("gh glab", HIGH, "publishes", "changes what others see: {words}", lambda w: _any("create", "merge", "close", "delete", "edit", "release", "api")(w)),
    _Rule("curl wget http https xh", HIGH, "sends-data", "sends data out: {words}", _uploads),
    _Rule("curl wget http https xh aria2c", MEDIUM, "network", "reaches the network: {words}"),
    _Rule("nc ncat netcat socat telnet", CRITICAL, "remote-control", "gives a program to the network: {words}", lambda w: _any("-e", "-c", "--exec", "--sh-exec")(w) or any("exec:" in x.lower() or "system:" in x.lower() for x in w)),
    _Rule("nc ncat netcat socat telnet nmap", HIGH, "network", "opens a raw connection: {words}"),
    _Rule("ssh sshpass mosh", HIGH, "network", "works on another machine: {words}"),
    _Rule("scp sftp rsync ftp lftp rclone", HIGH, "sends-data", "copies to or from another machine: {words}", lambda w: any(":" in x for x in w[1:])),
    _Rule("rsync", HIGH, "destructive-command", "deletes what is not in its source: {words}", lambda w: any(x.startswith("--delete") for x in w)),
    _Rule("pip pip3 pipx uv poetry npm pnpm yarn bun gem cargo go brew apt apt-get dnf yum pacman apk conda", MEDIUM, "installs-software", "installs software of others: {words}", _any("install", "add", "i", "get", "update", "upgrade", "sync", "-S")),
    _Rule("npx bunx uvx pnpx", MEDIUM, "installs-software", "runs software of others: {words}"),
    _Rule("npm pnpm yarn cargo gem poetry uv twine flit", HIGH, "publishes", "publishes a package: {words}", _any("publish", "upload", "push")),
    _Rule("docker podman nerdctl", HIGH, "more-rights", "gives a container the machine: {words}", lambda w: "--privileged" in w or any(x.startswith(("/:", "--pid=host", "/var/run/docker.sock")) for x in w)),
    _Rule("docker podman nerdctl", HIGH, "publishes", "publishes an image: {words}", _has("push")),
    _Rule("docker podman nerdctl", HIGH, "destructive-command", "removes containers, images or volumes: {words}", _any("prune", "rm", "rmi", "kill", "down")),
    _Rule("docker podman nerdctl", MEDIUM, "runs-commands", "runs a container: {words}", _any("run", "exec", "up", "build")),
    _Rule("terraform tofu pulumi", CRITICAL, "destructive-command", "destroys machines: {words}", _any("destroy")),
    _Rule("terraform tofu pulumi ansible-playbook ansible", HIGH, "changes-machines", "changes machines: {words}", lambda w: w[0].endswith(("ansible-playbook", "ansible")) or _any("apply", "up", "import", "taint")(w)),
    _Rule("kubectl oc helm", HIGH, "destructive-command", "removes what runs in a cluster: {words}", _cloud_deletes),
    _Rule("kubectl oc helm", HIGH, "changes-machines", "changes a cluster: {words}", _any("apply", "create", "patch", "scale", "exec", "install", "upgrade", "rollout", "cordon", "replace")),
    _Rule("aws gcloud az doctl flyctl heroku gsutil", HIGH, "destructive-command", "removes what is in the cloud: {words}", _cloud_deletes),
    _Rule("aws gcloud az doctl flyctl heroku gsutil vercel netlify wrangler", MEDIUM, "network", "works in the cloud: {words}"),
    _Rule("psql mysql mariadb sqlite3 mongo mongosh redis-cli clickhouse-client", MEDIUM, "changes-data", "works on a database: {words}"),
    _Rule("redis-cli", CRITICAL, "destructive-command", "empties a database: {words}", lambda w: not {"flushall", "flushdb"}.isdisjoint(x.lower() for x in w)),
    _Rule("dropdb", CRITICAL, "destructive-command", "removes a database: {words}"),
    _Rule("printenv env set export", MEDIUM, "secrets", "shows the environment, in which secrets may be", lambda w: len(w) == 1),
    _Rule("gpg", HIGH, "secrets", "hands out secret keys: {words}", lambda w: any(x.startswith("--export-secret") for x in w)),
    _Rule("security pass op vault", HIGH, "secrets", "reads a store of secrets: {words}"),
    _Rule("history fc", MEDIUM, "secrets", "reads the history of the shell"),
    _Rule("make gmake just ninja cmake ctest tox nox pytest jest vitest mocha cargo go npm yarn pnpm bun gradle gradlew mvn rake bazel ruff mypy pre-commit", MEDIUM, "runs-code", "runs code of the project: {words}"),
    _Rule("eval source .", HIGH, "runs-commands", "runs text as a command: {words}"),
    _Rule("at batch nohup setsid disown", MEDIUM, "persists", "goes on by itself: {words}"),
    _Rule("tee", MEDIUM, "changes-files", "writes files: {words}", lambda w: bool(_operands(w))),
    _Rule("sed perl", MEDIUM, "changes-files", "changes files in place: {words}", lambda w: any(x.startswith(("-i", "--in-place", "-pi")) for x in w)),
)  # fmt: skip
_BY_PROGRAM: dict[str, list[_Rule]] = {}
for _rule in _RULES:
    for _program in _rule.programs.split():
        _BY_PROGRAM.setdefault(_program, []).append(_rule)

_DOWNLOADERS = frozenset({"curl", "wget", "aria2c", "http", "xh", "nc", "ncat"})
_DECODERS = frozenset({"base64", "base32", "xxd", "openssl", "uudecode", "rev", "tr", "gunzip", "zcat"})
_SECRETS = re2.compile(
    r"(?i)(^|[/=\s:'\"@])(\.env(\.[a-z.]+)?|\.netrc|\.pgpass|\.git-credentials|\.npmrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)"
    r"|\.ssh(/[^\s]*)?|\.aws(/[^\s]*)?|\.gnupg(/[^\s]*)?|\.kube(/[^\s]*)?|\.docker/config\.json|shadow|sudoers"
    r"|credentials(\.[a-z]+)?|secrets?\.[a-z]+|[^\s/]+\.(pem|p12|pfx|key|kdbx|keystore|jks)|admin\.token)($|[\s'\";:])"
)
_DATABASE = re2.compile(
    r"(?i)\b(drop\s+(database|schema)|drop\s+table|truncate\s+(table\s+)?[a-z_\"]"
    r"|delete\s+from\s+[^\s;'\"]+\s*(;|'|\"|$)|dropdatabase\s*\()"
)
_FORK_BOMB = re2.compile(r":\s*\(\s*\)\s*\{[^}]*:\s*\|\s*:")
_CODED = re2.compile(r"[A-Za-z0-9+/]{160,}={0,2}|(\\x[0-9a-fA-F]{2}){16,}")
_EVALUATES = re2.compile(
    r"(?i)(exec|eval|system|popen|subprocess|child_process|importlib|__import__|fromcharcode|b64decode|atob|rmtree|unlink|\bremove\b|rmdir|socket|urlopen|urllib|requests|spawn|backtick|qx)"
)
_PERSISTENT = re2.compile(
    r"(authorized_keys|/etc/cron|/etc/systemd|/etc/profile|\.(bash|zsh)(rc|_profile|env)|\.profile|\.git/hooks/"
    r"|/etc/ld\.so|LaunchAgents)"
)
_DEEPEST = 2
_MOST_WITHIN = 12
"""Texts within a part that are looked at as commands of their own: so a look at a hostile one ends soon."""
_TELLING = frozenset({"destructive-command", "runs-downloaded-code", "encoded-payload", "remote-control", "secrets"})
_WRITERS = frozenset(
    {"cp", "mv", "tee", "install", "ln", "touch", "mkdir", "rsync", "rm", "rmdir", "truncate", "tar", "unzip"}
)
"""Programs that write where their last words say."""
_HARMLESS = ("/dev/null", "/dev/stdout", "/dev/stderr", "/dev/tty", "/dev/stdin", "/dev/zero", "/dev/urandom")


def secret_in(text: str) -> bool:
    """Whether a path or word names what usually holds secrets."""
    return _SECRETS.search(text) is not None


def of_command(command: str, directory: str, workspace: str, *, depth: int = 0) -> Iterator[Finding]:
    """Everything the tables say of a command line."""
    shape = take_apart(command)
    if not shape.is_readable:
        yield Finding("unreadable", HIGH, "the command cannot be taken apart: its quotes do not end, or it is too long")
    yield from _of_text(command)
    told: dict[str, int] = {}
    for part in shape.parts:
        for finding in _of_whole(part, directory, workspace, depth):
            if finding.code == "substitution" and finding.code in told:
                continue  # Once is enough: scripts are full of them.
            told[finding.code] = max(finding.level, told.get(finding.code, MEDIUM))
            yield finding
    for part in resolved(shape):
        # Only what is graver with the values of variables than without them.
        found = _of_whole(part, directory, workspace, depth)
        yield from (one for one in found if one.level > told.get(one.code, MEDIUM))
    yield from _of_flow(shape)


def _of_whole(part: Part, directory: str, workspace: str, depth: int) -> Iterator[Finding]:
    """What is said of a part, and of what it runs that is not spelt as a command."""
    yield from _of_part(part, directory, workspace)
    within = itertools.chain([echoed_into_shell(part)], commands_in_code(part)) if depth < _DEEPEST else ()
    for text in itertools.islice(filter(None, within), _MOST_WITHIN):
        # Of what may not be a command at all only what would be grave is told.
        found = of_command(text, directory, workspace, depth=depth + 1)
        yield from (one for one in found if one.level >= HIGH and one.code in _TELLING)


def _of_text(command: str) -> Iterator[Finding]:
    if _FORK_BOMB.search(command):
        yield Finding("destructive-command", CRITICAL, "starts itself without end")
    if "/dev/tcp/" in command or "/dev/udp/" in command:
        yield Finding("remote-control", CRITICAL, "connects a shell to the network")
    match = _DATABASE.search(command)
    if match is not None:
        whole = match.group(0).lower()
        level = CRITICAL if "database" in whole or "schema" in whole else HIGH
        yield Finding("destructive-command", level, f"removes data: {_short(match.group(0))}")
    if _CODED.search(command):
        yield Finding("encoded-payload", HIGH, "has a long text in code, which nobody can read")
    if _PERSISTENT.search(command):
        yield Finding("persists", HIGH, "touches what runs again later, or lets others in")


def _of_part(part: Part, directory: str, workspace: str) -> Iterator[Finding]:
    words = part.words
    shown = _short(" ".join(words))
    program = plain_name(part.program)
    told: set[str] = set()
    for rule in _BY_PROGRAM.get(program, ()):
        if rule.code not in told and rule.test(words):
            told.add(rule.code)
            yield Finding(rule.code, rule.level, rule.message.replace("{words}", shown))
    if words and _is_put_together(part):
        yield Finding("unknown-program", HIGH, f"which program runs is known only then: {shown}")
    elif part.is_dynamic and words:
        yield Finding("substitution", MEDIUM, f"is put together only when it runs: {shown}")
    if program in INTERPRETERS - SHELLS:
        yield from _of_interpreter(words, shown, part)
    elif program in SHELLS and not only_looks(program, words):
        yield Finding("runs-code", MEDIUM, f"runs a script that is not shown: {shown}")
    elif words and not told and not only_looks(program, words):
        yield Finding("unknown-command", MEDIUM, f"what it does is not known: {shown}")
    named = words[1:] if program in ("export", "declare", "typeset", "readonly", "local") else []
    for assignment in (*part.assignments, *named):
        if assignment.startswith(_STEERING):
            yield Finding("runs-commands", HIGH, f"changes what programs run: {_short(assignment)}")
    yield from _of_files(part, directory, workspace)


_STEERING = ("LD_", "PATH=", "PYTHONPATH=", "GIT_", "NODE_OPTIONS=", "BASH_ENV=", "IFS=", "DYLD_", "PROMPT_COMMAND=")


def _is_put_together(part: Part) -> bool:
    """Whether not even the name of the program stands there."""
    first = part.words[0]
    return part.is_dynamic and (
        any(mark in first for mark in "$`*?") or ("[" in first and "]" in first) or ("{" in first and "," in first)
    )


def _of_interpreter(words: list[str], shown: str, part: Part) -> Iterator[Finding]:
    is_inline = _flag(words, "ce", "-r", "--eval", "--print") or any(
        operator in ("<<", "<<<") for operator, _ in part.redirects
    )
    if is_inline or "awk" in words[0]:
        texts = (*words[1:], *(target for _, target in part.redirects))
        level = HIGH if any(map(_EVALUATES.search, texts)) else MEDIUM
        yield Finding("runs-code", level, f"runs code from the command line: {shown}")
    else:
        yield Finding("runs-code", MEDIUM, f"runs a script that is not shown: {shown}")


def _of_files(part: Part, directory: str, workspace: str) -> Iterator[Finding]:
    for word in part.words[1:]:
        if secret_in(word):
            yield Finding("secrets", HIGH, f"{_short(word)} may hold secrets")
        path = word.split("=", 1)[-1]
        is_path = path.startswith(("/", "~", "../")) and not path.startswith(_HARMLESS) and "://" not in path
        if is_path and leaves(path, directory, workspace):
            if word in _targets(part):
                yield Finding("outside-workspace", HIGH, f"writes {_short(path)}, outside of the workspace")
            else:
                yield Finding("outside-workspace", MEDIUM, f"{_short(path)} lies outside of the workspace")
    for operator, target in part.redirects:
        if target.startswith(_HARMLESS) or operator in ("<<", "<<<") or (operator in (">&", "<&") and target.isdigit()):
            continue
        if secret_in(target):
            yield Finding("secrets", HIGH, f"{_short(target)} may hold secrets")
        if operator == "<":
            continue
        if target.startswith(_DEVICES):
            yield Finding("destructive-command", CRITICAL, f"writes to a device: {_short(target)}")
        elif leaves(target, directory, workspace):
            yield Finding("outside-workspace", HIGH, f"writes {_short(target)}, outside of the workspace")
        else:
            yield Finding("changes-files", MEDIUM, f"writes {_short(target)}")


def _targets(part: Part) -> list[str]:
    """The words that name what a program writes."""
    program, operands = part.program, _operands(part.words)
    if program in ("cp", "install", "ln", "rsync"):
        return [*operands[-1:], *(word for word in part.words if word.startswith("--target-directory="))]
    if program in ("tar", "unzip"):
        return [word for before, word in zip(part.words, part.words[1:], strict=False) if before in ("-C", "-d")]
    return operands if program in _WRITERS else []


def _of_flow(shape: Shape) -> Iterator[Finding]:
    """What only several parts together show: something is fetched or decoded, and run."""
    programs = {part.program for part in shape.parts}
    fetched = runs_what_it_has_fetched(shape)
    if fetched:
        yield Finding("runs-downloaded-code", CRITICAL, f"runs {_short(fetched)}, which it has just fetched")
    for part in shape.parts:
        if part.program not in INTERPRETERS or part.piped_from is None or _has_script(part):
            continue
        sources = _sources(part)
        if sources & _DOWNLOADERS:
            yield Finding("runs-downloaded-code", CRITICAL, f"runs what it has just fetched, by {part.program}")
        elif sources & _DECODERS:
            yield Finding("encoded-payload", CRITICAL, f"runs what it has just decoded, by {part.program}")
        else:
            yield Finding("runs-code", HIGH, f"runs what another command writes, by {part.program}")
    runs = any(part.program in SHELLS | {"eval", "source", "."} and part.is_dynamic for part in shape.parts)
    runs = runs or any(part.words and part.words[0].startswith(("$(", "`")) for part in shape.parts)
    runs = runs or any(part.program in INTERPRETERS and "" in part.words[1:] for part in shape.parts)  # As by <(…).
    if runs and programs & _DOWNLOADERS:
        yield Finding("runs-downloaded-code", CRITICAL, "runs what it has just fetched")
    elif runs and programs & _DECODERS:
        yield Finding("encoded-payload", CRITICAL, "runs what it has just decoded")


def _has_script(part: Part) -> bool:
    """Whether an interpreter is given its program otherwise, so that what comes by the pipe is data."""
    return part.program not in SHELLS and any(not word.startswith("-") for word in part.words[1:])


def _sources(part: Part) -> set[str]:
    found: set[str] = set()
    before = part.piped_from
    while before is not None:
        found.add(before.program)
        before = before.piped_from
    return found


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
