"""Settings of all tests."""

import hypothesis

# A machine that others share is slow now and then: no single example has a deadline, whole tests have a timeout.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")
