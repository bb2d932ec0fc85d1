"""What only looks, by table: what is neither here nor in a rule of `risk_commands` is not known, and so no LOW risk."""

from __future__ import annotations

from kapell_server.domain.approvals.shell import PREFIXES, SHELLS

_LOOKING = """
    ls dir cat tac echo printf grep egrep fgrep head tail wc uniq cut tr pwd true false test [ [[ : whoami id
    uname arch nproc uptime du df free ps pgrep stat diff cmp comm basename dirname realpath readlink sleep cd pushd
    popd seq nl rev fold expand unexpand column paste join jq rg ag which type cksum md5sum sha1sum sha224sum sha256sum
    sha384sum sha512sum b2sum sum od hexdump strings expr getconf locale clear wait break continue return exit shift
    set unset local read for case esac select in export declare typeset readonly ulimit umask times jobs trap let
    base64 base32 sort tree date hostname find fd file
"""
_LOOKS = frozenset(_LOOKING.split())
_NOT_WITH = {
    "sort": ("-o", "--output", "--compress-program", "-T"),
    "tree": ("-o",),
    "date": ("-s", "--set"),
    "file": ("-C",),
    "rg": ("--pre", "--hostname-bin"),
    "ag": ("--pager",),
    "find": ("-fprint", "-fprint0", "-fprintf", "-fls", "-exec", "-execdir", "-ok", "-okdir", "-delete"),
    "fd": ("-x", "-X", "--exec", "--exec-batch"),
    "diff": ("--output",),
}
"""Options by which such a program writes files, or runs others."""
_MOST_OPERANDS = {"hostname": 0, "uniq": 1}
"""Programs that write with more operands than these."""

_GIT_LOOKING = """
    status log show diff rev-parse ls-files ls-tree blame describe shortlog cat-file merge-base rev-list name-rev grep
    for-each-ref show-ref count-objects check-ignore diff-tree diff-index diff-files version whatchanged
"""
_GIT_LOOKS = frozenset(_GIT_LOOKING.split())
_GIT_NOT_WITH = (
    "--output",
    "--open-files-in-pager",
    "--ext-diff",
    "--textconv",
    "-c",
    "--config-env",
    "--exec-path",
)
_GIT_LISTS = {
    "branch": ("-a", "-v", "-vv", "-r", "--list", "--show-current"),
    "remote": ("-v",),
    "tag": ("-l", "--list"),
}
"""Commands of git that only list with nothing behind them but these."""


def only_looks(program: str, words: list[str]) -> bool:
    """Whether a program is known to change nothing and to run nothing but what was looked at by itself."""
    if program in PREFIXES:
        return True  # What it runs is a part of its own.
    if program in SHELLS:
        return any(_is_script_option(word) for word in words[1:])
    if program == "git":
        return _git_looks(words)
    return (
        program in _LOOKS
        and not any(_is_option(word, option) for word in words[1:] for option in _NOT_WITH.get(program, ()))
        and sum(not word.startswith("-") for word in words[1:]) <= _MOST_OPERANDS.get(program, 1 << 20)
    )


def _is_any(word: str, options: tuple[str, ...]) -> bool:
    return any(word == option or (option.startswith("--") and _is_option(word, option)) for option in options)


def _is_script_option(word: str) -> bool:
    return word.startswith("-") and not word.startswith("--") and "c" in word


def _is_option(word: str, option: str) -> bool:
    """Whether a word is this option, perhaps with its value or cut short, or has its letter among others."""
    name = word.split("=", 1)[0]
    if name == option:
        return True
    if option.startswith("--"):
        return name.startswith("--") and len(name) > 2 and option.startswith(name)
    is_letter = len(option) == 2 and word.startswith("-") and not word.startswith("--")
    return is_letter and option[1] in word[1:]


def _git_looks(words: list[str]) -> bool:
    rest = words[1:]
    while rest[:1] == ["-C"] or rest[:1] in (["--no-pager"], ["-P"]):
        rest = rest[2 if rest[0] == "-C" else 1 :]
    if not rest or any(word.startswith("-O") or _is_any(word, _GIT_NOT_WITH) for word in rest):
        return False
    verb, operands = rest[0], rest[1:]
    if verb in _GIT_LISTS:
        return all(word in _GIT_LISTS[verb] for word in operands)
    if verb == "stash":
        return operands[:1] in (["list"], ["show"])
    return verb in _GIT_LOOKS
