"""The errors that LongFocus raises for its users.

A message has four parts: what is wrong, what was got, what is allowed, what to do.
"""


class LongFocusError(ValueError):
    """Something that the user gave cannot be used; the message says why and what to do."""
