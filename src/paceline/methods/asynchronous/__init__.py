"""Asynchronous methods: the server updates the model without waiting for the whole cohort."""
