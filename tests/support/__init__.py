"""What several test rooms share: waiting, processes, a clean environment, data sets."""
