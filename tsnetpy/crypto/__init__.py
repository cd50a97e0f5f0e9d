"""Cryptography: the only package that imports ``cryptography`` and ``nacl``.

Everything here takes and gives plain bytes. Keys and secrets never appear in a message or a ``repr``.
"""
