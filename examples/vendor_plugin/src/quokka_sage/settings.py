"""The section ``quokka`` of ``sage_infer.yaml``."""

from attrs import field, frozen
from sage_infer.sdk.fields import Text


@frozen(kw_only=True)
class QuokkaSettings:
    smi_output: str = field(default="/run/quokka/smi.txt", validator=Text(min_length=1))


TEMPLATE = """\
# The hardware of Quokka.
quokka:
  # File with the output of quokka-smi.
  smi_output: /run/quokka/smi.txt
"""
