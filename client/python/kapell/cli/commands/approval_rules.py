"""`kapell approval rules`, `remember` and `forget`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.approval_views import APPROVALS, EFFECTS, OPEN, RISKS, RULES, preview_text
from kapell.cli.output import note, write, write_changed, write_list
from kapell.cli.shape import command
from kapell.cli.terminal import visible
from kapell.cli.times import MOMENT

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.approval_pb2 import ApprovalRule, ApprovalRuleSpec


@command(
    "rules",
    "List the rules that decide by themselves, the newest first.",
    examples="kapell approval rules",
)
@options.limit
@options.output
@click.pass_obj
def rules(app: App, /, limit: int) -> None:
    async def work(client: Client) -> list[ApprovalRule]:
        return list((await client.approvals.list_rules(page_size=min(limit, 1000))).rules)

    empty = "No rules yet. Make one with: kapell approval remember --help"
    write_list(app.run(work), RULES, app.terminal, app.output, empty=empty)


@command(
    "remember",
    "Create a rule that decides what matches from now on, after a look at what it would have matched.",
    examples="""
        kapell approval remember approve --tool bash --command "git status" --command "git diff *" --dry-run
        kapell approval remember deny --command "git push *" --reason "releases are made by hand"
        kapell approval remember require --type "deploy*"
    """,
)
@click.argument("effect", type=click.Choice(tuple(EFFECTS.values())))
@click.option("-t", "--type", "agent_type", default="", metavar="PATTERN", help="Of agent types that match.")
@click.option("--tool", default="", metavar="PATTERN", help="Tools that match.")
@click.option("--command", "commands", multiple=True, metavar="PATTERN", help="Commands that match; may be repeated.")
@click.option("--path", "paths", multiple=True, metavar="PATTERN", help="Paths that match; may be repeated.")
@click.option("--task", "task_id", default="", metavar="TASK_ID", help="Only for this task.")
@click.option("--tree", "root_task_id", default="", metavar="TASK_ID", help="Only for this task and all below it.")
@click.option("--template", "template_id", default="", metavar="TEMPLATE", help="Only for tasks of this template.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Ends then: 8h from now, or a time.")
@click.option("--uses", "max_uses", type=click.IntRange(1), metavar="N", help="Ends after so many uses.")
@click.option(
    "--max-risk",
    type=click.Choice(("low", "medium", "high")),
    metavar="RISK",
    help="Approves nothing riskier. [default: medium]",
)
@click.option("--reason", default="", metavar="TEXT", help="What it is for; a refusal says it.")
@click.option("--anything", is_flag=True, help="It is meant to approve whatever comes, up to the risk medium.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def remember(
    app: App,
    /,
    effect: str,
    until: float | None,
    max_uses: int | None,
    max_risk: str | None,
    yes: bool,
    dry_run: bool,
    **said: Any,
) -> None:
    from kapell.messages import timestamp
    from kapell.v1.approval_pb2 import ApprovalRuleSpec, RiskLevel, RuleEffect

    spec: ApprovalRuleSpec = ApprovalRuleSpec(
        effect=RuleEffect.Value(next(name for name, word in EFFECTS.items() if word == effect)),
        max_uses=max_uses or 0,
        expire_time=None if until is None else timestamp(datetime.fromtimestamp(until, UTC)),
        **said,
    )
    if max_risk is not None:
        spec.max_risk = RiskLevel.Value(next(name for name, (word, _) in RISKS.items() if word == max_risk))
    if dry_run:
        found = app.run(lambda client: client.approvals.preview_rule(spec))
        note(f"Dry run: it matches {preview_text(found)}. Nothing was changed.")
        if found.anything:
            note(app.terminal.err(OPEN, "red"))
        write_list(list(found.examples), APPROVALS, app.terminal, app.output)
        return
    if effect == "approve" and app.terminal.is_tty and sys.stdin.isatty() and not yes:
        before = app.run(lambda client: client.approvals.preview_rule(spec))
        if before.anything:
            note(app.terminal.err(OPEN, "red"))
        examples = [f"{one.approval_id}  {visible(one.title)}" for one in before.examples]
        question = f"Approve what matches from now on; {preview_text(before)} would have"
        options.confirm(app, question, examples, yes=False)
    write_changed([app.run(lambda client: client.approvals.create_rule(spec))], RULES, app.terminal, app.output)


@command(
    "forget",
    "Revoke rules; what they have decided stays decided.",
    examples="kapell approval forget rule_01kabc",
)
@click.argument("rule_ids", nargs=-1, required=True, metavar="RULE_ID...", callback=options.with_stdin)
@options.dry_run
@options.output
@click.pass_obj
def forget(app: App, /, rule_ids: tuple[str, ...], dry_run: bool) -> None:
    async def one(client: Client, rule_id: str) -> str:
        if not dry_run:
            await client.approvals.delete_rule(rule_id)
        return rule_id

    if dry_run:
        note("Dry run: these rules would be revoked. Nothing was changed.")
    found = app.run(lambda client: bulk.each(rule_ids, lambda rule_id: one(client, rule_id)))
    for rule_id in found.answers:
        write(rule_id)
    found.finish(app.terminal)
