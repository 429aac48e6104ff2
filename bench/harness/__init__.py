"""What the commands share: flags, processes of their own, turns, statistics, tables, files and pictures.

May import fastcollect and ``bench.methods``, none of the commands.
"""
