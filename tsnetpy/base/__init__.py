"""The shared vocabulary: time, addresses, keys, errors, packets, counters. Imports nothing of ours."""
