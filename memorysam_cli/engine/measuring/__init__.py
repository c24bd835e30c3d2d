"""What work costs: memory, seconds, and the made-up scenes that it is measured on."""
