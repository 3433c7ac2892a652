"""What a running daemon answers about itself: the socket, the protocol, the facts and the metrics. Imports nothing, so
that commands can use the client without trio."""
