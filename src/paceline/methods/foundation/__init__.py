"""Methods for foundation models: parameter-efficient fine-tuning."""
