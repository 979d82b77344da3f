"""The kit: real hosts and real machines for tests, and the oracle that looks into every snapshot."""
