"""A Step-Trace Buffer over HTTP: protocol, server and clients."""
