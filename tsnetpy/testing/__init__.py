"""A kit for tests: virtual time, seeded randomness, simulated links, packets by hand, whole tailnets in one process.

``docs/testing-kit.md`` says which module does what, with an example of each. Modules are imported one by one
(``from tsnetpy.testing.sim import Simulator``), so that a test loads no more than it uses.
"""
