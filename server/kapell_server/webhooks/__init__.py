"""Sends events to webhooks: follows the log, keeps what is to be sent in rows, sends until it has arrived."""
