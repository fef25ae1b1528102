"""Write the Wikipedia image–text features as a table of files, which ``bmlr prepare manifest`` reads.

    python scripts/make_wiki_table.py $BMLR_DATA/wiki/data.npz wiki

Every section of an article is a row: its class, its part, its visual words (128) and the tf-idf of its text (1000). A
tenth of the official training part, drawn by class, is the validation part.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

PARTS = ("train", "test")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="data.npz of the features")
    parser.add_argument("folder", type=Path, help="folder to write into")
    options = parser.parse_args()
    arrays = np.load(options.file, allow_pickle=False)
    labels, parts = arrays["label"], [PARTS[part] for part in arrays["split"]]
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        rows = rng.permutation([row for row in np.flatnonzero(labels == label) if parts[row] == "train"])
        for row in rows[: round(len(rows) / 10)]:
            parts[row] = "val"
    for name in ("image", "text"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
        scale = arrays[name][[part == "train" for part in parts]].std()
        for row, values in enumerate(arrays[name] / scale):
            np.save(options.folder / name / f"{row}.npy", values.astype(np.float32))
    with (options.folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "split", "image:vector", "text:vector"])
        for row, label in enumerate(labels):
            label_name = str(arrays["class_names"][label])
            writer.writerow([row, label_name, parts[row], f"image/{row}.npy", f"text/{row}.npy"])


if __name__ == "__main__":
    main()
