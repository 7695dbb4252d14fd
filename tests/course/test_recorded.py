"""What a notebook says that it saw, beside what a run saw."""

import numpy as np
import pandas as pd

import sasa_lib as sl


def test_numbers_that_part_are_marked_and_kept(tmp_path):
    claims = [
        ("the same", 0.74, 0.7444, 0.01),
        ("on the edge", 0.3, 0.3 + 0.1, 0.1),
        ("parted", 12.0, 14.5, 2),
        ("missing", 1.0, np.nan, 0.1),
        ("exact", 28, 28, 0),
    ]
    shown = sl.recorded.compare(tmp_path, "02_subspaces", claims)
    assert shown.data["recorded"].tolist() == ["0.74", "0.3", "12", "1.0", "28"]
    assert shown.data["here"].tolist() == ["0.74", "0.4", "14 (parts)", "nan (parts)", "28"]
    kept = pd.read_csv(tmp_path / "recorded" / "02_subspaces.csv")
    assert kept["parts"].tolist() == [False, False, True, True, False]
    assert kept["here"].tolist()[:3] == [0.7444, 0.4, 14.5]
