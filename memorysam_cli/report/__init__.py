"""What people see: the console, figures and overlays."""
