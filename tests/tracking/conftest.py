from pathlib import Path

import pytest
from PIL import Image

from vlm.tracking import Shown


@pytest.fixture
def shown(tmp_path: Path) -> list[Shown]:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    return [Shown(tmp_path / "red.png", "color?", "red", "[bold]red"), Shown(None, "Say yes.", "Yes", "No")]
