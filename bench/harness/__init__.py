"""What the commands share; may import fastcollect and ``bench.methods``, none of the commands."""
