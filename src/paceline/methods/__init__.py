"""The methods: one file per published system, in a folder per family."""
