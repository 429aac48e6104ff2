"""What lies on the disk: arrays, checkpoints, run folders, the index of a study, and the reader of them.

Imports ``config``; no runner.
"""
