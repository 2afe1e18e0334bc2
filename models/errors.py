"""The one exception whose text is shown to the user."""


class UserError(Exception):
    """Report something the user can fix: what is wrong, where, the value, and the next step, in one line."""
