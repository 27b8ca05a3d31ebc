"""Settings for every test."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# Timings are not what these tests are about, and the machine may be shared; the same examples every time.
settings.register_profile(
    "morphogen", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("morphogen")
