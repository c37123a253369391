"""Methods: asynchronous."""
