"""The mathematics: pure functions on pytrees, without processes, files or clocks.

``algorithms`` holds the learning algorithms, one file each, behind one protocol; ``data`` the transitions and
the replay that keeps them; ``sparse`` masks, pruning, compact networks and operation counts. Beside them lie
networks, the normaliser of observations, and the policies of model workers.

Imports NumPy, JAX, flax and optax, and nothing else of this project.
"""
