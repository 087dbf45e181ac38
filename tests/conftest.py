"""What all tests share."""

from hypothesis import settings

settings.register_profile("default", deadline=None)  # the first call of a compiled function compiles it
settings.load_profile("default")
