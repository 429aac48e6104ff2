"""What a user chooses about training: its form, its checks, where each value comes from.

Imports nothing else of ``trainers``.
"""
