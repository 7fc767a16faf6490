"""`tools/ope_summary.py`: what several evaluations together say, by hand."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.ope.test_ope import estimated, judgement

TOOL = Path(__file__).parents[2] / "tools" / "ope_summary.py"


def test_ranks_and_choices_of_each_set(tmp_path):
    rising = [estimated("x/bc", updates, float(updates), 10.0 * updates, 1.0 / updates) for updates in (1, 2, 3)]
    falling = [estimated("x/iql", updates, 10.0 - updates, 100.0 + 3 * updates, 1.0 * updates) for updates in (1, 2, 3)]
    for name, found in (("medium", judgement(*rising)), ("replay", judgement(*rising, *falling))):
        (tmp_path / name / "ope").mkdir(parents=True)
        found.write(tmp_path / name / "ope" / "ope.json")
    folders = [str(tmp_path / name / "ope") for name in ("medium", "replay")]
    picture = tmp_path / "ope.png"
    done = subprocess.run(
        [sys.executable, TOOL, *folders, "--out", picture], check=True, capture_output=True, text=True
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "---" not in line
    ]
    # Ranks of the values 1, 2, 3, 9, 8, 7 are 1 2 3 6 5 4, of the returns 1 to 6: squared differences sum to 8.
    assert rows[1] == ["medium", "3 on 10", "1.00 (0)", "bc 1.00", "0.00, 0.00, 0.00"]
    assert rows[2][:1] + rows[2][3:] == ["replay", "bc 1.00, iql -1.00", "0.06, 0.00, 0.00"]  # 6 / 99
    assert rows[2][2].startswith("0.77 (")  # 1 - 6 * 8 / (6 * 35)
    assert rows[-2] == ["medium", "30", "30", "30", "30"]
    assert rows[-1] == ["replay", "66", "66", "70", "70"]  # of bc 30; of iql 103, 103, 109 and 109
    with Image.open(picture) as image:
        assert image.size == (1650, 555)
