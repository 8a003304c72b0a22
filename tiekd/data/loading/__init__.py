"""The loader: sampling, worker processes, collation, transport and prefetching to the device."""
