"""Failures a caller can act on; everything else is a defect and keeps its traceback."""


class SettingError(ValueError):
    """A setting is wrong: the message names it, what it must be and what it was (exit status 2)."""


class DataError(ValueError):
    """Input data cannot be used: the message names file, line or column (exit status 2)."""


class RunError(RuntimeError):
    """A run cannot go on for a reason outside the code (exit status 1)."""
