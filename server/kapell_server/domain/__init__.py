"""The rules of Kapell, as pure functions over loaded state.

Nothing here does I/O, reads a clock, draws a random number of its own or knows a database or
gRPC. A command is decided by a function `decide(state, request)` that looks at `State`, raises
`KapellError` to refuse, or puts changed resources into it and returns the answer. Imports: the
standard library and `kapell.v1` messages only.
"""
