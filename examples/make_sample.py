"""Cut the sample files of this folder out of the two ray-traced observation files.

python examples/make_sample.py FOLDER_WITH_THE_TWO_FILES [--out examples]
"""

import argparse
from pathlib import Path

from sensing.data.reader import read_observations
from sensing.data.writer import write_observations

SAMPLES = {
    "street_canyon_nlos_20db.h5": ("street_canyon_sample.h5", 6),
    "street_canyon_los_20db.h5": ("street_canyon_los_sample.h5", 2),
}
"""Source file to sample file and number of scenes: the first ones, not chosen by result."""


def main() -> None:
    """Write the samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the two ray-traced files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the samples")
    arguments = parser.parse_args()
    for name, (sample, count) in SAMPLES.items():
        data = read_observations(arguments.folder / name, slice(count))
        write_observations(
            arguments.out / sample,
            data.deployment,
            data.observation,
            scene=data.truth.scene if data.truth else None,
            channel=data.channel,
            los_exists=data.los_exists,
            source=f"{data.source}; the first {count} scenes of {name}",
        )


if __name__ == "__main__":
    main()
