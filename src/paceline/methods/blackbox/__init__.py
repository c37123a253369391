"""Black-box methods: zeroth-order optimisation of objectives without gradients."""
