"""Error rates, their normalisation, and the statistics of comparing two rounds."""
