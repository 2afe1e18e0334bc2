"""Answer a question whose evidence is spread over passages: read, write a query, retrieve again, answer."""

from collections.abc import Sequence
from typing import Any

import dspy

HOPS = 2
"""Times that passages are retrieved; the first time with the question itself."""


class Multihop(dspy.Module):
    """Answer from the passages of the question and from those of a query that the model writes after reading them.

    The first passages come with the example. Further ones come from `dspy.settings.rm`, as for `dspy.Retrieve`; where
    there is none, as under gold or no knowledge, the answer is given from the first passages.
    """

    def __init__(self, inputs: Sequence[str], output: str, instructions: str = "") -> None:
        """Build both signatures from the task's field names; empty instructions leave DSPy's own."""
        super().__init__()
        given: dict[str, Any] = {"passages": (list[str], dspy.InputField())}
        given |= {name: (str, dspy.InputField()) for name in inputs}
        # The answer is the first predictor: its prompt is the one that is counted and that demonstrations fill.
        self.answer = dspy.Predict(dspy.Signature(given | {output: (str, dspy.OutputField())}, instructions or None))
        # Not over a question that is called so.
        self.query = "search_query" if "query" in inputs else "query"
        query = {self.query: (str, dspy.OutputField(desc="words to search for"))}
        task = "Write a search query for the fact that the question needs and the passages do not tell."
        self.write_query = dspy.Predict(dspy.Signature(given | query, task))

    def forward(self, passages: Sequence[str], **inputs: str) -> dspy.Prediction:
        """Return the answer, and the queries that were written on the way."""
        read, queries = list(passages), list[str]()
        for _ in range(HOPS - 1 if dspy.settings.rm is not None else 0):
            query = str(self.write_query(passages=read, **inputs)[self.query]).strip()
            if not query:
                break
            queries.append(query)
            found = [p.long_text for p in dspy.settings.rm(query)]
            read += [text for text in found if text not in read]
        prediction = self.answer(passages=read, **inputs)
        return dspy.Prediction(**{"queries": queries, **prediction.toDict()})


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; an open answer has no labels."""
    return Multihop(inputs, output, instructions)
