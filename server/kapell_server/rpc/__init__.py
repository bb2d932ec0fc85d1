"""The gRPC face of the server: every call passes one pipeline into a thin servicer.

A call is observed, let in, parsed and checked by `pipeline`, answered by a servicer of about
ten lines a method, and refused by the one table in `status`. What a method needs (scope,
message types) is read from the descriptors in `methods`, so a new rpc cannot be forgotten:
a server whose servicers lack a method does not start.

Only this package and the client know grpc. Nothing here decides anything about tasks or
agents; that is the engine's.
"""
