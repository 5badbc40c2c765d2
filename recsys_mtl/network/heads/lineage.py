"""Which tasks a task builds on, and an order in which parents come first."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_mtl.errors import SchemaError
from recsys_mtl.schema import Task, find_circle


def parent_numbers(tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Return for each task the numbers of those it is built on, in the order it names them.

    Raises
    ------
    SchemaError
        If a parent is not among the tasks.
    """
    numbers = {task.name: number for number, task in enumerate(tasks)}
    for task in tasks:
        unknown = [name for name in task.built_on if name not in numbers]
        if unknown:
            raise SchemaError(
                f"Task {task.name!r}: parents must be among the tasks. Found {unknown[0]!r};"
                f" tasks: {list(numbers)}."
            )
    return tuple(tuple(numbers[name] for name in task.built_on) for task in tasks)


def parents_first(tasks: Sequence[Task]) -> tuple[int, ...]:
    """Return the tasks' numbers, each after those of its parents.

    Raises
    ------
    SchemaError
        If a task leads back to itself.
    """
    parents = parent_numbers(tasks)
    circle = find_circle({task.name: task.built_on for task in tasks})
    if circle is not None:
        raise SchemaError(
            f"Parents must not lead back to a task itself. Found {circle}: remove one of these"
            " parents."
        )
    order: list[int] = []
    left = list(range(len(tasks)))
    while left:
        ready = [number for number in left if set(parents[number]) <= set(order)]
        order += ready
        left = [number for number in left if number not in ready]
    return tuple(order)
