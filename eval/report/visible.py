"""Text that comes from data or from a provider, made safe to print."""

import unicodedata


def visible(text: object) -> str:
    """Return the text with control, format and lone surrogate characters as their code; line ends and tabs stay.

    A right-to-left override would turn the rest of the page around, a zero-width space would hide a difference.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else f"⟨U+{ord(c):04X}⟩"
        for c in str(text)
    )
