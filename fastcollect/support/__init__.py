"""What every room leans on: errors, files, processors, random streams, what a command line does.

Imports nothing of ours.
"""
