"""Validators and converters for the fields of ``attrs`` classes: a plug-in's settings, options and schemas.

Each validator raises ``SchemaError`` with the name of the field and the same messages as the schemas of the core.
"""

from sage_infer.checks import (
    Choice,
    Each,
    Entries,
    Flag,
    Instance,
    Integer,
    Json,
    Number,
    Text,
    as_frozenset,
    as_optional_tuple,
    as_tuple,
    optional,
)

__all__ = [
    "Choice",
    "Each",
    "Entries",
    "Flag",
    "Instance",
    "Integer",
    "Json",
    "Number",
    "Text",
    "as_frozenset",
    "as_optional_tuple",
    "as_tuple",
    "optional",
]
