"""Rules that server and clients share, so that both judge alike and in the same words.

Pure functions on messages and plain values. Imports the standard library, the messages and RE2, and
is the one part of the client, besides the messages, that the server may import.
"""
