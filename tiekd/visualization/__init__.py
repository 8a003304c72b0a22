"""Images of depth, errors and distributions, drawn without a plotting library."""
