"""Deployment of a real federation, independent of the transport: identities, client policies, server state."""
