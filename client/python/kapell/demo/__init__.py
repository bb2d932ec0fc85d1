"""The living demo of `kapell up --demo`: real agents, real commands, no model.

`server` runs a server as a child process, `work` knows the commands the agents run, `scenes` those that
show locks, a budget and a question, `stage` fills a server through the public API and keeps it alive.
"""
