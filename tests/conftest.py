"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Nothing is asserted by timing: a busy machine makes examples slow, not wrong. What is found is printed to be repeated.
settings.register_profile(
    "cloudhub", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cloudhub")
