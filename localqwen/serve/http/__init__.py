"""The HTTP side of the server: sockets, routes, access, bodies, metrics."""
