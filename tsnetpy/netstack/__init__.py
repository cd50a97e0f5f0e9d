"""The packet path as anyio streams: the pump that owns the data plane, TCP, UDP and ping over it."""
