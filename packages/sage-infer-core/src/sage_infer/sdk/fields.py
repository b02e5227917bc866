"""Validators and converters for the fields of ``attrs`` classes: a plug-in's settings, options and schemas.

Each validator raises ``SchemaError`` with the field's name and a message in the words of the core's own schemas.
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
