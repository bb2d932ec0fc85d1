"""The one writer: takes commands from a bounded mailbox, decides and commits them in groups.

States: stopped, serving, draining. Authority: nobody else changes a resource. Failures: a refused
command is answered alone; a batch that the database refuses leaves memory as it was, and is
tried again one command at a time, so that only the guilty one fails.
"""
