"""A real client: its policy, its ledger, its worker."""
