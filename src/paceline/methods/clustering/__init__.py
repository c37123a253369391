"""Methods that find groups of clients and train one model for each."""
