"""What runs inside worker processes: env workers with their groups, model workers, inference.

Imports ``memory``, ``envs``, ``policies`` and ``support``; never what starts it.
"""
