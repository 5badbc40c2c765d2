"""Makes the scripts of the top-level folder data/ importable by their file name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "data"))
