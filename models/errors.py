"""The one exception whose text is shown to the user, and the text of any other on one line."""


class UserError(Exception):
    """Report something the user can fix: what is wrong, where, the value, and the next step, in one line."""


def shortened(text: str, most: int = 300) -> str:
    """Return a text of at most `most` characters: of a longer one, how it begins and ends."""
    return text if len(text) <= most else f"{text[: 2 * most // 3]} … {text[-most // 3 + 3 :]}"


def one_line(error: BaseException, most: int) -> str:
    """Return the start of an error's text on one line."""
    return " ".join(str(error).split())[:most]
