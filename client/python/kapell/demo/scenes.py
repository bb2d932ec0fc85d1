"""The scenes of the demo: locks, a budget, and a question; each played again once it has ended.

No model is asked in any of them. The figures of usage are fixed, are said to be so by their source and
the label `demo`, and reach the ledger as those of any program do: with its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from kapell.approvals import approval_policy
from kapell.demo.work import Job, Use

SOURCE = "kapell demo: fixed figures, no model was asked"
"""What each of the demo's records of usage says of itself."""

# `steps N` works visibly; `used MODEL INPUT OUTPUT` writes the result with the use of a model in it.
_PLAY = f"""
set -u; pace=${{KAPELL_DEMO_PACE:-0.1}}
steps() {{
  n=0; while [ "$n" -lt "$1" ]; do n=$((n + 1)); echo "::progress $((n * 100 / $1))% step $n of $1"; sleep "$pace"; done
}}
used() {{
  printf '{{"said": "%s", "kapell_usage": [{{"record_id": "demo-%s-%s", "model": "%s", "input_tokens": %d,' \\
    "$said" "$KAPELL_TASK_ID" "$KAPELL_ATTEMPT" "$1" "$2" > "$KAPELL_RESULT_FILE"
  printf ' "output_tokens": %d, "source": "{SOURCE}"}}]}}\\n' "$3" >> "$KAPELL_RESULT_FILE"
  echo "$said; says it used $2 + $3 tokens of $1 (the demo's figures, no model was asked)"
}}
""".strip()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Jobs that are created together. `rest` is how many seconds after their end they are created again."""

    name: str
    jobs: tuple[Job, ...]
    rest: float = 0.0


WRITER = Use(model="claude-sonnet-4-5", input_tokens=8_000, output_tokens=1_200, cost=Decimal("0.042"))
DRAFTER = Use(model="gpt-5-mini", input_tokens=20_000, output_tokens=2_500, cost=Decimal("0.01"))
READER = Use(model="demo-local-7b", input_tokens=5_000, output_tokens=400, cost=None)


def _plays(steps: int, said: str, use: Use) -> str:
    figures = f"{use.model} {use.input_tokens} {use.output_tokens}"
    return f'{_PLAY}\necho "my locks: $KAPELL_LOCKS"\nsteps {steps}; said="{said}"; used {figures}\n'


REWRITE = Job(
    name="Rewrite the cart",
    agent_type="edit",
    script=_plays(250, "rewrote demo/shop/src/cart", WRITER),
    locks=("demo/shop/src/cart",),
    use=WRITER,
)
SUM = Job(
    name="Mend the sum of the cart (waits for the rewrite)",
    agent_type="edit",
    script=_plays(50, "mended demo/shop/src/cart/sum.py", WRITER),
    locks=("demo/shop/src/cart/sum.py",),
    use=WRITER,
)
READ = Job(
    name="Read the guide",
    agent_type="edit",
    script=_plays(150, "read demo/shop/docs", READER),
    read_locks=("demo/shop/docs",),
    use=READER,
)
REVIEW = Job(
    name="Review the guide (beside its reader)",
    agent_type="edit",
    script=_plays(100, "reviewed demo/shop/docs", READER),
    read_locks=("demo/shop/docs",),
    use=READER,
)

FLOOD = 12
"""Drafts in the flood, far more than the budget has room for."""

BUDGET_ID = "budget_demo"
BUDGET_LIMIT = "$0.05"

DRAFTS = tuple(
    Job(
        name=f"Draft {number} of {FLOOD}",
        agent_type="draft",
        script=_plays(20, f"drafted {number}", DRAFTER),
        estimate=f"${DRAFTER.cost}",
        use=DRAFTER,
    )
    for number in range(1, FLOOD + 1)
)

PUBLISH = Job(
    name="Publish what has changed",
    agent_type="edit",
    script="""
# Collects what has changed, among this task's own artifacts and nowhere else.
set -eu
out=$KAPELL_ARTIFACTS_DIR/release
mkdir -p "$out/draft"
{ git log --oneline -n 20 2>/dev/null || ls -1; } > "$out/draft/CHANGES.txt"
mv "$out/draft/CHANGES.txt" "$out/CHANGES.txt"
rm -rf "$out/draft"
wc -l "$out/CHANGES.txt"
""".lstrip(),
    approval=approval_policy(reason="the demo shows how a command is read before it may run"),
    max_attempts=1,
)

LOCKS = Scene(name="locks", jobs=(REWRITE, SUM, READ, REVIEW))
SPENDING = Scene(name="drafts", jobs=DRAFTS)
ASKING = Scene(name="release", jobs=(PUBLISH,), rest=60)
SCENES = (ASKING, LOCKS, SPENDING)
