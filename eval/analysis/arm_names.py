"""Name the arms of one task, and the families of their variants, by what tells them apart."""

from collections.abc import Sequence

from crossover.eval.experiment.spec import Cell
from crossover.models.spec import differing_settings


def retrieval_label(cell: Cell) -> str:
    """Return the backend, k and options of the cell's retrieval, or an empty string without retrieval."""
    return cell.retrieval.label if cell.retrieval else ""


def arm_names(cells: Sequence[Cell]) -> list[str]:
    """Return a unique label for each cell: its method, and every other setting that varies among the cells."""
    models = differing_settings(c.model for c in cells)
    several_sizes = len({c.train_size for c in cells if c.method.learns}) > 1
    several_knowledge = len({c.knowledge for c in cells}) > 1
    several_retrievals = len({retrieval_label(c) for c in cells} - {""}) > 1
    names: list[str] = []
    for c in cells:
        parts = [c.method.label]
        if several_sizes and c.method.learns:
            parts.append("all" if c.train_size is None else f"n={c.train_size}")
        parts += models[c.model]
        parts += [c.knowledge.label] * several_knowledge
        parts += [retrieval_label(c)] * (several_retrievals and c.retrieval is not None)
        name = ", ".join(parts)
        names.append(name if name not in names else f"{name} #{names.count(name) + 1}")
    return names


def family_names(cells: Sequence[Cell]) -> list[str]:
    """Return the method without its options for each cell, with the model and the knowledge where they vary."""
    models = differing_settings(c.model for c in cells)
    several_knowledge = len({c.knowledge for c in cells}) > 1
    return [", ".join([c.method.base_name, *models[c.model], *[c.knowledge.label] * several_knowledge]) for c in cells]
