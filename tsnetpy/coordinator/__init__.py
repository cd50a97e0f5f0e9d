"""A tailnet in a box: coordination server, DERP relay and STUN server that official Tailscale clients can join."""
