"""Nothing in the repository speaks of the machine it was written on, or reaches for the network."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from tests.tidy.sources import ROOT

# Split, so that this file does not find itself.
FORBIDDEN = [
    re.compile("/wo" + "rk/"),
    re.compile("/ro" + "ot/"),
    re.compile(r"/home/" + r"(?!me\b|you\b|user\b)\w"),
    re.compile("/tmp/" + "w/"),
    re.compile(r"(?i)\bindex-" + "url\b"),
    re.compile(r"(?i)co-authored" + "-by|generated " + "(by|with) (claude|gpt|copilot|ai)"),
    re.compile(r"(?i)language " + "model|chat " + "session|as an " + "ai"),
    re.compile(r"(?i)\b(TO" + "DO|FIX" + r"ME|XX" + r"X)\b[: ](?!s)"),
]
# Words the demo counts or that a licence needs.
EXCUSED = {"LICENSE", "proto/third_party/NOTICE"}
HOSTS = {
    "127.0.0.1",
    "localhost",
    "github.com",
    "kapell.dev",
    "semver.org",
    "www.apache.org",
    "example.com",
    # Where the forms of their hooks are told.
    "code.claude.com",
    "developers.openai.com",
    # Where models are asked, as documents and profiles say.
    "api.openai.com",
    # Where prices of models were read.
    "platform.claude.com",
    "ai.google.dev",
    "docs.x.ai",
    "api-docs.deepseek.com",
    "agentclientprotocol.com",
    "mistral.ai",
}
URL = re.compile(r"https?://([A-Za-z0-9.-]+)")


def texts() -> Iterator[tuple[str, str]]:
    """Every file of the repository that git tracks and that is text, with its name."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name in EXCUSED or name.startswith("proto/third_party/") or "_third_party/buf" in name or not path.is_file():
            continue
        try:
            yield name, path.read_text()
        except UnicodeDecodeError:
            continue


def test_nothing_names_the_place_it_was_written() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in FORBIDDEN
        if pattern.search(line)
    ]

    assert found == []


def test_no_address_points_to_an_unknown_host() -> None:
    found = [f"{name}: {host}" for name, text in texts() for host in URL.findall(text) if host.rstrip(".") not in HOSTS]

    assert found == []
