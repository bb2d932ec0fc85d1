"""The acp runtime: drives an agent of the Agent Client Protocol over its standard input and output.

One program for each attempt, one prompt. What of it is where:

    runtime       an attempt from its start to the end of all processes
    conversation  the calls of one program: greet, sign in, open a session, prompt
    protocol      what version 1 of the protocol says; the one place that knows it, and how the draft of 2 differs
    wire          messages on pipes, bounded, whatever the agent prints
    service       what the agent asks for, each request to its room: permissions, files, terminals
    updates       what the agent tells, as log, progress, usage and result
    kept          which session an attempt has had, for the next one

The library behind it takes half a second to import, so nothing but `kapell.runtimes.build` imports this package.
"""
