"""What `kapell.worker` and `kapell.host` are made of; nothing here is public.

One worker is one `session` (who we are to the server), one `leases` table (what we hold) and a few
loops around them: `polling` asks for work, `heartbeat` keeps it, `directives` hears of cancels early,
`logs` and `progress` report, `outbox` ends attempts. `attempts` runs one handler for one offer.
"""
