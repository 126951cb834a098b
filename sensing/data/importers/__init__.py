"""Ray-traced paths of other tools as observation files; see docs/importers.md. The tools themselves are not needed."""

from sensing.data.importers.deepmimo import from_deepmimo
from sensing.data.importers.rays import TracedRays, check_round_trip, write_rays
from sensing.data.importers.sionna import SionnaPaths, from_sionna, sionna_rays

__all__ = [
    "SionnaPaths",
    "TracedRays",
    "check_round_trip",
    "from_deepmimo",
    "from_sionna",
    "sionna_rays",
    "write_rays",
]
