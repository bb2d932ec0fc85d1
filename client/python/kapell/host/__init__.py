"""The agent host: the process behind a spawned agent (`python -m kapell.host`).

The server starts it with a ticket and a spec; it registers, takes tasks and carries them out with
the spec's runtime. It speaks WorkerService as any third party would.

It is told by its environment:

    KAPELL_ADDRESS      where the server is
    KAPELL_TICKET       what it registers with
    KAPELL_AGENT_ID     which agent it is
    KAPELL_SPEC_FILE    AgentSpec as JSON
    KAPELL_WORKSPACES_DIR  where worktrees of tasks and their registry are; default: ./workspaces
    KAPELL_MARK         passed on to programs, so that the server finds all of the agent's processes

and keeps its files in the directory it is started in. It ends, with everything it started, by
SIGTERM or SIGINT (at once), when the server says so (after its tasks), or when the server no longer
knows it. A server that is away makes it wait, not end.
"""
