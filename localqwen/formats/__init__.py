"""The files of a model, each format read by one strict reader. Knows no engine, no registry and no hub."""
