"""The one exception that people read."""


class UserError(Exception):
    """Report something the user can fix: what is wrong, where, the value, and the next step, in one line."""
