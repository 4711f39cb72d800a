"""What the report's summary says of captioned images: the best scores of the teacher and of the 8-step students."""

import pandas as pd

from harness.reporting.claims_evidence import MANY
from harness.reporting.records import ALIKE, is_ablation, plain_teachers

SCORES = {
    "clip": ("CLIP score", "{:.1f}"),
    "attribute_accuracy": ("attribute accuracy (captions of one object)", "{:.1%}"),
}


def caption_tiles(means: pd.DataFrame) -> list[dict[str, str]]:
    """Values and names of the tiles, of what was measured alike by itself; `means` is over seeds."""
    means = means[~is_ablation(means)]
    tiles = []
    for _, alike in means.groupby([*ALIKE, "convention"], sort=False):
        real = means[means["method"] == "real-data"].merge(alike[ALIKE].drop_duplicates())
        students = alike[~alike["method"].isin(["teacher", "real-data"]) & (alike["steps"] == MANY)]
        for column, (name, form) in SCORES.items():
            floor = "".join(f"; real images: {form.format(value)}" for value in real[column].dropna())
            for rows, whose in (
                (plain_teachers(alike), "of the teacher"),
                (students, f"of {len(students)} students with {MANY} steps"),
            ):
                if rows[column].isna().all():
                    continue
                best = rows.dropna(subset=column).sort_values(column).iloc[-1]
                which = f"{best['series']}, k = {best['steps']}, {best['backend']}"
                told = f"highest {name} {whose} ({which}){floor}"
                tiles.append({"value": form.format(best[column]), "name": told})
    return tiles
