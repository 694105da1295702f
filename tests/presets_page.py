"""Every value of every preset side by side, as docs/presets.md: `python tests/presets_page.py` writes it."""
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import train_diffusion  # noqa: E402
import train_unet  # noqa: E402
from cmr import reproduce, synthesize  # noqa: E402
from cmr.settings import GRIDS, deciding  # noqa: E402

PAGE = ROOT / "docs" / "presets.md"
HEAD = """# What each preset is

For anyone who asks what `make reproduce PRESET=lab` does, or which value to change: the settings of the stages that
decide their results, side by side. Written by `python tests/presets_page.py`.

`tiny` is for tests and its numbers mean nothing; `demo` is the default, the phantom on two cores; `small` is real data
on two cores; `lab` real data in a night on one GPU; `paper` the full length. Left out is what decides nothing about a
result (folders, device, `workers`, and how often something is logged, saved or drawn: `log_every`, `save_minutes`,
`sample_every`, `sheet`, `sheet_steps`), what an experiment sets for each of its stages (data, domains, seed, and what a
network is trained on, such as `augment`), and what a network does not use: an nnU-Net plans its own batch and levels.

A single command takes each setting as a flag, and `--help` says what is allowed. `make` has variables for the
experiment alone: to change another setting for a whole run, such as the steps of a training, edit the presets in
`train_diffusion.py`, `cmr/vanilla.py`, `cmr/nnunet.py` or `cmr/synthesize.py` before it starts. The strength of the
projection (t0, the low-pass D, `pull`) is `_SAMPLER`, `PROJECTED` and `GUIDED` in `cmr/sampler.py`, from which both
synthesis and evaluation take it; images that were made with another are refused by name, so delete `dg`, `da` and what
is made from them. How many parameters each network has in each preset is said [beside the costs](cost.md#presets).
"""
HOW_ASKED = {"experiment", "shuffle_masks", "augment", "data", "source", "target", "goal", "runs", "python", "rehearse",
             "seed", "seeds", "diffusion", "segmenter", "use", "network", "domain", "train_on", "pseudonyms",
             "references", "use_unlabeled_masks"}
_PLANNED = {"batch", "levels"}
NOT_USED = {"vanilla": {"memory_gb", "epoch_steps", "validation_batches", "optimizer"}, "nnunet2d": _PLANNED,
            "nnunet3d": _PLANNED}                # settings of train_unet.py, by network


def section(title, config, of_preset, not_used=()):
    """Markdown of one stage.  of_preset : {preset: values that differ from the defaults}; not_used : names left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    shown = [name for name in deciding(defaults) if name not in {*HOW_ASKED, *not_used}]
    lines = [f"\n## {title}\n", f"| setting | {' | '.join(GRIDS)} |", f"|---|{'---|' * len(GRIDS)}"]
    for name in shown:
        values = [of_preset[preset].get(name, defaults[name]) for preset in GRIDS]
        cells = [str(value).replace(",", ", ") or "-" for value in values]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page():
    parts = [HEAD, section("The experiment: `cmr.reproduce`", reproduce.Config, reproduce.PRESETS),
             section("The diffusion model: `train_diffusion.py`", train_diffusion.Config, train_diffusion.PRESETS)]
    for network in train_unet.NETWORKS:
        of_network = {preset: values[network] for preset, values in train_unet.presets().items()}
        parts.append(section(f"Segmenters: `train_unet.py --network {network}`", train_unet.Config, of_network,
                             NOT_USED.get(network, ())))
    for use, what in (("dg", "synthetic training images"), ("da", "translated test images")):
        of_use = {preset: values[use] for preset, values in synthesize.PRESETS.items()}
        parts.append(section(f"{use.upper()}'s {what}: `cmr.synthesize --use {use}`", synthesize.Config, of_use))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
