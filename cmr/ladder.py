"""One reference at rising strength: `python -m cmr.ladder --data DATA --diffusion final.pt --case CASE`.

Each column is a start time t0, each row a way to keep the reference: not at all (SDEdit), the low-pass guidance of the
paper's sampler with D = 2 and 4, and the guided filter.  For the eye; nothing is measured or chosen by it.

Public: `main`.
"""
from dataclasses import dataclass

import numpy as np

from cmr.errors import DataError, run_script
from cmr.files import write_text
from cmr.grid import Grid
from cmr.pictures import labelled_sheet, with_contours
from cmr.sampler import SourceModel, Strength, translate
from cmr.settings import GRIDS, DataConfig, given, opt, parse
from cmr.studies import find
from cmr.workers import pick_device
from cmr.working import prepare

TIMES, CALLS = (100, 300, 500, 900), 25
KEPT = {"unguided": {}, "low-pass by 2": {"low_pass": 2}, "low-pass by 4": {"low_pass": 4},
        "guided filter, 30 mm": {"guide_mm": 30}}


@dataclass(frozen=True)
class Config(DataConfig):
    diffusion: str = opt("", "final.pt of train_diffusion.py", given("a final.pt"))
    case: str      = opt("", "name of a volume, as in metrics.csv with its phase, e.g. A1B2C3_ED", given("a case"))
    out: str       = opt("ladder.svg", "the picture", given("a file"))


def main(argv=None):
    c = parse(Config, GRIDS, argv, __doc__.splitlines()[0])
    model = SourceModel.load(c.diffusion, pick_device(c.device))
    records = {record.case: record for record in find(c.data, c.use_unlabeled_masks)}
    if c.case not in records:
        raise DataError(f"{c.data}: no volume {c.case}; there are {', '.join(sorted(records)[:3])}, ...")
    working, = prepare([records[c.case]], Grid(c.spacing_mm, c.size), c.work)
    reference = np.asarray(working.image)
    middle = len(reference) // 2
    rows = []
    for kept in KEPT.values():
        panels = [with_contours(reference[middle])]
        for t0 in TIMES:
            strength = Strength(t0=t0, steps=CALLS, **kept)
            image, _ = translate(model, reference, c.spacing_mm, strength, c.seed, working.record.subject, 0)
            panels.append(with_contours(image[middle]))
        rows.append(panels)
    write_text(c.out, labelled_sheet(rows, ["reference", *(f"t0 = {t0}" for t0 in TIMES)], list(KEPT)))
    print(f"{c.out}: slice {middle + 1} of {len(reference)} of {c.case}")


if __name__ == "__main__":
    run_script(main)
