"""Settings for all tests."""

from hypothesis import settings

# A busy machine is no reason to fail: properties are about results, and pytest-timeout catches what hangs.
settings.register_profile("tsnetpy", deadline=None)
settings.load_profile("tsnetpy")
