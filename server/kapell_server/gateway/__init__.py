"""The HTTP door: the same calls as over gRPC, through the same pipeline, for those who speak HTTP.

An endpoint turns what arrives into the message of an rpc and hands it to that rpc's pipeline, so that
authentication, scopes, validation, limits and errors are those of gRPC and stand in one place.
"""
