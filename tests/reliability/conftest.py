"""Makes the subjects of the conformance tests importable here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
