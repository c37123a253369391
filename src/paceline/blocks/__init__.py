"""What several methods are made of: parts that no method owns."""
