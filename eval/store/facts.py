"""Write the facts of a fit to the `notes` of fit.json and result.json, and read them back."""

from collections.abc import Mapping
from typing import Any

from crossover.programs.task import FitFacts


def flat_notes(facts: FitFacts, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts and the notes as one JSON object, without the facts that have their default value."""
    stored: dict[str, Any] = {"labels_used": facts.labels_used}
    if facts.train_examples is not None:
        stored |= {"train_examples": facts.train_examples, "val_examples": facts.val_examples}
    if facts.val_score is not None:
        stored["val_score"] = facts.val_score
    if facts.teacher or facts.teacher_usd != 0:
        stored["teacher"] = {"model": facts.teacher, "calls": facts.teacher_calls, "usd": facts.teacher_usd}
    if facts.discarded_seconds:
        stored["discarded_seconds"] = facts.discarded_seconds
    if facts.training_seconds or facts.training_usd != 0:
        stored |= {"training_seconds": facts.training_seconds, "training_usd": facts.training_usd}
    if facts.logit_change is not None:
        stored["logit_change"] = facts.logit_change
    if facts.zero_shot:
        stored["zero_shot"] = True
    return stored | dict(notes)


def split_notes(stored: Mapping[str, Any]) -> tuple[FitFacts, dict[str, Any]]:
    """Return the facts and the notes of a JSON object, which an earlier version may have written."""
    notes = dict(stored)
    # The first stores held no size of the pool, but the rows of a training.
    pool = notes.pop("train_examples", notes.get("rows"))
    teacher = notes.pop("teacher", None) or {}
    facts = FitFacts(
        labels_used=notes.pop("labels_used") if "labels_used" in notes else _labels_from_notes(notes),
        train_examples=None if pool is None else int(pool),
        val_examples=int(notes.pop("val_examples", 0)),
        val_score=notes.pop("val_score", None),
        teacher=str(teacher.get("model", "")),
        teacher_calls=int(teacher.get("calls", 0)),
        teacher_usd=teacher.get("usd") if teacher else 0.0,
        discarded_seconds=float(notes.pop("discarded_seconds", None) or 0.0),
        training_seconds=float(notes.pop("training_seconds", 0.0)),
        training_usd=notes.pop("training_usd", 0.0),
        logit_change=notes.pop("logit_change", None),
        zero_shot=bool(notes.pop("zero_shot", False)),
    )
    return facts, notes


def _labels_from_notes(notes: Mapping[str, Any]) -> int | None:
    """Return the labels that an arm needed, from the notes of a version that wrote no `labels_used`.

    `pool` was the number of examples chosen from, `demos` of those shown, `fixed` of a block beside the
    pool; a search, which notes its `candidates`, read all of train and val.
    """
    if "pool" in notes:
        return int(notes["pool"]) + int(notes.get("fixed", 0))
    return int(notes["demos"]) if "demos" in notes and "candidates" not in notes else None
