"""Make the model file of this wheel from corpus.txt: a line that names the format, then the text.

python make_model.py [CORPUS MODEL.ngram]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))

from ngram_sage.model import MAGIC, find  # noqa: E402


def main(corpus: str = str(HERE / "corpus.txt"), model: str = str(find("ngram-lighthouse"))) -> None:
    Path(model).write_bytes(MAGIC + Path(corpus).read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
