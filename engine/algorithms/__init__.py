"""Learning algorithms, one file each, behind the protocol of ``base``.

Imports ``data``, ``sparse`` and the modules at the top of ``engine``.
"""

from engine.algorithms.sac import SACConfig

CONFIGS = {"sac": SACConfig}
"""The configuration class of every algorithm, by the name that ``--algo`` takes."""
AlgorithmConfig = SACConfig
"""Any of them."""
