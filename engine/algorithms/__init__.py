"""Learning algorithms, one file each, behind the protocol of ``base``.

Imports ``data``, ``sparse`` and the modules at the top of ``engine``.
"""

from engine.algorithms.base import Config
from engine.algorithms.sac import SACConfig
from engine.algorithms.td3 import TD3Config

AlgorithmConfig = Config
"""Any algorithm's configuration."""
CONFIGS: dict[str, type[Config]] = {"sac": SACConfig, "td3": TD3Config}
"""The configuration class of every algorithm, by the name that ``--algo`` takes."""
