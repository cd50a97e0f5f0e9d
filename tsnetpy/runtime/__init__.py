"""What the shell above the engines stands on: clock, cells, supervision, bounded queues, TLS, batched UDP."""
