"""DERP, the relay protocol: frames, client and server byte-stream engines, home choice (reference, section 3)."""
