"""Learning algorithms, one file each, behind the protocol of ``base``.

Imports ``data``, ``sparse`` and the modules at the top of ``engine``.
"""

from engine.algorithms.base import Config
from engine.algorithms.sac import SACConfig

AlgorithmConfig = Config
"""Any algorithm's configuration."""
CONFIGS: dict[str, type[Config]] = {"sac": SACConfig}
"""The configuration class of every algorithm, by the name that ``--algo`` takes."""
