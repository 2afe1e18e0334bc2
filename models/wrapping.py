"""An engine around another one."""

from typing import Any, Self


class WrappingEngine:
    """An engine that asks `inner`; subclasses answer, and all copies of a model share it."""

    def __init__(self, inner: Any, *, local: bool) -> None:
        """Wrap `inner`, which is `local` when its model runs in this process."""
        self.inner, self.local = inner, local

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: copies are counted and held together."""
        return self

    @property
    def supported_params(self) -> frozenset[str]:
        """Return the request options that a remote model takes."""
        return frozenset() if self.local else self.inner.supported_params

    @property
    def supports_response_schema(self) -> bool:
        """Return whether a remote model's answers can be bound to a JSON schema."""
        return False if self.local else bool(self.inner.supports_response_schema)
