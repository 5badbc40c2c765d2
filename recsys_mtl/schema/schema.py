"""Schema: what every column of the tables means, once, for training, scoring and serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, InstanceOf

from recsys_mtl.schema.as_of import ComputedFeature, Time
from recsys_mtl.schema.as_of_checks import check_computed
from recsys_mtl.schema.features import Feature, IdFeature, Name
from recsys_mtl.schema.tasks import Binary, Task, find_circle
from recsys_mtl.spec import Spec, spec

_SHARED_SETTINGS = {
    "num_buckets": "num_buckets",
    "embedding_dim": "embedding_dim",
    "min_count": "min_count",
    "num_lookups": "num_hashes",  # features without that parameter have one hash
    "vocabulary": "vocabulary",
}
"""What features of one table have in common, and the parameter that says it."""

Features = Annotated[Sequence[InstanceOf[Feature]], AfterValidator(tuple)]
Tasks = Annotated[Sequence[InstanceOf[Task]], AfterValidator(tuple)]


@spec
class Side(Spec):
    """The user's or the item's half of the schema.

    Parameters
    ----------
    key
        Column that names the user or item in the interactions and in its own table.
    features
        What is known of it. Each is read from its own table if `scan` was given one, else from the
        interactions; a feature of the key column itself is always known.
    """

    key: Name
    _: KW_ONLY
    features: Features = ()


@spec
class Schema(Spec):
    """What the columns of a table mean.

    Parameters
    ----------
    user, item
        The two sides; both may be left out for a plain table.
    context
        Features of the impression itself, read from the interactions.
    tasks
        What is predicted; at least one.
    time
        When an interaction was: its column, or a `Time`. Features computed from earlier rows need it.
    hash
        Hash of the ids: ``"xxh64"``, or ``"murmur3"`` (32 bit) for parity with other tools.

    Raises
    ------
    SchemaError
        If two features or two tasks share a name, a label serves as a feature, `within` names no
        binary task, tasks with a ranking loss have no group column, or different ones, or features
        computed from earlier rows contradict each other or have no time.
    """

    _: KW_ONLY
    user: Side | None = None
    item: Side | None = None
    context: Features = ()
    tasks: Tasks
    time: Time | Name | None = None
    hash: Literal["xxh64", "murmur3"] = "xxh64"

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks must hold at least one task")
        if not self.features:
            raise ValueError("at least one feature is needed, in user, item or context")
        _check_unique("feature", (feature.name for feature in self.features))
        _check_unique("task", (task.name for task in self.tasks))
        joints = (t.joint for t in self.tasks if isinstance(t, Binary) and t.joint is not None)
        _check_unique("key or score", (*self.keys, *(task.name for task in self.tasks), *joints))
        self._check_leaks()
        self._check_spaces()
        self._check_parents()
        self._check_groups()
        self._check_tables()
        sides = (f for side in (self.user, self.item) if side is not None for f in side.features)
        labels = self.label_columns
        check_computed(
            self.context, tuple(sides), self.clock, labels=labels, read=(*self.keys, *labels)
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """The id columns that scores are returned with: the user's, then the item's."""
        return tuple(side.key for side in (self.user, self.item) if side is not None)

    @property
    def features(self) -> tuple[Feature, ...]:
        """All features: the user's, the item's, the context's."""
        sides = (side.features for side in (self.user, self.item) if side is not None)
        return (*(feature for side in sides for feature in side), *self.context)

    @property
    def clock(self) -> Time | None:
        """The time of an interaction, if there is one."""
        return Time(self.time) if isinstance(self.time, str) else self.time

    @property
    def computed(self) -> tuple[ComputedFeature, ...]:
        """The features of the context that are computed from earlier rows."""
        return tuple(feature for feature in self.context if isinstance(feature, ComputedFeature))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are named, of whatever table, each once."""
        named = [*self.keys, *self.label_columns, *self.teacher_columns]
        named += [column for feature in self.features for column in feature.inputs]
        named += [] if self.group is None else [self.group]
        named += [] if self.clock is None else [self.clock.column]
        return tuple(dict.fromkeys(named))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of labels and sample weights, each once."""
        columns = [task.label for task in self.tasks]
        columns += [task.sample_weight for task in self.tasks if task.sample_weight is not None]
        return tuple(dict.fromkeys(columns))

    @property
    def teacher_columns(self) -> tuple[str, ...]:
        """The columns of other models' scores, which training alone reads, each once."""
        columns = (task.teacher for task in self.tasks)
        return tuple(dict.fromkeys(column for column in columns if column is not None))

    @property
    def group(self) -> str | None:
        """The column of the user or request within which ranking losses compare rows, if any do."""
        return next((group for _, group in self._groups() if group is not None), None)

    def task(self, name: str) -> Task:
        """Return the task of that name."""
        found = next((task for task in self.tasks if task.name == name), None)
        if found is None:
            names = [task.name for task in self.tasks]
            raise KeyError(f"No task is named {name!r}. Tasks: {names}.")
        return found

    @classmethod
    def infer(
        cls,
        table: Any,
        *,
        user: str | None = None,
        item: str | None = None,
        tasks: Sequence[Task | str],
        users: Any = None,
        items: Any = None,
        exclude: Iterable[str] = (),
    ) -> Self:
        """Propose a schema from the columns of a table, for a person to read and edit.

        Parameters
        ----------
        table
            The interactions: a polars, pandas or Arrow table, or a parquet path.
        user, item
            Key columns.
        tasks
            Tasks, or names of label columns: two values 0/1 become `Binary`, other numbers `Regression`.
        users, items
            Tables of the two sides, if they are kept apart.
        exclude
            Columns that must not become features, such as the split or other outcomes. A label cut
            from a column you leave in (watch time, say) is a leak no tool can see.

        Returns
        -------
        Schema
            Strings, dates, booleans, integers with up to 64 values and columns named like an id become
            `Categorical`, other numbers `Numeric`, lists of ids and separator-joined strings `Bag`,
            lists of floats of one length `Vector`. Constant columns and times are left out, and
            so are ``split`` and columns that start with ``label_`` or ``oracle_``: outcomes. In a
            flat table a column that never varies within a user (item) is put on that side. A column
            that a side table has is read from there; where both have it, the item's feature is named
            ``item_...``.

        Raises
        ------
        SchemaError
            If a key, a label or a column to exclude is in no table, or a table is empty.
        """
        from recsys_mtl.schema.infer import propose

        parts = propose(
            table, user=user, item=item, tasks=tasks, users=users, items=items, exclude=exclude
        )
        return cls(
            user=None if user is None else Side(user, features=parts.user),
            item=None if item is None else Side(item, features=parts.item),
            context=parts.context,
            tasks=parts.tasks,
        )

    def _check_leaks(self) -> None:
        outcomes = {*self.label_columns, *self.teacher_columns}
        for feature in self.features:
            leaked = outcomes.intersection(feature.columns)
            if leaked:
                raise ValueError(
                    f"feature {feature.name!r} reads column {leaked.pop()!r}, which is a label or sample"
                    " weight, or a teacher's score: the model would see the answer. Remove the feature"
                )

    def _check_spaces(self) -> None:
        tasks = {task.name: task for task in self.tasks}
        for task in self.tasks:
            if task.within is not None and not isinstance(tasks.get(task.within), Binary):
                raise ValueError(
                    f"task {task.name!r}: within must name a binary task. Found {task.within!r};"
                    f" binary tasks: {[t.name for t in self.tasks if isinstance(t, Binary)]}"
                )
        for task in self.tasks:
            inner = [one.name for one in self.tasks if one.within == task.name]
            if task.teacher is not None and (task.within is not None or inner):
                raise ValueError(
                    f"task {task.name!r}: a teacher needs a task that is within no other and has none"
                    f" within it. Found within={task.within!r}, inner tasks {inner}: leave teacher out"
                )
        circle = find_circle({t.name: [t.within] if t.within else [] for t in self.tasks})
        if circle is not None:
            raise ValueError(
                f"task {circle.split(' -> ')[0]!r}: within must not lead back to itself. Found"
                f" {circle}: remove one of these"
            )

    def _check_parents(self) -> None:
        parents = {task.name: task.built_on for task in self.tasks}
        for name, named in parents.items():
            unknown = [other for other in named if other not in parents]
            if unknown:
                raise ValueError(
                    f"task {name!r}: parents must name tasks. Found {unknown[0]!r};"
                    f" tasks: {list(parents)}"
                )
        circle = find_circle(parents)
        if circle is not None:
            raise ValueError(
                f"task {circle.split(' -> ')[0]!r}: parents must not lead back to itself. Found"
                f" {circle}: remove one of these parents"
            )

    def _groups(self) -> list[tuple[Binary, str | None]]:
        """List the tasks with a ranking loss, each with its group column."""
        user = None if self.user is None else self.user.key
        return [
            (task, task.group or user)
            for task in self.tasks
            if isinstance(task, Binary) and task.ranking is not None
        ]

    def _check_groups(self) -> None:
        groups = self._groups()
        for task, group in groups:
            if group is None:
                raise ValueError(
                    f"task {task.name!r}: a ranking loss compares the rows of one group. Name its"
                    " column, group=..., or give the schema a user"
                )
            if group in self.label_columns:
                raise ValueError(
                    f"task {task.name!r}: group must be a user or request. Found {group!r}, which is"
                    " a label or sample weight"
                )
            first, shared = groups[0]
            if group != shared:
                raise ValueError(
                    f"tasks {first.name!r} and {task.name!r} have ranking losses and must agree on"
                    f" group: a batch keeps the rows of one group together. Found {shared!r} and"
                    f" {group!r}"
                )

    def _check_tables(self) -> None:
        first: dict[str, IdFeature] = {}
        for feature in self.features:
            if not isinstance(feature, IdFeature):
                continue
            if self.hash == "murmur3" and (feature.num_lookups > 1 or feature.vocabulary):
                raise ValueError(
                    f"feature {feature.name!r}: num_hashes and vocabulary need the 64 bits of"
                    " hash 'xxh64'"
                )
            other = first.setdefault(feature.table_name, feature)
            for setting, parameter in _SHARED_SETTINGS.items():
                if getattr(other, setting) != getattr(feature, setting):
                    raise ValueError(
                        f"features {other.name!r} and {feature.name!r} share table"
                        f" {feature.table_name!r} and must agree on {parameter}. Found"
                        f" {getattr(other, setting)} and {getattr(feature, setting)}: give both the"
                        " same, or tables of their own"
                    )


def _check_unique(what: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} names must be unique. {twice[0]!r} is used more than once")
