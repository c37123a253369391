"""Methods with compressed uploads."""
