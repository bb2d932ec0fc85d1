"""The command tree: every command's name, its line in the help, and the module that has it.

To add a command: a line here, a function in `commands/`, a transcript in `tests/golden/cli/`.
A test compares the lines here with the help of the commands themselves.
"""

from __future__ import annotations

from kapell.cli.shape import Node

TREE = Node(
    "Kapell runs AI agents as supervised processes and keeps their work durable.",
    examples="""
        kapell up --demo                              # see it alive
        kapell status                                 # what waits for you
        kapell task run --type shell "wc -l *.py"     # run a command in an agent
        kapell task list --state failed -o id | kapell task retry -
    """,
    children={
        "up": Node("Start the server here.", "up:up"),
        "status": Node("Show what waits for you, and how everything is.", "status:status"),
        "task": Node(
            "Create, follow and steer tasks.",
            examples="""
                kapell task run --type shell "wc -l *.py"
                kapell task list --state running
                kapell task logs --follow task_01kabc
            """,
            children={
                "run": Node("Create a task and follow it to its end.", "task_run:run"),
                "create": Node("Create a task and return at once.", "task_write:create"),
                "list": Node("List tasks, the newest first.", "task_read:list_"),
                "get": Node("Show one task with its prompt, input and result.", "task_read:get"),
                "logs": Node("Show what a task printed.", "task_follow:logs"),
                "watch": Node("Show changes of tasks as they happen.", "task_follow:watch"),
                "wait": Node("Wait until tasks have ended.", "task_follow:wait"),
                "tree": Node("Show a task with its children and theirs.", "task_tree:tree"),
                "explain": Node("Tell why a task is not running.", "task_explain:explain"),
                "attempts": Node("List the attempts at a task.", "task_read:attempts"),
                "artifacts": Node("List the files of a task.", "artifact:artifacts"),
                "update": Node("Change a task that has not ended.", "task_write:update"),
                "reprioritize": Node("Give tasks another priority.", "task_steer:reprioritize"),
                "cancel": Node("Cancel tasks, and those below them.", "task_end:cancel"),
                "retry": Node("Queue failed or cancelled tasks again.", "task_steer:retry"),
                "approve": Node(
                    "Decide about the start of a task, perhaps with other parameters.", "approval_decide:approve_task"
                ),
                "merge": Node("Merge what a task has done into its base.", "task_merge:merge"),
                "edits": Node("List what a task was before it was edited.", "task_steer:edits"),
                "delete": Node("Delete ended tasks with their logs.", "task_end:delete"),
            },
        ),
        "run": Node("Create a task from a template and follow it to its end.", "template_run:run"),
        "template": Node(
            "Prompts with typed parameters, kept in versions.",
            examples="""
                kapell template list
                kapell template get code-review
                kapell template render code-review --param files=README.md
                kapell template apply -f greet.yaml
            """,
            children={
                "list": Node("List templates, the newest first.", "template_read:list_"),
                "get": Node("Show one template with its parameters and prompt.", "template_read:get"),
                "versions": Node("List the versions of a template.", "template_read:versions"),
                "render": Node("Show what a task of a template would be.", "template_try:render"),
                "validate": Node("Check template files without storing them.", "template_try:validate"),
                "apply": Node("Create or update templates from files.", "template_write:apply"),
                "export": Node("Print a template as a file for `apply`.", "template_read:export"),
                "clone": Node("Create a template from another one, with other defaults.", "template_write:clone"),
                "alias": Node("Let a name stand for a version.", "template_write:alias"),
                "delete": Node("Delete templates with all their versions.", "template_write:delete"),
            },
        ),
        "queue": Node(
            "How tasks of each agent type are given out.",
            examples="""
                kapell queue list
                kapell queue pause build --reason "the runner is being moved"
                kapell queue set build --max-running 4
            """,
            children={
                "list": Node("Show what waits and what runs, by agent type.", "queue_read:list_"),
                "pause": Node("Stop giving out tasks.", "queue_write:pause"),
                "resume": Node("Open a paused or draining queue again.", "queue_write:resume"),
                "drain": Node("Refuse new tasks.", "queue_write:drain"),
                "set": Node("Set how many tasks may run, and how many may start in a period.", "queue_write:set_"),
            },
        ),
        "secret": Node(
            "Values that agents need and nobody else gets to see.",
            examples="""
                kapell secret set github-token
                kapell secret list
                kapell run release --param token=secret:github-token
            """,
            children={
                "list": Node("List secrets, the newest first.", "secret:list_"),
                "set": Node("Create or replace a secret.", "secret:set_"),
                "delete": Node("Forget secrets.", "secret:delete"),
                "rotate-key": Node("Make a new key and encrypt all values with it.", "secret:rotate_key"),
            },
        ),
        "limit": Node(
            "How many tasks of a concurrency key run at a time.",
            examples="""
                kapell limit set repo:web --max 2
                kapell limit list
                kapell task create --type build --concurrency-key repo:web "make test"
            """,
            children={
                "list": Node("List the limits that were set, the newest first.", "limit:list_"),
                "set": Node("Create or replace the limit of a concurrency key.", "limit:set_"),
                "delete": Node("Forget the limits of concurrency keys.", "limit:delete"),
            },
        ),
        "lock": Node(
            "Locks on paths: who may work where.",
            examples="""
                kapell lock list
                kapell lock run web/src -- make format
                kapell lock graph
            """,
            children={
                "list": Node("List the locks that are held, by path.", "lock_read:list_"),
                "waiters": Node("List who waits for locks, in the order of the queue.", "lock_read:waiters"),
                "graph": Node("Show who waits for whom.", "lock_read:graph"),
                "run": Node("Hold locks while a command runs.", "lock_run:run"),
                "acquire": Node("Acquire locks, all or none.", "lock_write:acquire"),
                "renew": Node("Renew locks.", "lock_write:renew"),
                "release": Node("Release locks.", "lock_write:release"),
                "cancel": Node("Leave the queue for locks.", "lock_write:cancel"),
                "sessions": Node("List the open sessions, the eldest first.", "lock_read:sessions"),
                "guard": Node("Refuse changes of files whose locks are not held.", "lock_guard:guard"),
            },
        ),
        "schedule": Node(
            "Tasks that are made by the clock.",
            examples="""
                kapell schedule create backup --cron "0 3 * * *" --type shell --prompt "make backup"
                kapell schedule list
                kapell schedule preview --cron "30 2 * * *" --timezone Europe/Berlin
                kapell schedule trigger backup
            """,
            children={
                "create": Node("Create a schedule.", "schedule_write:create"),
                "list": Node("List schedules, the newest first.", "schedule_read:list_"),
                "get": Node("Show one schedule with its task.", "schedule_read:get"),
                "preview": Node("Show the next times of a schedule.", "schedule_read:preview"),
                "update": Node("Change a schedule.", "schedule_write:update"),
                "pause": Node("Let schedules make no tasks until they are resumed.", "schedule_steer:pause"),
                "resume": Node("Let paused schedules run again.", "schedule_steer:resume"),
                "trigger": Node("Make a run of a schedule now.", "schedule_steer:trigger"),
                "delete": Node("Delete schedules.", "schedule_steer:delete"),
            },
        ),
        "approval": Node(
            "What waits for a decision of yours, and the rules that decide for you.",
            examples="""
                kapell approval list
                kapell approval show approval_01kabc
                kapell approval approve approval_01kabc -m "go on"
                kapell approval deny approval_01kabc -m "not before the release"
            """,
            children={
                "list": Node(
                    "List what waits for a decision: what blocks most first, then what expires first.",
                    "approval_read:list_",
                ),
                "show": Node("Show one approval with all that is decided about.", "approval_read:show"),
                "approve": Node("Approve what is asked for, or answer a question.", "approval_decide:approve"),
                "deny": Node("Refuse what is asked for.", "approval_decide:deny"),
                "watch": Node("Show what waits for a decision, and what comes, as it happens.", "approval_read:watch"),
                "audit": Node("List who decided what, when and from where, the newest first.", "approval_read:audit"),
                "export": Node(
                    "Print all that was done to approvals and rules, the oldest first.", "approval_export:export"
                ),
                "rules": Node("List the rules that decide by themselves, the newest first.", "approval_rules:rules"),
                "remember": Node("Create a rule that decides what matches from now on.", "approval_rules:remember"),
                "forget": Node("Revoke rules.", "approval_rules:forget"),
            },
        ),
        "budget": Node(
            "How much tasks may cost, and what happens at the limit.",
            examples="""
                kapell budget create nightly --limit '$5' --window daily --timezone Europe/Berlin
                kapell budget list
                kapell budget get nightly
                kapell budget resume nightly --add '$2'
            """,
            children={
                "create": Node("Create a budget.", "budget:create"),
                "list": Node("List budgets with what is spent and reserved.", "budget:list_"),
                "get": Node("Show one budget.", "budget:get"),
                "update": Node("Change a budget.", "budget:update"),
                "resume": Node("Let work go on that a budget holds back.", "budget:resume"),
                "delete": Node("Delete budgets.", "budget:delete"),
            },
        ),
        "alert": Node(
            "What somebody should know of.",
            examples="""
                kapell alert list
                kapell alert ack alert_01kabc --until 2h
            """,
            children={
                "list": Node("List alerts, those that are firing first.", "alert:list_"),
                "ack": Node("Say that somebody has taken note of alerts.", "alert:ack"),
            },
        ),
        "webhook": Node(
            "Events that the server sends to an address of yours.",
            examples="""
                kapell webhook create pager --url http://127.0.0.1:8080/kapell
                kapell webhook test pager
                kapell webhook deliveries pager
            """,
            children={
                "create": Node("Create a webhook.", "webhook:create"),
                "list": Node("List webhooks, the newest first.", "webhook:list_"),
                "delete": Node("Delete webhooks.", "webhook:delete"),
                "test": Node("Send a test event to a webhook now.", "webhook:test"),
                "deliveries": Node("List what was sent to a webhook.", "webhook:deliveries"),
                "resend": Node("Send deliveries of a webhook again.", "webhook:resend"),
            },
        ),
        "agent": Node(
            "Spawn, watch and end agents.",
            examples="""
                kapell agent spawn shell
                kapell agent list
                kapell agent logs --follow agent_01kabc
            """,
            children={
                "spawn": Node("Start an agent from a profile or a command.", "agent_write:spawn"),
                "list": Node("List agents that have not ended, the newest first.", "agent_read:list_"),
                "get": Node("Show one agent.", "agent_read:get"),
                "logs": Node("Show the log of an agent's own process.", "agent_read:logs"),
                "watch": Node("Show changes of agents as they happen.", "agent_read:watch"),
                "drain": Node("Let agents finish what they have and take nothing new.", "agent_write:drain"),
                "resume": Node("Let draining agents take tasks again.", "agent_write:resume"),
                "terminate": Node("End agents and everything they started.", "agent_end:terminate"),
                "delete": Node("Remove ended agents from the lists.", "agent_end:delete"),
            },
        ),
        "workspace": Node(
            "Worktrees that tasks have on this machine.",
            examples="""
                kapell workspace list
                kapell task merge task_01kabc
                kapell workspace prune --dry-run
            """,
            children={
                "list": Node("List the worktrees of tasks on this machine.", "workspace:list_"),
                "show": Node("Show the worktrees of a task, and why they are kept.", "workspace:show"),
                "release": Node(
                    "Remove the worktrees of ended tasks; their branches stay until their base has them.",
                    "workspace:release",
                ),
                "prune": Node(
                    "Remove worktrees of ended tasks that are clean, and whose branches are merged, pushed or empty.",
                    "workspace:prune",
                ),
            },
        ),
        "artifact": Node(
            "Files that tasks leave behind or are given.",
            examples="""
                kapell task artifacts task_01kabc
                kapell artifact download artifact_01kabc
                kapell artifact upload task_01kabc report.html
            """,
            children={
                "upload": Node("Upload a file as an artifact of a task.", "artifact:upload"),
                "download": Node("Download an artifact.", "artifact:download"),
                "get": Node("Show one artifact.", "artifact:get"),
                "delete": Node("Delete artifacts.", "artifact:delete"),
            },
        ),
        "usage": Node(
            "What agents' work has used, and what it costs.",
            examples="""
                kapell usage show --by model,day
                kapell usage export --since 7d
                kapell usage estimate --model gpt-5 --input-tokens 20000 --output-tokens 3000 --runs 100
            """,
            children={
                "show": Node("Sum usage by time, model, agent, task or label.", "usage:show"),
                "export": Node("Print the records themselves.", "usage:export"),
                "estimate": Node("Tell what work will cost.", "usage:estimate"),
            },
        ),
        "price": Node(
            "What models cost.",
            examples="""
                kapell price list --provider anthropic
                kapell price set mycloud llama-4 --input-price 0.20 --output-price 0.60
                kapell price reprice --dry-run
            """,
            children={
                "list": Node("List prices of models.", "price:list_"),
                "get": Node("Show the price of a model.", "price:get"),
                "set": Node("Set the price of a model.", "price:set_"),
                "delete": Node("Forget prices that were set.", "price:delete"),
                "reprice": Node("Cost what was recorded anew.", "price:reprice"),
            },
        ),
        "profile": Node(
            "The profiles agents are spawned from.",
            examples="kapell profile list",
            children={"list": Node("List the profiles of the server's configuration.", "profile:list_")},
        ),
        "event": Node(
            "The event log: every change, in order.",
            examples="""
                kapell event watch --kind task.completed
                kapell event list --limit 20
            """,
            children={
                "watch": Node("Show every change as it happens, without gap or duplicate.", "event:watch"),
                "list": Node("List recorded events, the newest first.", "event:list_"),
                "compact": Node("Drop the oldest events before their time.", "event_compact:compact"),
            },
        ),
        "auth": Node(
            "What proves who you are.",
            examples='curl -H "authorization: Bearer $(kapell auth token)" …',
            children={
                "token": Node(
                    "Print the token this command line uses; make, list and revoke others.",
                    "auth:token",
                    examples="""
                        kapell auth token create ci --scope read --scope write
                        kapell auth token list
                    """,
                    children={
                        "create": Node(
                            "Make a token of a user, and print it: it cannot be read again.", "token:create"
                        ),
                        "list": Node("List tokens, the newest first, without their secrets.", "token:list_"),
                        "revoke": Node(
                            "End tokens at once and for good; their open streams end within 2 s.", "token:revoke"
                        ),
                        "rotate-admin": Node(
                            "Give the owner of the local server another token; the one before opens nothing any more.",
                            "token:rotate_admin",
                        ),
                    },
                ),
                "whoami": Node("Tell whose token this command line uses, and what it may do.", "token:whoami"),
            },
        ),
        "audit": Node(
            "What administrators did to the server.",
            examples="""
                kapell audit list
                kapell audit export
            """,
            children={
                "list": Node("List what administrators did, the newest first.", "audit:list_"),
                "export": Node(
                    "Print the audit log, the oldest entry first, one line of JSON each; however long it is.",
                    "audit:export",
                ),
            },
        ),
        "version": Node("Show the versions of client and server.", "version:version"),
        "completion": Node("Print the completion script for your shell.", "completion:completion"),
    },
)
