"""One unprivileged Python process on a tailnet."""
