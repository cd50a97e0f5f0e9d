"""The control protocol's transport and state, without I/O.

Read in this order: :mod:`.handshake` and :mod:`.records` (Noise over a byte stream), :mod:`.client` and :mod:`.server`
(the two engines), :mod:`.framing` (messages of the long poll), :mod:`.netmap` (what they add up to), :mod:`.login`.
"""
