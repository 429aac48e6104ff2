"""Train a dense policy, a lottery ticket, or transfer one: not yet."""

import sys

if __name__ == "__main__":
    print("error: train.py cannot train yet; tune_throughput.py and bench/ work", file=sys.stderr)
    sys.exit(2)
