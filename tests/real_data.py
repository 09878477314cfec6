"""Where real text and labels are: in the folder `shared` beside the checkout, where there is one."""

from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
