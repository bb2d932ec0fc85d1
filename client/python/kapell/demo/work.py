"""What the demo's agents do: shell commands over the files of one directory. No model is asked.

Every script reads only, names each file it looks at, and prints progress lines
(`::progress 40% words`). Between files it pauses, so that eyes can follow; the work is real.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapell.v1.approval_policy_pb2 import ApprovalPolicy

PACE = 0.1
"""Seconds a script pauses between two files."""

# At most 60 files a run: tracked ones where there is git, otherwise what lies near.
_FILES = r"""
files() {
  { git ls-files -- "$@" 2>/dev/null || true; } | head -n 60 > "$list"
  [ -s "$list" ] || find . -maxdepth 3 -type f \( -name '*.py' -o -name '*.md' -o -name '*.txt' \) \
    -not -path '*/.*' | head -n 60 > "$list"
}
each() {
  total=$(wc -l < "$list"); n=0
  [ "$total" -gt 0 ] || { echo "there are no files to look at here"; exit 0; }
  while IFS= read -r file; do
    n=$((n + 1)); [ -r "$file" ] || continue
    echo "::progress $((n * 100 / total))% $file"
    "$1" "$file"; sleep "$pace"
  done < "$list"
}
set -u; list=$(mktemp); trap 'rm -f "$list"' EXIT INT TERM; pace=${KAPELL_DEMO_PACE:-0.1}
""".strip()


@dataclass(frozen=True, kw_only=True)
class Use:
    """What one task of the demo says it has used, and what that costs; no cost: there is no price for it."""

    model: str
    input_tokens: int
    output_tokens: int
    cost: Decimal | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task to be: its name, the type of agent it wants, its script, how urgent it is, and what it needs."""

    name: str
    agent_type: str
    script: str
    priority: int = 500
    max_attempts: int = 2
    locks: tuple[str, ...] = ()
    read_locks: tuple[str, ...] = ()
    estimate: str = ""
    approval: ApprovalPolicy | None = None
    use: Use | None = None
    """What it says it has used of a model."""


def _job(name: str, agent_type: str, body: str, *, priority: int = 500, max_attempts: int = 2) -> Job:
    script = f"{_FILES}\n{body.strip()}\n"
    return Job(name=name, agent_type=agent_type, script=script, priority=priority, max_attempts=max_attempts)


COUNT = _job(
    "Count the lines of every Python file",
    "count",
    """
sum=0
count() { lines=$(wc -l < "$1"); sum=$((sum + lines)); printf '%6d  %s\\n' "$lines" "$1"; }
files '*.py'; each count; echo "$sum lines in all"
""",
)
TODOS = _job(
    "List what is left to do",
    "todo",
    """
look() { grep -nE 'TODO|FIXME|XXX' "$1" | sed "s|^|$1:|" || true; }
files '*.py' '*.md' '*.sh'; each look; echo "looked at $(wc -l < "$list") files"
""",
    priority=400,
)
HASH = _job(
    "Hash the tree",
    "hash",
    """
sums=$(mktemp); hash() { cksum "$1" | tee -a "$sums"; }
files; each hash; echo "the tree is $(cksum < "$sums" | cut -d' ' -f1)"; rm -f "$sums"
""",
)
LONGEST = _job(
    "Find the longest lines",
    "count",
    """
long() { awk -v file="$1" 'length > max { max = length } END { printf "%5d  %s\\n", max, file }' "$1"; }
files '*.py' '*.md'; each long
""",
    priority=300,
)
WORDS = _job(
    "Count the words of the documents",
    "todo",
    """
words() { printf '%6d words  %s\\n' "$(wc -w < "$1")" "$1"; }
files '*.md' '*.txt' '*.proto'; each words
""",
    priority=600,
)
URGENT = _job(
    "How big is this directory?",
    "hash",
    """
echo '::progress 50% asking du'; du -sh . 2>/dev/null | cut -f1
""",
    priority=900,
)
SECOND_TIME_LUCKY = _job(
    "Works at the second attempt",
    "count",
    """
echo "this is attempt $KAPELL_ATTEMPT"
if [ "$KAPELL_ATTEMPT" -lt 2 ]; then echo "the first attempt fails on purpose" >&2; exit 75; fi
echo "the second one does it"
""",
    priority=800,
    max_attempts=3,
)
HOPELESS = _job(
    "Find a file that is not there",
    "todo",
    """
echo "looking for no-such-file (fails on purpose)"; ls no-such-file
""",
    priority=700,
)
TO_BE_CANCELLED = _job(
    "Count to a thousand, slowly (will be cancelled)",
    "hash",
    """
n=0; while [ "$n" -lt 1000 ]; do n=$((n + 1)); echo "::progress $((n / 10))% at $n"; echo "$n"; sleep 1; done
""",
    priority=950,
    max_attempts=1,
)

OPENING = (COUNT, TODOS, HASH, SECOND_TIME_LUCKY, HOPELESS, LONGEST, WORDS, URGENT)
"""What the demo begins with, besides TO_BE_CANCELLED."""

TRICKLE = (COUNT, WORDS, URGENT, TODOS, LONGEST, HASH, SECOND_TIME_LUCKY)
"""What comes afterwards, one at a time, over and over."""

READER = "reader"
"""Name of the fourth agent, which takes tasks of the templates that come with Kapell."""

READS = f"""
prompt=$(mktemp)
{_FILES}
trap 'rm -f "$list" "$prompt"' EXIT INT TERM
cat > "$prompt"
echo "This is the demo: a script, not a model. It looks at the files that the prompt names."
sed -n 's/^- //p' "$prompt" | while IFS= read -r file; do [ ! -f "$file" ] || echo "$file"; done | head -n 60 > "$list"
look() {{
  printf '%s: %d lines, %d words, longest line %d\\n' "$1" "$(wc -l < "$1")" "$(wc -w < "$1")" \\
    "$(awk 'length > max {{ max = length }} END {{ print max + 0 }}' "$1")"
}}
each look
echo "read a prompt of $(wc -l < "$prompt") lines and looked at $(wc -l < "$list") files"
""".strip()
"""What it does: reads the prompt on standard input and looks at the files of its lists."""

AGENTS = (("counter", "count"), ("scribe", "todo"), ("hasher", "hash"))
"""Name and agent type of the three agents over the files; each also serves "shell", with room for others' tasks."""

PLAYERS = (("editor", "edit", 4), ("drafter", "draft", 2))
"""Name, agent type and slots of the two agents that play the scenes, and take nothing else."""
