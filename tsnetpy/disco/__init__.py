"""Disco, STUN and path choice as pure engines (data path reference, sections 2, 4 and 6)."""
