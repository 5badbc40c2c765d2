"""InputLayout: what the columns of encoded blocks are, for the network that reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableSize:
    """One embedding table: its name, rows, and width (None: the model's)."""

    name: str
    num_rows: int
    dim: int | None


@dataclass(frozen=True)
class EncodedNumber:
    """A number that the network makes a vector of.

    Parameters
    ----------
    name
        The feature.
    kind
        ``"piecewise"`` or ``"periodic"``, as in `Numeric`.
    size
        Bins, or frequencies.
    dim
        Width of the vector; None: the model's.
    scale
        Deviation that frequencies are drawn with.
    """

    name: str
    kind: str
    size: int
    dim: int | None
    scale: float = 1.0


@dataclass(frozen=True)
class InputLayout:
    """What the columns of encoded blocks are, in the order of the schema's features.

    Parameters
    ----------
    tables
        All embedding tables.
    id_tables, list_tables
        The table each one-id column and each list column looks up.
    dense_dim
        Width of the dense numbers.
    id_names, list_names
        The feature of each one-id column and each list column.
    dense_names
        The feature and the width of each run of dense numbers.
    histories
        Which list columns are histories.
    items
        Which one-id columns are the item's.
    numbers
        The features among the dense ones that the network makes vectors of; each has two columns, the
        number and a flag that is 1 where it is missing.
    id_dropout
        Share of each one-id column's ids that training takes for unknown; empty: none.
    list_dropout
        The same of each list column, and how many rows an id looks up.
    """

    tables: tuple[TableSize, ...]
    id_tables: tuple[str, ...]
    list_tables: tuple[str, ...]
    dense_dim: int
    id_names: tuple[str, ...] = ()
    list_names: tuple[str, ...] = ()
    dense_names: tuple[tuple[str, int], ...] = ()
    histories: tuple[int, ...] = ()
    items: tuple[int, ...] = ()
    numbers: tuple[EncodedNumber, ...] = ()
    id_dropout: tuple[float, ...] = ()
    list_dropout: tuple[tuple[float, int], ...] = ()
