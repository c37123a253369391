"""Mutation testing of methods, aggregation and sub-models: `make mutants`. See CONTRIBUTING.md."""
