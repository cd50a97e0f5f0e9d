"""The virtual NIC: cuts super-segments into packets at the last moment (TSO) and joins arriving ones (GRO)."""
